"""What the plan must know of this machine, gathered once at the edge, so that planning itself is pure."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from core.errors import StageError

if TYPE_CHECKING:
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
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes of the preset's input files; a file that is missing is absent."""


def gather_facts(runs_dir: Path, python: str | None, files: list[str], gpus: tuple[Gpu, ...] | None = None) -> Facts:
    """Ask the machine. Never raises for a missing GPU, driver or file; StageError for a driver that does not answer."""
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


def facts_for(preset: Preset, runs_dir: Path) -> Facts:
    """What the plan of this preset needs to know of the machine; `runs_dir` is absolute."""
    files = [*preset.corpus.files, *preset.tokenizer.files, *preset.finetune.files]
    return gather_facts(runs_dir, preset.cluster.python, files)


def find_gpus_in_time(seconds: float = GPU_TIMEOUT_S) -> tuple[Gpu, ...]:
    """`find_gpus`; a stuck driver holds whoever asks it, for ever.

    Raises:
        StageError: the driver did not answer in time. No GPUs would be another answer, and plan for a CPU.
    """
    found: list[tuple[Gpu, ...]] = []
    asking = threading.Thread(target=lambda: found.append(find_gpus()), daemon=True)
    asking.start()
    asking.join(seconds)
    if not found:
        raise StageError(
            f"the NVIDIA driver did not answer within {seconds:.0f} s", "llm-wizard doctor --only gpu,cuda"
        )
    return found[0]


def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs that a child process would see: NVML's list, narrowed by CUDA_VISIBLE_DEVICES; empty without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        gpus = [Gpu(str(pynvml.nvmlDeviceGetName(h)), int(pynvml.nvmlDeviceGetMemoryInfo(h).total)) for h in handles]
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(gpus)
    # UUIDs and MIG names are counted, not resolved: the plan needs how many and how large.
    wanted = [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    return tuple(gpus[int(w)] if w.isdigit() and int(w) < len(gpus) else gpus[0] for w in wanted if gpus)
