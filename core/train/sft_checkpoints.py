"""The trainer's checkpoints, committed by our protocol; a stop on request that saves one; finding the one to go on from.

The trainer writes checkpoint-N in place. Once all ranks have written, its files are synced, a manifest with the SHA-256 of
each is added, and the folder is renamed to step-N: a checkpoint in the sense of core.train.checkpoint. Nothing else is
ever resumed from, so what the trainer pickles is loaded only if it is what this run wrote.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from core.files import read_json, sync, write_atomically
from core.stages.base import StageContext
from core.train import checkpoint
from core.train.ranks import Ranks

KEPT = 2
WORKING = "checkpoint-"


class Checkpoints(TrainerCallback):  # type: ignore[misc] # mypy does not follow transformers
    """Commits what the trainer saved, and stops at the next step after SIGTERM, all ranks at the same one."""

    def __init__(
        self,
        context: StageContext,
        ranks: Ranks,
        folder: Path,
        total: int,
        fields: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._context = context
        self._ranks = ranks
        self._folder = folder
        self._total = total
        self._fields = fields
        self.stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= self._total:
            control.should_save = False  # the result itself is saved next
        elif self._ranks.any(self._context.stop_requested)[0]:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._ranks.barrier()
        if self._ranks.is_main:
            commit(self._folder, state.global_step, self._fields())
            checkpoint.remove_old(self._folder, KEPT)
            self._context.event("checkpoint-saved", step=state.global_step)
            print(f"checkpoint of step {state.global_step} saved", flush=True)
        self._ranks.barrier()


def commit(folder: Path, step: int, fields: Mapping[str, Any]) -> None:
    """Turn the trainer's checkpoint-N in `folder` into step-N."""
    working, final = folder / f"{WORKING}{step}", folder / f"step-{step}"
    for file in checkpoint.files_of(working):
        sync(file)
    checkpoint.write_manifest(working, {"step": step, **fields})
    for inner in {file.parent for file in checkpoint.files_of(working)} | {working}:
        sync(inner)
    working.rename(final)
    sync(folder)
    write_atomically(folder / checkpoint.POINTER, f"{final.name}\n".encode())


def find(context: StageContext, ranks: Ranks, folder: Path, lineage: str) -> tuple[Path | None, dict[str, Any]]:
    """The newest checkpoint that verifies and belongs to `lineage`, and its manifest; the same answer on every rank."""
    path = ranks.decided_by_main(lambda: _clear_to_newest(context, folder, lineage))
    return path, dict(read_json(path / checkpoint.MANIFEST)) if path else {}


def _clear_to_newest(context: StageContext, folder: Path, lineage: str) -> Path | None:
    """`find` on rank 0, which removes what is no checkpoint: half-written ones, and those newer than the one taken."""
    folder.mkdir(parents=True, exist_ok=True)
    found = checkpoint.latest_verified(folder, context.warn)
    if found and found.manifest.get("lineage") != lineage:
        context.warn(f"{found.path.name} was made with other settings, conversations or weights; starting anew")
        found = None
    for path in folder.iterdir():
        if path.is_dir() and (path.name.startswith(WORKING) or not found or _number(path) > found.step):
            shutil.rmtree(path)
    if not found:
        (folder / checkpoint.POINTER).unlink(missing_ok=True)
        return None
    return found.path


def _number(path: Path) -> int:
    match = checkpoint.STEP_FOLDER.match(path.name)
    return int(match[1]) if match else -1
