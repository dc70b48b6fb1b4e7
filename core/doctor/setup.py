"""The original pipeline's Step 0 as fixes in order: what its README types by hand, step by step, each known by what it leaves.

Sources: train/README-train_gcp_honban_multi_node_multi_gpu.md of matsuolab/ucllm_nedo_prod, Step 0-1 to 0-7. What differs does so for
a reason:
- Miniforge in place of Miniconda: the same conda, from its project's own releases, without licence terms for organisations.
- The CUDA toolkit comes from NVIDIA's label alone and with its parts pinned. The README's `LABEL::cuda-toolkit` names one package; its
  parts are asked for as `>=11.8`, and today's conda brings nvcc 12 (ContinuumIO/anaconda-issues#13398, conda-forge/miniforge#825).
- git and make come with the compiler, for a machine that has none.
- Exact versions where requirements.txt only has lower bounds (core/doctor/profiles.py); mkl 2024.0 and setuptools 69.5.1, because
  what is newer breaks torch 2.2 (pytorch/pytorch#123097; pkg_resources.packaging).
- CUDA_HOME is the environment's for whatever compiles: another one that the shell exports would be taken before it.
- DeepSpeed's async_io is left out: with DS_BUILD_OPS=1 its set-up stops where libaio is not installed, and no preset uses it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.doctor.fix import Command, Fix, MoveAside, WriteFile
from core.doctor.needs import Needs
from core.doctor.profiles import ORIGINAL, satisfies, version_of
from core.language import tr_later

MINIFORGE = "https://github.com/conda-forge/miniforge/releases/latest/download/Miniforge3-Linux-x86_64.sh"
REPOSITORIES = {
    "Megatron-DeepSpeed": "https://github.com/matsuolab/Megatron-DeepSpeed.git",
    "apex": "https://github.com/NVIDIA/apex.git",
    "llm-jp-sft": "https://github.com/matsuolab/llm-jp-sft.git",
}
NEWEST_GCC = {"11.8": 11, "12.1": 12, "12.4": 13, "12.6": 13, "12.8": 14, "13.0": 15}
"""The newest GCC that an nvcc takes: NVIDIA's installation guides, table "Host Compiler Support Policy"."""
TOOLKIT = (
    "cuda-toolkit=11.8.0",
    "cuda-compiler=11.8.0",
    "cuda-nvcc=11.8",
    "cuda-cudart=11.8",
    "cuda-cudart-dev=11.8",
    "cuda-nvrtc=11.8",
    "cuda-libraries=11.8.0",
    "cuda-libraries-dev=11.8.0",
    "libcublas-dev=11.11",
    "libcusparse-dev=11.7",
    "libcusolver-dev=11.4",
)
"""The toolkit and those of its parts that a build reads, at the versions of CUDA 11.8's release notes."""
BY_OTHER_STEPS = ("torch", "torchvision", "torchaudio", "pip", "setuptools", "deepspeed", "apex", "flash-attn")

Values = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class SetupStep:
    """One step. `done` decides by what the probe saw (check id to value); `build` gives its commands."""

    id: str
    title: str
    done: Callable[[Values, Needs], bool]
    build: Callable[[Needs], Fix]


def conda_root(needs: Needs) -> str:
    """The folder of conda: the one that holds envs/NAME where the environment is called so."""
    prefix = Path(needs.prefix)
    return str(prefix.parent.parent if prefix.parent.name == "envs" else prefix.parent / "miniconda3")


def conda(needs: Needs, *words: str) -> Command:
    return Command((f"{conda_root(needs)}/bin/conda", *words))


def inside(needs: Needs, *words: str, cwd: str = "", creates: str = "", **env: str) -> Command:
    """A command in the activated environment: its PATH, LD_LIBRARY_PATH and compilers, as `conda activate` sets them.

    Where the profile's environment is none of conda's, it is started as it is; `python` is that environment's.
    """
    if not needs.profile.conda:
        return Command(
            (needs.python if words[0] == "python" else words[0], *words[1:]), env=env, cwd=cwd, creates=creates
        )
    run = (f"{conda_root(needs)}/bin/conda", "run", "--no-capture-output", "--prefix", needs.prefix, *words)
    return Command(run, env=env, cwd=cwd, creates=creates)


def pip(needs: Needs, *words: str, cwd: str = "", **env: str) -> Command:
    return inside(needs, "python", "-m", "pip", "install", *words, cwd=cwd, **env)


def compiled(needs: Needs, *words: str, cwd: str = "", **env: str) -> Command:
    """pip install of what compiles for CUDA here."""
    options = ("--no-build-isolation", "--no-cache-dir")
    home = {"CUDA_HOME": needs.prefix} if needs.profile.conda else {}
    return pip(needs, *options, *words, cwd=cwd, **{**home, **env})


def checkout(needs: Needs, name: str) -> tuple[Command, ...]:
    places = {"Megatron-DeepSpeed": needs.megatron, "llm-jp-sft": needs.llm_jp_sft}
    folder, tag = places.get(name, f"{needs.root}/{name}"), ORIGINAL.tags[name]
    return (
        inside(needs, "git", "clone", REPOSITORIES[name], folder, creates=f"{folder}/.git"),
        inside(needs, "git", "-C", folder, "fetch", "--tags", "origin", creates=f"{folder}/.git/refs/tags/{tag}"),
        inside(needs, "git", "-C", folder, "checkout", f"refs/tags/{tag}"),
    )


def install_conda(needs: Needs) -> Fix:
    root = conda_root(needs)
    script = f"{root}-installer.sh"
    return Fix(
        "setup.conda",
        "safe",
        (
            Command(("curl", "-fL", "-o", script, MINIFORGE), creates=f"{root}/bin/conda"),
            Command(("bash", script, "-b", "-u", "-p", root), creates=f"{root}/bin/conda"),
        ),
    )


def create_environment(needs: Needs) -> Fix:
    create = (f"{conda_root(needs)}/bin/conda", "create", "--prefix", needs.prefix, "python=3.9", "pip", "-y")
    return Fix("setup.env", "safe", (Command(create, creates=f"{needs.prefix}/bin/python"),))


def write_hooks(needs: Needs) -> Fix:
    """activate.d and deactivate.d; an empty LD_LIBRARY_PATH must not leave an empty entry, which is the working folder."""
    folder = f"{needs.prefix}/etc/conda"
    activate = (
        "export ORIGINAL_LD_LIBRARY_PATH=$LD_LIBRARY_PATH\n"
        f'export LD_LIBRARY_PATH="{needs.prefix}/lib${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"\n'
    )
    deactivate = "export LD_LIBRARY_PATH=$ORIGINAL_LD_LIBRARY_PATH\nunset ORIGINAL_LD_LIBRARY_PATH\n"
    return Fix(
        "setup.hooks",
        "safe",
        (
            WriteFile(f"{folder}/activate.d/edit_environment_variable.sh", activate),
            WriteFile(f"{folder}/deactivate.d/rollback_environment_variable.sh", deactivate),
        ),
    )


def install_toolkit(needs: Needs) -> Fix:
    label = ("--override-channels", "-c", "nvidia/label/cuda-11.8.0")
    words = ("install", "--prefix", needs.prefix, *label, *TOOLKIT, "-y")
    return Fix("setup.cuda", "rebuild", (conda(needs, *words),))


def install_gcc(needs: Needs) -> Fix:
    newest = NEWEST_GCC[needs.profile.cuda or "11.8"]
    packages = (f"gxx_linux-64={newest}", "make", "git")
    words = ("install", "--prefix", needs.prefix, "-c", "conda-forge", *packages, "-y")
    return Fix("setup.gcc", "safe", (conda(needs, *words),))


def install_torch(needs: Needs) -> Fix:
    if not needs.profile.conda:
        requires = needs.profile.requires
        wheels = [name + requires[name] for name in ("torch", "torchvision", "torchaudio")]
        index = f"https://download.pytorch.org/whl/cu{(needs.profile.cuda or '').replace('.', '')}"
        return Fix("setup.torch", "rebuild", (pip(needs, *wheels, "--index-url", index),))
    packages = ("pytorch==2.2.0", "torchvision==0.17.0", "torchaudio==2.2.0", "pytorch-cuda=11.8", "mkl=2024.0")
    words = ("install", "--prefix", needs.prefix, *packages, "-c", "pytorch", "-c", "nvidia", "-y")
    return Fix("setup.torch", "rebuild", (conda(needs, *words),))


def install_pip(needs: Needs) -> Fix:
    return Fix("setup.pip", "safe", (pip(needs, "pip==24.0", f"setuptools{ORIGINAL.requires['setuptools']}", "wheel"),))


def install_requirements(needs: Needs) -> Fix:
    if not needs.original:
        wanted = [name + needs.profile.requires.get(name, "") for name in needs.packages if name != "torch"]
        return Fix(
            "setup.requirements", "safe", (pip(needs, "torch" + needs.profile.requires["torch"]), pip(needs, *wanted))
        )
    pinned = [name + want for name, want in ORIGINAL.requires.items() if name not in BY_OTHER_STEPS]
    return Fix(
        "setup.requirements", "rebuild", (pip(needs, *pinned, "packaging", "regex", "six", "tensorboard", "chardet"),)
    )


def install_deepspeed(needs: Needs) -> Fix:
    left_out = ("EVOFORMER_ATTN", "SPARSE_ATTN", "AIO")
    build = {"DS_BUILD_OPS": "1", **{f"DS_BUILD_{op}": "0" for op in left_out}}
    version = f"deepspeed{ORIGINAL.requires['deepspeed']}"
    return Fix(
        "setup.deepspeed",
        "rebuild",
        (pip(needs, "deepspeed-kernels"), compiled(needs, version, **build)),
    )


def install_megatron(needs: Needs) -> Fix:
    steps = checkout(needs, "Megatron-DeepSpeed")
    if needs.original:  # as the README does; a run of ours finds the checkout by PYTHONPATH
        steps = (*steps, inside(needs, "python", "setup.py", "install", cwd=needs.megatron))
    return Fix("setup.megatron", "rebuild", steps)


def build_helpers(needs: Needs) -> Fix:
    """The suffix comes from the environment's own Python, so that the Makefile's python3-config is not asked."""
    suffix = "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"
    words: tuple[str, ...]
    if needs.profile.conda:
        words = ("sh", "-c", f'make LIBEXT=$(python -c "{suffix}")')
    else:  # the Makefile's python3 is whichever comes first on PATH: pybind11 is asked of this one
        script = f'make -B LIBEXT=$("$0" -c "{suffix}") CPPFLAGS="$("$0" -m pybind11 --includes)"'
        words = ("sh", "-c", script, needs.python)
    make = inside(needs, *words, cwd=f"{needs.megatron}/megatron/data")
    return Fix("setup.helpers", "rebuild", (make,))


def build_kernels(needs: Needs) -> Fix:
    """Megatron's fused kernels, built on this machine before any rank asks for them, with a record of what they were built with.

    Its own `load` is called outside of the package `megatron`, whose imports need a GPU and apex.
    """
    build = "import argparse, fused_kernels as k; k.load(argparse.Namespace(masked_softmax_fusion=True, rank=0))"
    remember = json.dumps({"observations": [], "remember_kernels": needs.megatron})
    return Fix(
        "megatron.fused_kernels",
        "rebuild",
        (
            MoveAside(f"{needs.megatron}/megatron/fused_kernels/build"),
            inside(
                needs,
                "python",
                "-c",
                build,
                cwd=needs.megatron,
                PYTHONPATH=f"{needs.megatron}/megatron",
                CUDA_HOME=needs.prefix,
            ),
            inside(needs, "python", str(Path(__file__).with_name("probe.py")), remember),
        ),
    )


def install_apex(needs: Needs) -> Fix:
    folder = f"{needs.root}/apex"
    options = ("--config-settings", "--build-option=--cpp_ext", "--config-settings", "--build-option=--cuda_ext")
    words = ("-v", "--disable-pip-version-check", *options, "./")
    return Fix("setup.apex", "rebuild", (*checkout(needs, "apex"), compiled(needs, *words, cwd=folder)))


def install_flash(needs: Needs) -> Fix:
    return Fix(
        "setup.flash",
        "rebuild",
        (
            pip(needs, "--force-reinstall", "--no-deps", f"ninja{ORIGINAL.requires['ninja']}"),
            compiled(needs, f"flash-attn{ORIGINAL.requires['flash-attn']}"),
        ),
    )


def install_sft(needs: Needs) -> Fix:
    return Fix("setup.llm-jp-sft", "safe", checkout(needs, "llm-jp-sft"))


def _has(*names: str) -> Callable[[Values, Needs], bool]:
    def done(values: Values, needs: Needs) -> bool:
        versions = values["python.pins"]["versions"]
        requires = needs.profile.requires
        return all(versions[name] and satisfies(versions[name], requires[name]) for name in names)

    return done


def _requirements(values: Values, needs: Needs) -> bool:
    if needs.original:
        return _has(*(name for name in ORIGINAL.requires if name not in BY_OTHER_STEPS))(values, needs)
    versions, requires = values["python.pins"]["versions"], needs.profile.requires
    return all(versions[name] and satisfies(versions[name], requires.get(name, ">=0")) for name in needs.packages)


def _python(values: Values, needs: Needs) -> bool:
    return version_of(values["python.env"]["version"])[:2] == ORIGINAL.python


def _hooks(values: Values, needs: Needs) -> bool:
    return "edit_environment_variable.sh" in values["python.ld_library_path"]["hooks"]


def _toolkit(values: Values, needs: Needs) -> bool:
    return any(nvcc["version"] == ORIGINAL.cuda for nvcc in values["cuda.nvcc_vs_torch"]["nvcc"])


def _gcc(values: Values, needs: Needs) -> bool:
    compiler = gcc_major(values["build.cxx"]["c++"])
    path = f"{needs.prefix}/bin:{os.environ.get('PATH', os.defpath)}"
    tools = all(shutil.which(name, path=path) for name in ("git", "make"))
    return tools and compiler is not None and compiler <= NEWEST_GCC[ORIGINAL.cuda or "11.8"]


def _megatron(values: Values, needs: Needs) -> bool:
    value = values["megatron.import"]
    return bool(value["present"]) and value["tag"] == ORIGINAL.tags["Megatron-DeepSpeed"]


def _helpers(values: Values, needs: Needs) -> bool:
    value = values["megatron.helpers"]
    return bool(value["built"]) and bool(value["newer"]) and not value["error"]


def _apex(values: Values, needs: Needs) -> bool:
    return all(module["fitting"] for module in values["apex.so"]["modules"].values())


def _flash(values: Values, needs: Needs) -> bool:
    return _has("flash-attn")(values, needs) and bool(values["flash.so"]["modules"]["flash_attn_2_cuda"]["fitting"])


def _sft(values: Values, needs: Needs) -> bool:
    return Path(needs.llm_jp_sft, "train.py").is_file()


def gcc_major(compiler: Mapping[str, Any] | None) -> int | None:
    """The major version of a GCC by the first line of its --version; None for another compiler, or none."""
    if not compiler:
        return None
    words = re.sub(r"\([^)]*\)", " ", str(compiler["version"]))  # the packager's own version stands in parentheses
    match = re.search(r"\b(\d+)\.\d+(\.\d+)?", words)
    return int(match[1]) if match and "clang" not in words else None


STEPS: tuple[SetupStep, ...] = (
    SetupStep("setup.conda", tr_later("install conda"), _python, install_conda),
    SetupStep("setup.env", tr_later("create the environment with Python 3.9"), _python, create_environment),
    SetupStep("setup.hooks", tr_later("set LD_LIBRARY_PATH when the environment is activated"), _hooks, write_hooks),
    SetupStep("setup.cuda", tr_later("install the CUDA toolkit 11.8"), _toolkit, install_toolkit),
    SetupStep("setup.gcc", tr_later("install a GCC that nvcc 11.8 takes, make and git"), _gcc, install_gcc),
    SetupStep(
        "setup.torch", tr_later("install torch 2.2.0"), _has("torch", "torchvision", "torchaudio"), install_torch
    ),
    SetupStep("setup.pip", tr_later("install pip 24.0"), _has("pip", "setuptools"), install_pip),
    SetupStep(
        "setup.requirements",
        tr_later("install the Python packages at their pins"),
        _requirements,
        install_requirements,
    ),
    SetupStep("setup.deepspeed", tr_later("build DeepSpeed 0.12.4 with its ops"), _has("deepspeed"), install_deepspeed),
    SetupStep("setup.megatron", tr_later("install Megatron-DeepSpeed at its tag"), _megatron, install_megatron),
    SetupStep("setup.helpers", tr_later("build Megatron's data helpers"), _helpers, build_helpers),
    SetupStep("setup.apex", tr_later("build apex 23.08 with its extensions"), _apex, install_apex),
    SetupStep("setup.flash", tr_later("build flash-attn 2.5.0"), _flash, install_flash),
    SetupStep("setup.llm-jp-sft", tr_later("get llm-jp-sft at its tag"), _sft, install_sft),
)
BY_ID = {step.id: step for step in STEPS}
OF_CONDA = ("setup.conda", "setup.env", "setup.hooks", "setup.cuda", "setup.gcc")
OF_MEGATRON_MODERN = ("setup.requirements", "setup.megatron", "setup.helpers")


def steps_of(needs: Needs) -> tuple[SetupStep, ...]:
    """The steps of the profile's set-up; none for `modern`, which is this tool's own installation."""
    if needs.original:
        return STEPS if needs.profile.conda else tuple(step for step in STEPS if step.id not in OF_CONDA)
    return tuple(step for step in STEPS if step.id in OF_MEGATRON_MODERN) if needs.megatron else ()


def missing_steps(values: Values, needs: Needs) -> list[SetupStep]:
    """The steps that are not done, in order; what could not be observed is not done."""

    def undone(step: SetupStep) -> bool:
        try:
            return not step.done(values, needs)
        except (KeyError, TypeError, ValueError):
            return True

    return [step for step in steps_of(needs) if undone(step)]
