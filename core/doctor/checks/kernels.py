"""Checks of what the original pipeline compiles: apex, flash-attn, Megatron's helpers and its fused kernels."""

from __future__ import annotations

from collections.abc import Mapping

from core.doctor import setup
from core.doctor.check import Check, Values
from core.doctor.finding import Verdict
from core.doctor.fix import Command, Fix, advice
from core.doctor.fold import each_alone
from core.doctor.needs import Needs
from core.language import tr, tr_later

STALE_LOCK_S = 300


def _not_used(needs: Needs) -> Verdict | None:
    return None if needs.original else Verdict("skip", tr("the modern profile does not use it"))


def apex(value: Values, needs: Needs) -> Verdict:
    """An apex that pip built without its options has no extensions: Megatron stops at its first import of one."""
    if skip := _not_used(needs):
        return skip
    modules = dict(value["modules"])
    missing = [name for name, module in modules.items() if not module["fitting"]]
    other = [path for name in missing for path in modules[name]["files"]]
    if value["apex"] is None:
        summary = tr("apex is not installed")
    elif other:
        summary = tr(
            "apex is built for another Python: {files}", files=", ".join(path.rsplit("/", 1)[-1] for path in other)
        )
    elif missing:
        summary = tr("apex has no {modules}", modules=", ".join(missing))
    else:
        return Verdict("pass", tr("apex {version} with {modules}", version=value["apex"], modules=", ".join(modules)))
    return Verdict(
        "fail",
        summary,
        expected=", ".join(f"{name}{value['suffix']}" for name in modules),
        found=", ".join(other) or tr("absent"),
        why=tr("Megatron imports them at its start; pip before 23.1 passes over the options that build them"),
        fix=setup.install_apex(needs),
        stages=("pretrain",),
    )


def flash(value: Values, needs: Needs) -> Verdict:
    """flash-attn's extension belongs to one torch, one CUDA and one Python; with another it fails on a symbol."""
    module = value["modules"]["flash_attn_2_cuda"]
    if value["version"] is None and not needs.original:
        return Verdict("skip", tr("flash-attn is not installed; the modern profile does without"))
    repair = setup.install_flash(needs) if needs.original else _rebuild_flash(needs)
    expected = f"flash_attn_2_cuda{value['suffix']}"
    if value["version"] is None or not module["fitting"]:
        return Verdict(
            "fail" if needs.original else "warn",
            tr("flash-attn is not installed")
            if value["version"] is None
            else tr("flash-attn is built for another Python"),
            expected=expected,
            found=", ".join(module["files"]) or tr("absent"),
            why=tr("the presets ask for --use-flash-attn-v2"),
            fix=repair,
            stages=("pretrain",),
        )
    imported = value["imported"]
    if imported is not None and not imported["ok"]:
        symbol = "undefined symbol" in str(imported["error"])
        return Verdict(
            "fail" if needs.original else "warn",
            tr("flash-attn was built for another torch or ABI") if symbol else tr("flash-attn does not import"),
            expected=tr("`import flash_attn_2_cuda` works"),
            found=str(imported["error"]),
            why=tr("the training ends at its first layer"),
            fix=repair,
            stages=("pretrain",),
        )
    return Verdict("pass", tr("flash-attn {version}", version=value["version"]))


def _rebuild_flash(needs: Needs) -> Fix:
    install = (
        "-m",
        "pip",
        "install",
        "--force-reinstall",
        "--no-deps",
        "--no-build-isolation",
        "--no-cache-dir",
        "flash-attn",
    )
    return Fix("flash.so", "rebuild", (Command((needs.python, *install)),))


def megatron(value: Values, needs: Needs) -> Verdict:
    """Another copy of `megatron` that is installed (megatron-core, an old egg) is imported instead of the checkout."""
    if skip := _not_used(needs):
        return skip
    tag = needs.profile.tags["Megatron-DeepSpeed"]
    checkout, wins = str(value["checkout"]), value["wins"]
    if not value["present"]:
        return Verdict(
            "fail",
            tr("no Megatron-DeepSpeed in {folder}", folder=checkout),
            expected=tr("a checkout at {tag}", tag=tag),
            found=tr("absent"),
            why=tr("the pretraining is its pretrain_gpt.py"),
            fix=setup.install_megatron(needs),
            stages=("pretrain",),
        )
    if value["core"]:
        return Verdict(
            "fail",
            tr("megatron-core {version} hides the checkout", version=value["core"]),
            expected=tr("`import megatron` finds {folder}", folder=checkout),
            found=str(wins),
            why=tr("pretraining and preprocess_data.py import another library's code"),
            fix=Fix(
                "megatron.import",
                "destructive",
                (Command((needs.python, "-m", "pip", "uninstall", "-y", "megatron-core")),),
            ),
            stages=("pretrain",),
        )
    if value["tag"] != tag:
        return Verdict(
            "fail",
            tr("Megatron-DeepSpeed is at {found}", found=value["tag"] or str(value["commit"])[:12]),
            expected=tag,
            found=str(value["tag"] or value["commit"]),
            why=tr("options and log lines differ between versions"),
            fix=Fix("setup.megatron", "rebuild", setup.checkout(needs, "Megatron-DeepSpeed")),
            stages=("pretrain",),
        )
    if value["changes"]:
        return Verdict(
            "warn",
            tr("the Megatron-DeepSpeed checkout has changes of its own"),
            expected=tr("the tag as it is"),
            found=str(value["changes"])[:200],
            why=tr("results cannot be compared with the tag's"),
            fix=advice("megatron.import", f"git -C {checkout} diff"),
            stages=("pretrain",),
        )
    return Verdict("pass", tr("Megatron-DeepSpeed at {tag}", tag=tag))


def helpers(value: Values, needs: Needs) -> Verdict:
    """“cannot import name 'helpers'”: the Makefile asked the python3-config of another Python for the file's name."""
    if skip := _not_used(needs):
        return skip
    if not value["source"]:
        return Verdict("skip", tr("no Megatron-DeepSpeed in {folder}", folder=value["checkout"]))
    expected = f"helpers{value['suffix']}"
    if value["built"] is None:
        found = ", ".join(value["others"])
        summary = (
            tr("Megatron's helpers are built for another Python") if found else tr("Megatron's helpers are not built")
        )
    elif not value["newer"]:
        found, summary = tr("older than helpers.cpp"), tr("Megatron's helpers are older than their source")
    elif value["error"]:
        found, summary = str(value["error"]), tr("Megatron's helpers do not import")
    else:
        return Verdict("pass", expected)
    return Verdict(
        "fail",
        summary,
        expected=expected,
        found=found or tr("absent"),
        why=tr("the data set is indexed by them: “cannot import name 'helpers'”"),
        fix=setup.build_helpers(needs),
        stages=("pretrain",),
    )


def fused_kernels(value: Values, needs: Needs) -> Verdict:
    """A build folder of other hardware or another CUDA, or a lock left in it, holds every rank at “compiling and loading fused kernels”."""
    if skip := _not_used(needs):
        return skip
    if not value["present"]:
        return Verdict("skip", tr("no Megatron-DeepSpeed in {folder}", folder=value["checkout"]))
    if not value["built"]:
        return Verdict("pass", tr("not built yet: the first start builds them"))
    fix = setup.build_kernels(needs)
    why = tr("every rank waits at “compiling and loading fused kernels”")
    age = value["lock_age"]
    if age is not None and int(age) > STALE_LOCK_S and not int(value["compiling"]):
        return Verdict(
            "fail",
            tr("a build of the fused kernels left its lock {minutes} min ago", minutes=int(age) // 60),
            expected=tr("no lock without a compiler at work"),
            found=f"{value['build']}/lock",
            why=why,
            fix=fix,
            stages=("pretrain",),
        )
    fingerprint, here = value["fingerprint"], dict(value["here"])
    if fingerprint is None:
        return Verdict(
            "warn",
            tr("it is not known with what the fused kernels were built"),
            expected=tr("a fingerprint of this tool"),
            found=", ".join(value["libraries"]) or tr("an empty folder"),
            why=tr("built with another CUDA or for other GPUs, they hang at the start"),
            fix=fix,
            stages=("pretrain",),
        )
    changed = sorted(name for name in here if fingerprint.get(name) != here[name])
    if changed:
        return Verdict(
            "fail",
            tr("the fused kernels were built with another {what}", what=", ".join(changed)),
            expected=", ".join(f"{name} {here[name]}" for name in changed if name != "sources")
            or tr("the present sources"),
            found=", ".join(f"{name} {fingerprint.get(name)}" for name in changed if name != "sources")
            or tr("other sources"),
            why=why,
            fix=fix,
            stages=("pretrain",),
        )
    return Verdict("pass", tr("built here: {libraries}", libraries=", ".join(value["libraries"])))


def compare_fused_kernels(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """One build folder is shared: it must fit every node."""
    return each_alone(values, needs, fused_kernels)


CHECKS: tuple[Check, ...] = (
    Check("apex.so", tr_later("apex's extensions"), "kernels", apex, fix="setup.apex", stages="training"),
    Check("flash.so", tr_later("flash-attn's extension"), "kernels", flash, fix="setup.flash", stages="training"),
    Check(
        "megatron.import",
        tr_later("the Megatron-DeepSpeed checkout"),
        "kernels",
        megatron,
        fix="setup.megatron",
        stages="training",
    ),
    Check(
        "megatron.helpers",
        tr_later("Megatron's data helpers"),
        "kernels",
        helpers,
        fix="setup.helpers",
        stages="training",
    ),
    Check(
        "megatron.fused_kernels",
        tr_later("Megatron's fused kernels"),
        "kernels",
        fused_kernels,
        scope="fleet",
        compare=compare_fused_kernels,
        fix="megatron.fused_kernels",
        stages="training",
    ),
)
