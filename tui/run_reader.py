"""Reads a run's files for the screens: state, progress, curves, events, requests. Never writes, never waits for a node."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.runs import requests
from core.runs.directory import RunDirectory
from core.runs.line_view import seconds_left
from core.runs.records import json_records
from core.runs.series import Column, Series, extend_series, read_series
from core.runs.state import Status, list_runs, read_status, tail_records

EVENTS = 200
EVENTS_AT_ONCE = 8 << 20
CHECKPOINTS = 20_000
TRAINING = ("pretrain", "finetune")
"""The stages that report a loss."""


@dataclass(frozen=True)
class Progress:
    """How far the stage that runs has come."""

    step: float
    total: float | None
    unit: str
    seconds_left: float | None

    @property
    def share(self) -> float | None:
        """0 to 1; None where the end is not known."""
        return min(1.0, max(0.0, self.step / self.total)) if self.total else None


@dataclass(frozen=True)
class StopAsked:
    """Somebody asked this start of the run to stop. `grace` is None until the supervisor has taken the request."""

    by: str
    time: float
    grace: float | None


@dataclass(frozen=True)
class RunSnapshot:
    """What a screen shows of a run at one moment; nothing of it changes afterwards."""

    status: Status
    stage_id: str
    progress: Progress | None
    series: Series
    series_number: int
    """Changes when the curves do."""
    checkpoints: tuple[int, ...]
    """Steps of the checkpoints that the shown stage saved."""
    events: tuple[dict[str, Any], ...]
    stop: StopAsked | None
    checkpoint_asked: bool
    wandb: dict[str, Any] | None
    """The newest event that says where the run is in W&B."""


@dataclass
class _Curves:
    series: Series
    published: Series
    number: int = 1


@dataclass
class RunReader:
    """Keeps what was read, so that each look costs only what is new. One thread at a time may use it."""

    run: RunDirectory
    chosen: str | None = None
    """The stage whose curves are shown; the one that runs, or what is most worth a look, when None."""
    _curves: dict[str, _Curves] = field(default_factory=dict)
    _events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=EVENTS))
    _checkpoints: dict[str, deque[int]] = field(default_factory=dict)
    _stop: StopAsked | None = None
    _wandb: dict[str, Any] | None = None
    _position: int = 0

    def look(self) -> RunSnapshot:
        """The run as it is now."""
        status = read_status(self.run)
        document = status.document
        stage_id = self.chosen or self._worth_a_look(status)
        self._read_events()
        curves = self._read_curves(stage_id)
        return RunSnapshot(
            status,
            stage_id,
            self._progress(document),
            curves.published,
            curves.number,
            tuple(self._checkpoints.get(stage_id, ())),
            tuple(self._events),
            self._stop_asked(status),
            requests.pending(self.run, requests.CHECKPOINT) is not None,
            self._wandb,
        )

    def _worth_a_look(self, status: Status) -> str:
        """The stage that runs or ran last; of a run that is done the last one with curves."""
        document = status.document
        if status.state == "done":
            for stage_id in reversed(document["stages"]):
                if stage_id in TRAINING and self.run.metrics(stage_id).is_file():
                    return str(stage_id)
        return document["stage"] or next(iter(document["stages"]), "")

    def take_validations(self, stage_id: str, columns: dict[str, Column]) -> None:
        """Put validations that were searched for in place of those that a sample happened to hold."""
        curves = self._curves.get(stage_id)
        if curves is None:
            return
        for name, column in columns.items():
            known = curves.series.column(name)
            for step, value in zip(known.steps, known.values, strict=True):
                if not column.steps or step > column.steps[-1]:
                    column.add(step, value)
            curves.series.columns[name] = column
        curves.series.sampled = False
        curves.published, curves.number = curves.series.copy(), curves.number + 1

    def _read_curves(self, stage_id: str) -> _Curves:
        path = self.run.metrics(stage_id)
        curves = self._curves.get(stage_id)
        if curves is None:
            series = read_series(path)
            curves = self._curves[stage_id] = _Curves(series, series.copy())
        elif extend_series(curves.series, path):
            curves.published, curves.number = curves.series.copy(), curves.number + 1
        return curves

    def _progress(self, document: dict[str, Any]) -> Progress | None:
        stage_id = document["stage"]
        entry = document["stages"].get(stage_id, {})
        if entry.get("state") != "running":
            return None
        started = entry["started"]
        records = [record for record in tail_records(self.run.metrics(stage_id)) if record.get("time", 0) >= started]
        last = {name: value for record in records for name, value in record.items()}
        step, total = last.get("step"), last.get("total")
        if not isinstance(step, (int, float)):
            return None
        total = total if isinstance(total, (int, float)) else None
        return Progress(step, total, str(last.get("unit", "steps")), seconds_left(records, total))

    def _stop_asked(self, status: Status) -> StopAsked | None:
        if status.state not in ("running", "stopped"):
            return None
        # A supervisor that goes on says that it runs before it says so among the events.
        if self._stop is not None and self._stop.time >= (status.document.get("started") or 0):
            return self._stop
        left = requests.pending(self.run, requests.STOP) if status.state == "running" else None
        return StopAsked(str(left.get("by", "?")), float(left.get("time") or 0.0), None) if left else None

    def _read_events(self) -> None:
        try:
            with self.run.events.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._position:
                    self._position = 0
                skip = size - self._position > EVENTS_AT_ONCE
                begin = size - EVENTS_AT_ONCE if skip else self._position
                data = os.pread(file.fileno(), size - begin, begin)
        except FileNotFoundError:
            return
        end = data.rfind(b"\n") + 1
        self._position = begin + end
        for event in json_records(data[data.find(b"\n") + 1 if skip else 0 : end].split(b"\n")):
            self._take_event(event)

    def _take_event(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        kind = event.get("kind")
        if kind in ("checkpoint", "checkpoint-saved") and isinstance(event.get("step"), int):
            steps = self._checkpoints.setdefault(str(event.get("stage")), deque(maxlen=CHECKPOINTS))
            while steps and steps[-1] >= event["step"]:  # a resumed attempt saves them anew
                steps.pop()
            steps.append(event["step"])
        elif kind == "stop-requested":
            by = event.get("by")
            self._stop = StopAsked("" if by is None else str(by), float(event.get("time", 0)), event.get("grace", 0.0))
        elif kind == "run-started":
            self._stop = None
        elif kind == "wandb":
            self._wandb = event


def run_to_watch(runs_dir: Path) -> RunDirectory | None:
    """The newest run that is running; None where none is."""
    return next((run for run in list_runs(runs_dir) if read_status(run).state == "running"), None)
