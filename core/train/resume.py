"""Where an attempt starts: the newest checkpoint that verifies and belongs to this run, or step 0. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.errors import StageError
from core.files import write_atomically
from core.runs.directory import RunDirectory
from core.stages.base import StageContext
from core.train.checkpoint import Checkpoint, latest_verified, remove_leftovers, step_folders

ATTEMPT_FILE = "attempt"


def find_start(context: StageContext, facts: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint to resume from; None starts at step 0. Runs on rank 0.

    Checkpoints of other settings or other data are moved aside, all together and with a warning; so are, one by one,
    folders newer than the checkpoint that do not verify.

    Raises:
        StageError: there are checkpoints and none verifies, or the newest is of another number of processes or engine.
    """
    run = context.run
    remove_leftovers(run.checkpoints)
    checkpoint = latest_verified(run.checkpoints, context.warn)
    if checkpoint is None:
        if step_folders(run.checkpoints):
            raise StageError(
                f"no checkpoint in {run.checkpoints} verifies; starting again from step 0 would lose the run silently",
                f"restore one of them, or move {run.checkpoints} away to start from the beginning",
            )
        return None
    differing = [name for name in ("config", "data") if checkpoint.manifest[f"{name}_hash"] != facts[f"{name}_hash"]]
    if differing:
        aside = move_aside(run)
        context.warn(
            f"the checkpoints belong to another {' and other '.join(differing)}; they are now in {aside}, "
            "and training starts from step 0"
        )
        return None
    written = checkpoint.manifest
    if (written["world_size"], written["engine"]) != (facts["world_size"], facts["engine"]):
        raise StageError(
            f"{checkpoint.path} was written by {written['world_size']} process(es) with {written['engine']}; this is "
            f"{facts['world_size']} with {facts['engine']}, for which its optimizer state is cut up in another way",
            "resume on as many processes and with the same pretrain.zero; to start from the beginning, move "
            f"{run.checkpoints} away",
        )
    if checkpoint.manifest["code_hash"] != facts["code_hash"]:
        context.warn(f"{checkpoint.path} was written by other code than this run's; it is used all the same")
    for path in step_folders(run.checkpoints):
        if int(path.name[5:]) > checkpoint.step:
            damaged = free_name(path.with_name(f"{path.name}.damaged"))
            path.rename(damaged)
            context.warn(f"{path.name} does not verify and is now {damaged}")
    return checkpoint


def move_aside(run: RunDirectory) -> Path:
    """Rename the checkpoints folder to checkpoints.old-N and make an empty one."""
    aside = free_name(run.root / "checkpoints.old")
    run.checkpoints.rename(aside)
    run.checkpoints.mkdir(mode=0o700)
    return aside


def free_name(path: Path) -> Path:
    """`path`-N with the lowest N that is not taken."""
    number = 1
    while (candidate := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return candidate


def next_attempt(stage_folder: Path) -> int:
    """Number of this attempt at the stage, from 1; the count is kept in the stage's folder."""
    file, attempt = stage_folder / ATTEMPT_FILE, 1
    with suppress(FileNotFoundError, ValueError):
        attempt = int(file.read_text()) + 1
    write_atomically(file, f"{attempt}\n".encode())
    return attempt
