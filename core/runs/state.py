"""state.json: what the supervisor says about a run, and what a reader makes of it."""

from __future__ import annotations

import contextlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import InputError
from core.files import read_json
from core.runs.directory import RunDirectory, check_run_name
from core.runs.lock import lock_owner
from core.runs.records import json_records

ENDED = ("done", "failed", "stopped", "lost")


@dataclass(frozen=True)
class Status:
    """A run as seen from outside; `document` is what `status RUN --json` prints."""

    run: RunDirectory
    document: dict[str, Any]

    @property
    def state(self) -> str:
        return str(self.document["state"])

    @property
    def exit_code(self) -> int | None:
        return self.document.get("exit_code")


def find_run(name: str, runs_dir: Path) -> RunDirectory:
    """A run by name in `runs_dir`, or by path. Raises InputError."""
    run = RunDirectory(Path(name).absolute() if "/" in name else runs_dir.absolute() / check_run_name(name))
    if not run.plan.is_file():
        known = ", ".join(other.name for other in list_runs(runs_dir)) or "none yet"
        raise InputError(f"there is no run {name!r} in {run.root.parent}", f"runs there: {known}; see --runs-dir")
    return run


def list_runs(runs_dir: Path) -> list[RunDirectory]:
    """The runs in a folder, the newest first; what may not be looked into is left out, as another user's may be."""
    found = []
    with contextlib.suppress(OSError):
        for path in runs_dir.iterdir():
            run = RunDirectory(path.absolute())
            with contextlib.suppress(OSError):
                status = run.plan.stat()
                if stat.S_ISREG(status.st_mode):
                    found.append((status.st_mtime, run))
    return [run for _, run in sorted(found, key=lambda pair: pair[0], reverse=True)]


def read_status(run: RunDirectory) -> Status:
    """The state of a run now: the supervisor's own record, corrected by whether the supervisor lives.

    `running` in the record with nobody holding the lock is `lost`: the supervisor ended without saying so. A run that was
    submitted is `queued` while its Slurm job waits, with that `job` and the `reason`.
    """
    owner = lock_owner(run)  # before the record: a supervisor that ends in between has written its end by then
    try:
        document = dict(read_json(run.state))
    except FileNotFoundError:
        document = {"schema_version": 1, "run": run.name, "state": "running", "stage": None, "stages": {}}
    if run.slurm.exists():
        from core.cluster.slurm_job import as_queued

        document |= as_queued(run, document, alive=owner is not None)
    if document["state"] == "running" and owner is None:
        document["state"] = "lost"
    for stage in document["stages"].values():
        if stage["state"] == "running" and owner is None:
            stage["state"] = "lost"
    for stage_id, stage in document["stages"].items():
        if stage["state"] != "done":
            stage["metrics"] = last_metrics(run, stage_id)
    return Status(run, document)


def last_metrics(run: RunDirectory, stage_id: str) -> dict[str, Any]:
    """The last value of each name in the newest records of metrics.jsonl; {} where there is none."""
    merged: dict[str, Any] = {}
    for record in tail_records(run.metrics(stage_id)):
        merged.update(record)
    return merged


def tail_records(path: Path, limit: int = 1 << 16) -> list[dict[str, Any]]:
    """The complete JSON lines in the last `limit` bytes of a file that may be growing."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - limit)
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return []
    return list(json_records(data.split(b"\n")[1 if start else 0 : -1]))
