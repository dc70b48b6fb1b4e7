"""The runs as Home lists them, read again and again: a run that has ended is read once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import WizardError
from core.language import tr
from core.runs.directory import RunDirectory
from core.runs.state import ENDED, Status, list_runs, read_status

LEARNING = ("finetune", "pretrain")
"""The stages with a loss, the last first."""


@dataclass(frozen=True)
class RunRow:
    """One run. Texts are as they were found: make them plain where they are shown."""

    run: RunDirectory
    state: str
    stage: str = ""
    share: float | None = None
    """Of the stage's work done, 0 to 1, where it is known and runs."""
    started: float | None = None
    loss: float | None = None
    """The last of fine-tuning, else of pretraining, whatever stage runs now."""
    trouble: str = ""
    """Why the run cannot be read."""


@dataclass
class RunListing:
    """The runs of a folder, the newest first."""

    runs_dir: Path
    _ended: dict[RunDirectory, tuple[object, RunRow]] = field(default_factory=dict)

    def read(self) -> list[RunRow]:
        """Every run as it is now; never raises for a run that is broken. Raises OSError for a folder that cannot be read."""
        with suppress(FileNotFoundError), os.scandir(self.runs_dir):
            pass
        return [self._row(run) for run in list_runs(self.runs_dir)]

    def _row(self, run: RunDirectory) -> RunRow:
        written = _written(run)
        kept = self._ended.get(run)
        if kept is not None and kept[0] == written:
            return kept[1]
        try:
            row = row_of(read_status(run))
        except Exception as error:  # whatever lies in that folder, the others are listed
            return RunRow(run, "unknown", trouble=_why(error))
        if row.state in ENDED and row.state != "lost" and written == _written(run):
            self._ended[run] = (written, row)
        return row


def _why(error: Exception) -> str:
    if isinstance(error, (WizardError, OSError)):
        return str(error)
    return tr("its state.json or plan.json is damaged ({error})", error=type(error).__name__)


def _written(run: RunDirectory) -> object:
    """Changes when the run's state is written anew, somebody holds or held its lock anew, or it is submitted anew."""
    try:
        status, lock = run.state.stat(), run.lock.stat()
        job = run.slurm.stat().st_mtime_ns if run.slurm.exists() else 0
    except OSError:
        return object()
    return (status.st_mtime_ns, status.st_ino, lock.st_mtime_ns, job)


def row_of(status: Status) -> RunRow:
    """A row from what `status --json` prints."""
    document = status.document
    stage_id = document["stage"] or ""
    stages: Mapping[str, Any] = document["stages"]
    metrics = stages.get(stage_id, {}).get("metrics", {})
    step, total = metrics.get("step"), metrics.get("total")
    share = step / total if status.state == "running" and _is_number(step) and _is_number(total) and total else None
    losses = [stages.get(learning, {}).get("metrics", {}).get("loss") for learning in LEARNING]
    started = document.get("started")
    return RunRow(
        run=status.run,
        state=status.state,
        stage=str(stage_id),
        share=share,
        started=started if _is_number(started) else None,
        loss=next((loss for loss in losses if _is_number(loss)), None),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
