"""What the plan must know of this machine, gathered once at the edge, so that planning itself is pure."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from core.errors import StageError

if TYPE_CHECKING:
    from core.cluster.section import ClusterSection
    from core.preset import Preset

GPU_TIMEOUT_S = 30.0
"""Without persistence mode the driver of eight GPUs takes ten seconds to wake."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as NVML names it; memory in bytes."""

    name: str
    memory: int


@dataclass(frozen=True)
class Facts:
    """The machine: `python` is the training interpreter, `disk_free` is of the runs folder, sizes are bytes."""

    python: str
    host: str
    cores: int
    memory: int
    disk_free: int
    path: str = ""
    """The PATH that stages inherit, behind the folder of the training Python."""
    gpus: tuple[Gpu, ...] = ()
    nodes: tuple[str, ...] = ()
    """The nodes that train, by name, in the order of their ranks; empty for this machine alone. `cores`, `memory` and `gpus` are
    then those of the weakest node."""
    launcher: str = "local"
    """local, ssh, slurm or deepspeed."""
    slots: int = 0
    """Processes of each node as a hostfile states them; 0 where nothing states them."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes of the preset's input files; a file that is missing is absent."""

    def memory_for(self, device: str, processes: int) -> int | None:
        """Bytes for one of a node's processes: the smallest GPU's, or its share of main memory; None for GPUs that nobody has seen yet."""
        if device == "cpu":
            return self.memory // processes
        return min((gpu.memory for gpu in self.gpus), default=0) or None


def gather_facts(runs_dir: Path, python: str | None, files: list[str], gpus: tuple[Gpu, ...] | None = None) -> Facts:
    """Ask the machine. Never raises for a missing GPU, driver or file; StageError for a driver or a GPU that does not answer."""
    existing = next(folder for folder in (runs_dir, *runs_dir.parents) if folder.exists())
    return Facts(
        python=python or sys.executable,
        host=os.uname().nodename,
        cores=len(os.sched_getaffinity(0)),
        memory=psutil.virtual_memory().total,
        disk_free=shutil.disk_usage(existing).free,
        path=os.environ.get("PATH", os.defpath),
        gpus=find_gpus_in_time() if gpus is None else gpus,
        sizes={name: Path(name).stat().st_size for name in files if Path(name).is_file()},
    )


def facts_for(preset: Preset, runs_dir: Path, gpus: tuple[Gpu, ...] | None = None) -> Facts:
    """What the plan of this preset needs to know of the machine; `runs_dir` is absolute, `gpus` those found already."""
    from core.megatron.data import files_to_look_at

    files = [*preset.corpus.files, *preset.tokenizer.files, *preset.finetune.files, *files_to_look_at(preset.megatron)]
    if not may_have_nodes(preset.cluster, os.environ):
        return gather_facts(runs_dir, preset.cluster.python, files, gpus)
    from core.cluster.planning import with_nodes

    # The head of a cluster often has no GPU, or a driver without one.
    return with_nodes(gather_facts(runs_dir, preset.cluster.python, files, gpus or ()), preset, runs_dir)


def may_have_nodes(cluster: ClusterSection, environ: Mapping[str, str]) -> bool:
    """Whether training may be meant for other machines than this one."""
    if cluster.launcher == "local":
        return False
    return bool(cluster.nodes or cluster.hostfile or cluster.launcher != "auto" or environ.get("SLURM_JOB_NODELIST"))


def find_gpus_in_time(seconds: float = GPU_TIMEOUT_S) -> tuple[Gpu, ...]:
    """`find_gpus`; a stuck driver holds whoever asks it, for ever.

    Raises:
        StageError: the driver did not answer in time, or as `find_gpus` says. No GPUs would be another answer, and plan for a CPU.
    """
    found: list[tuple[Gpu, ...] | StageError] = []

    def ask() -> None:
        try:
            found.append(find_gpus())
        except StageError as error:
            found.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    if not found:
        raise StageError(
            f"the NVIDIA driver did not answer within {seconds:.0f} s", "llm-wizard doctor --only gpu,cuda"
        )
    if isinstance(found[0], StageError):
        raise found[0]
    return found[0]


def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs that a child process would see: NVML's list, narrowed by CUDA_VISIBLE_DEVICES; empty without a driver.

    Raises:
        StageError: the driver is there and does not work, or one of these GPUs does not answer.
    """
    import pynvml

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = None if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    if wanted is not None and all(name == "-1" for name in wanted):
        return ()
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return ()
    except pynvml.NVMLError as error:
        raise StageError(
            f"the NVIDIA driver does not work: {error}",
            "llm-wizard doctor --only cuda.driver; `CUDA_VISIBLE_DEVICES= llm-wizard ...` plans for the CPU",
        ) from None
    try:
        gpus = [_look_at(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()
    healthy = [gpu for gpu in gpus if isinstance(gpu, Gpu)]
    if wanted is None:
        chosen: list[Gpu | str] = list(gpus)
    else:
        # UUIDs and MIG names are counted, not resolved: the plan needs how many and how large.
        chosen = [
            gpus[int(name)] if name.isdigit() and int(name) < len(gpus) else healthy[0]
            for name in wanted
            if name != "-1" and healthy
        ]
    if lost := [gpu for gpu in chosen if isinstance(gpu, str)]:
        others = ",".join(str(index) for index, gpu in enumerate(gpus) if isinstance(gpu, Gpu))
        raise StageError(
            "; ".join(lost),
            f"llm-wizard doctor --only gpu says more; `CUDA_VISIBLE_DEVICES={others} llm-wizard ...` goes without it",
        )
    return tuple(gpu for gpu in chosen if isinstance(gpu, Gpu))


def _look_at(index: int) -> Gpu | str:
    """The GPU, or in words that it does not answer."""
    import pynvml

    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return Gpu(str(pynvml.nvmlDeviceGetName(handle)), int(pynvml.nvmlDeviceGetMemoryInfo(handle).total))
    except pynvml.NVMLError as error:
        return f"GPU {index} does not answer: {error}"
