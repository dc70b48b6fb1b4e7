"""What to diagnose: a run or a log, how the screen calls it, and what the diagnosis is told of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from core.language import tr
from core.runs.directory import RunDirectory
from core.runs.state import Status, read_status
from core.text.plain import one_line, plain
from tui.messages import TargetFound
from tui.run_listing import RunListing

FAILED = ("failed", "lost")
SILENT_S = 120.0
"""A run that goes on and has said nothing for so long is diagnosed as one that hangs."""


def find_target(turn: int, runs_dir: Path, chosen: Path | None) -> TargetFound:
    """What to diagnose: what was chosen, else the newest run that failed. May wait for a file system."""
    if chosen is None:
        rows = RunListing(runs_dir).read()
        chosen = next((row.run.root for row in rows if row.state in FAILED), None)
    if chosen is None:
        return TargetFound(turn, None, "")
    run = RunDirectory(chosen)
    if not run.plan.is_file():
        return TargetFound(turn, chosen, one_line(str(chosen)))
    return TargetFound(turn, chosen, *_of_run(read_status(run)))


def _of_run(status: Status) -> tuple[str, tuple[str, ...]]:
    """How a run is named on the screen, and what the diagnosis is told of it."""
    stage_id = str(status.document.get("stage") or "")
    stage: dict[str, Any] = status.document["stages"].get(stage_id, {})
    label = tr(
        "Run {name}: {state} in {stage}", name=plain(status.run.name), state=tr(status.state), stage=plain(stage_id)
    )
    if status.state == "running":
        silent = _silent_for(status.run, stage_id)
        return label, ("--stalled-for", f"{silent:.0f}") if silent >= SILENT_S else ()
    code = stage.get("process_exit_code")
    return label, ("--exit-code", str(code)) if isinstance(code, int) and status.state == "failed" else ()


def _silent_for(run: RunDirectory, stage_id: str) -> float:
    times = [path.stat().st_mtime for path in (run.log(stage_id), run.metrics(stage_id)) if path.is_file()]
    return time.time() - max(times) if times else 0.0
