"""Putting a finished folder in its place, so that a reader finds a whole one or none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from core.files import sync


def begin(target: Path) -> Path:
    """An empty folder beside `target` to build its content in; what an earlier attempt left there is removed."""
    building = target.with_name(f".{target.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    return building


def put_in_place(building: Path, target: Path) -> None:
    """Sync the files of `building` and rename it to `target`; what was there before is removed afterwards."""
    for path in building.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync(building)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    building.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)
