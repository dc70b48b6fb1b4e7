"""Stages whose command is not ours: another program trains, and a driver here prepares it, reads its log and says when it is done.

What such a stage leaves is what our own leave: metrics.jsonl, events, a result.json at its true end. So whoever shows a run, watches
it or starts it again need not know who trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from core.runs.directory import RunDirectory
from core.runs.restart import newest_committed

Event = Callable[..., None]
"""`event(kind, **values)` appends to the run's events."""


class Driver(Protocol):
    """One attempt at one stage. The supervisor calls its methods in this order, all from one thread."""

    def prepare(self) -> Mapping[str, Any]:
        """Make everything ready that the command needs, and return the stage with its argv filled in.

        What only a launcher knows (core.stages.command: NODE_RANK, MASTER_ADDR, MASTER_PORT) stays open where nodes are involved.

        Raises:
            WizardError: it cannot start like this; nothing has been started.
        """

    def follow(self) -> None:
        """Take what the log says since the last call, several times a second while the stage runs."""

    def finish(self, code: int) -> str:
        """Take the rest of the log; write result.json if the stage has reached its end. `code` is how its process ended.

        Returns in words why it has not, where that is known better than from the last lines of the log; else nothing.
        """


class NoDriver:
    """Our own stages do all this themselves."""

    def __init__(self, stage: Mapping[str, Any]) -> None:
        self._stage = stage

    def prepare(self) -> Mapping[str, Any]:
        return self._stage

    def follow(self) -> None:
        pass

    def finish(self, code: int) -> str:
        return ""


def driver_of(run: RunDirectory, stage: Mapping[str, Any], attempt: int, event: Event) -> Driver:
    """The driver that the stage's entry of plan.json names."""
    name = stage.get("driver", "")
    if name == "megatron":
        from core.megatron.drive import MegatronDriver

        return MegatronDriver(run, stage, attempt, event)
    if name == "llm-jp-sft":
        from core.llm_jp_sft.drive import LlmJpSftDriver

        return LlmJpSftDriver(run, stage, attempt, event)
    return NoDriver(stage)


def checkpoint_folder(run: RunDirectory, stage: Mapping[str, Any]) -> Path:
    """Where a stage leaves its checkpoints."""
    named = stage["outputs"].get("checkpoints") if stage.get("driver") else None
    return Path(named) if named else run.checkpoints_of(stage["id"])


def newest_checkpoint(run: RunDirectory, stage: Mapping[str, Any]) -> int | None:
    """The step of the newest checkpoint that a stage could go on from."""
    folder = checkpoint_folder(run, stage)
    if stage.get("driver") == "megatron":
        from core.megatron.checkpoint_files import layout_of, newest_complete

        return newest_complete(folder, layout_of(stage["argv"], int(stage["derived"]["processes"])))
    return newest_committed(folder)
