"""What the plan must know of this machine, gathered once at the edge, so that planning itself is pure."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil


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


def gather_facts(runs_dir: Path, python: str | None, files: list[str]) -> Facts:
    """Ask the machine. Never raises for a missing GPU, driver or file."""
    existing = next(folder for folder in (runs_dir, *runs_dir.parents) if folder.exists())
    return Facts(
        python=python or sys.executable,
        host=os.uname().nodename,
        cores=len(os.sched_getaffinity(0)),
        memory=psutil.virtual_memory().total,
        disk_free=shutil.disk_usage(existing).free,
        path=os.environ.get("PATH", os.defpath),
        gpus=find_gpus(),
        sizes={name: Path(name).stat().st_size for name in files if Path(name).is_file()},
    )


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
