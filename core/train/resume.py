"""Where an attempt starts: the newest checkpoint that verifies and belongs to this run, or step 0. Nothing here imports torch.

The number of processes, the ZeRO stage and the engine may be others than those that wrote the checkpoint:

- The position in the data is one number, the samples consumed (core/train/order.py), and a step takes the next
  `global_batch` of them whatever the number of processes. So what is due comes next, exactly once, as long as the global
  batch stays the same. Where it can't (micro_batch x processes does not divide it), the resume is refused, and the
  checkpoints stay where they are.
- The optimizer's moments are dealt out anew to the ranks there are (core/train/saved_state.py).
- Ranks that did not exist draw their dropout from (seed, rank, step). The others go on with their own random state.

What is left are sums taken in another order: tests/train/test_elastic.py says how much that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.errors import InputError, StageError
from core.files import free_name, write_atomically
from core.runs.directory import RunDirectory
from core.stages.base import StageContext
from core.stages.pretrain import batch_and_rates
from core.train.checkpoint import Checkpoint, latest_verified, remove_leftovers, step_folders
from core.train.lineage import config_hash_with_batch

ATTEMPT_FILE = "attempt"


def find_start(context: StageContext, facts: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint to resume from; None starts at step 0. Runs on rank 0.

    Checkpoints of other settings or other data are moved aside, all together and with a warning; so are, one by one,
    folders newer than the checkpoint that do not verify.

    Raises:
        StageError: there are checkpoints and none verifies.
        InputError: the newest is of another global batch, and everything else in the settings is the same.
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
    if checkpoint.manifest["config_hash"] != facts["config_hash"]:
        refuse_other_batch(context, checkpoint)
    differing = [name for name in ("config", "data") if checkpoint.manifest[f"{name}_hash"] != facts[f"{name}_hash"]]
    if differing:
        aside = move_aside(run)
        context.warn(
            f"the checkpoints belong to another {' and other '.join(differing)}; they are now in {aside}, "
            "and training starts from step 0"
        )
        return None
    if checkpoint.manifest["code_hash"] != facts["code_hash"]:
        context.warn(f"{checkpoint.path} was written by other code than this run's; it is used all the same")
    for path in step_folders(run.checkpoints):
        if int(path.name[5:]) > checkpoint.step:
            damaged = free_name(path.with_name(f"{path.name}.damaged"))
            path.rename(damaged)
            context.warn(f"{path.name} does not verify and is now {damaged}")
    return checkpoint


def refuse_other_batch(context: StageContext, checkpoint: Checkpoint) -> None:
    """Raises InputError where the checkpoint belongs to these settings in everything but the sequences in a step.

    That is what another number of processes leads to where micro_batch x processes does not divide the global batch: it is
    rounded up, and the order of the samples, the schedule and the number of steps would all be other ones.
    """
    batch, derived = checkpoint.manifest["data_position"] // checkpoint.step, context.plan["derived"]
    same = config_hash_with_batch(context.preset, derived, batch) == checkpoint.manifest["config_hash"]
    if batch == derived["global_batch"] or not same:
        return
    raise InputError(
        f"{checkpoint.path} was trained with {batch} sequences in a step; {derived['processes']} process(es) of "
        f"micro_batch {derived['micro_batch']} make {derived['global_batch']}. The checkpoints stay as they are",
        f"{what_makes(batch, derived['processes'], derived['micro_batch'], batch_and_rates(context.preset).global_batch)}; to "
        f"start from the beginning with another batch, move {context.run.checkpoints} away",
    )


def what_makes(batch: int, processes: int, micro_batch: int, asked: int) -> str:
    """What to type to get `batch` sequences in a step; `asked` is the preset's pretrain.global_batch."""
    batch_too = f" --set pretrain.global_batch={batch}" if asked != batch else ""
    ways = []
    if batch % processes == 0:
        each = batch // processes
        # The largest that is no larger than before is the fastest that surely fits the memory.
        micro = max(size for size in divisors(each) if size <= micro_batch)
        change = f" --set pretrain.micro_batch={micro}" if micro != micro_batch else ""
        ways.append(f"resume with{change}{batch_too}")
    if batch % micro_batch == 0 and (numbers := nearest(divisors(batch // micro_batch), processes)):
        ways.append(f"resume on {numbers} process(es){batch_too}")
    if not ways:
        numbers = nearest(divisors(batch), processes)
        ways.append(f"resume on {numbers} process(es) with --set pretrain.micro_batch=1{batch_too}")
    return ", or ".join(ways)


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def nearest(numbers: list[int], wanted: int) -> str:
    """The up to six numbers nearest to `wanted`, but not itself, in words; empty where there is none."""
    found = sorted((number for number in numbers if number != wanted), key=lambda number: abs(number - wanted))[:6]
    words = [str(number) for number in sorted(found)]
    return " or ".join([", ".join(words[:-1]), *words[-1:]] if len(words) > 1 else words)


def move_aside(run: RunDirectory) -> Path:
    """Rename the checkpoints folder to checkpoints.old-N and make an empty one."""
    aside = free_name(run.root / "checkpoints.old")
    run.checkpoints.rename(aside)
    run.checkpoints.mkdir(mode=0o700)
    return aside


def next_attempt(stage_folder: Path) -> int:
    """Number of this attempt at the stage, from 1; the count is kept in the stage's folder."""
    file, attempt = stage_folder / ATTEMPT_FILE, 1
    with suppress(FileNotFoundError, ValueError):
        attempt = int(file.read_text()) + 1
    write_atomically(file, f"{attempt}\n".encode())
    return attempt
