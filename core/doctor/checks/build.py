"""Checks of what compiles code for this machine."""

from __future__ import annotations

from core.doctor import setup
from core.doctor.check import Check, Values
from core.doctor.finding import Verdict
from core.doctor.fix import Command, Fix, MoveAside, advice
from core.doctor.needs import Needs
from core.language import tr, tr_later

STALE_LOCK_S = 600
SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cephfs", "fuse.juicefs", "wekafs", "fuse.gcsfuse")


def cxx(value: Values, needs: Needs) -> Verdict:
    """DeepSpeed, torch.compile and Megatron compile C++ at the first step; nvcc refuses a GCC newer than it knows."""
    broken = [name for name in ("cc", "c++") if value[name] and value[name]["version"].startswith("error")]
    absent = [name for name in ("cc", "c++") if value[name] is None]
    if absent or broken:
        return _for_kernels(
            needs,
            tr("no working {names}", names=tr(" or ").join(absent + broken)),
            tr("a C and a C++ compiler"),
            setup.install_gcc(needs) if needs.profile.conda else advice("build.cxx", "apt-get install g++"),
        )
    compiler = setup.gcc_major(value["c++"])
    nvcc = needs.profile.cuda or (value["nvcc"] if needs.gpus and needs.builds_kernels else None)
    newest = setup.NEWEST_GCC.get(str(nvcc))
    if compiler and newest and compiler > newest:
        return Verdict(
            "fail" if needs.original else "warn",
            tr("GCC {gcc} is too new for nvcc {nvcc}", gcc=compiler, nvcc=nvcc),
            expected=tr("GCC {newest} or older", newest=newest),
            found=value["c++"]["version"],
            why=tr("nvcc ends with “unsupported GNU version”"),
            fix=setup.install_gcc(needs)
            if needs.profile.conda
            else advice("build.cxx", f"export CC=gcc-{newest} CXX=g++-{newest}"),
        )
    return Verdict("pass", value["c++"]["version"])


def ninja(value: Values, needs: Needs) -> Verdict:
    """torch builds extensions with ninja; a broken one turns a build of minutes into one of hours, or stops it."""
    install = Fix(
        "build.ninja", "safe", (Command((needs.python, "-m", "pip", "install", "--force-reinstall", "ninja")),)
    )
    if needs.original and needs.megatron:
        install = setup.install_flash(needs)
    if value["path"] is None or value["version"].startswith("error"):
        what = tr("no ninja") if value["path"] is None else tr("ninja does not run: {error}", error=value["version"])
        return _for_kernels(needs, what, "ninja", install)
    return Verdict("pass", tr("ninja {version} at {path}", version=value["version"], path=value["path"]))


def headers(value: Values, needs: Needs) -> Verdict:
    """Extensions need Python.h of this very Python; a python3-config of another one names helpers.so so that nothing finds it."""
    if not value["present"]:
        return _for_kernels(
            needs,
            tr("no {file}", file=value["python_h"]),
            tr("the headers of Python"),
            advice("build.headers", "apt-get install python3-dev"),
        )
    if needs.megatron:
        suffix, other = value["suffix"], value["config_suffix"]
        if value["config"] and other != suffix:
            return Verdict(
                "warn",
                tr("{config} belongs to another Python", config=value["config"]),
                expected=str(suffix),
                found=str(other),
                why=tr("Megatron's Makefile asks it, and names helpers so that this Python does not find it"),
                fix=setup.build_helpers(needs),
                stages=("pretrain",),
            )
        if not value["pybind11"]:
            return Verdict(
                "fail",
                tr("no headers of pybind11"),
                expected="pybind11",
                found=tr("absent"),
                why=tr("Megatron's helpers are compiled with it"),
                fix=setup.install_requirements(needs),
                stages=("pretrain",),
            )
    return Verdict("pass", value["python_h"])


def extension_cache(value: Values, needs: Needs) -> Verdict:
    """A lock that an interrupted build left behind makes every later rank wait for ever, without a word."""
    stale = [lock for lock in value["locks"] if int(lock["age"]) > STALE_LOCK_S]
    folder = str(value["folder"])
    if stale and not int(value["compiling"]):
        return Verdict(
            "fail",
            tr("{count} builds left their lock in {folder}", count=len(stale), folder=folder),
            expected=tr("no lock without a compiler at work"),
            found=", ".join(f"{lock['path']} ({int(lock['age']) // 60} min)" for lock in stale),
            why=tr("every process that needs this extension waits for the lock, for ever"),
            fix=Fix("build.ext_cache", "safe", tuple(MoveAside(str(lock["path"])) for lock in stale)),
        )
    if str(value["file_system"]) in SHARED and len(needs.nodes) > 1:
        return Verdict(
            "warn",
            tr("the extension cache {folder} lies on {kind}", folder=folder, kind=value["file_system"]),
            expected=tr("a folder of each node's own"),
            found=str(value["file_system"]),
            why=tr("{count} nodes build into it at once, and wait for each other's locks", count=len(needs.nodes)),
            fix=advice("build.ext_cache", "export TORCH_EXTENSIONS_DIR=/tmp/torch_extensions_$USER"),
        )
    return Verdict("pass", tr("no stale lock in {folder}", folder=folder))


def _for_kernels(needs: Needs, problem: str, expected: str, fix: Fix) -> Verdict:
    """A missing build tool: a failure only where something is compiled."""
    if not needs.builds_kernels:
        return Verdict("skip", tr("{problem}; this plan compiles nothing", problem=problem))
    return Verdict(
        "fail",
        problem,
        expected=expected,
        found=tr("absent"),
        why=tr("DeepSpeed or torch.compile builds code for this machine at the first step"),
        fix=fix,
    )


CHECKS: tuple[Check, ...] = (
    Check("build.cxx", tr_later("the compilers"), "build", cxx, fix="setup.gcc", stages="training"),
    Check("build.ninja", tr_later("ninja"), "build", ninja, fix="build.ninja", stages="training"),
    Check("build.headers", tr_later("the headers of Python"), "build", headers, fix="setup.helpers", stages="training"),
    Check(
        "build.ext_cache",
        tr_later("the cache of compiled extensions"),
        "build",
        extension_cache,
        fix="build.ext_cache",
        stages="training",
    ),
)
