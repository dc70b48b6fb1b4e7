"""What a stage is: a pure plan, and a run that happens in a process of its own.

A stage's module names the section of the preset that it owns, plans from preset and facts without touching anything,
and points to the function that does the work. That function runs under the training Python, imported from the run's
copy of the code; the heavy imports are inside it.
"""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from core.files import read_json, write_json
from core.runs.directory import RunDirectory

if TYPE_CHECKING:
    from core.facts import Facts
    from core.preset import Preset

Number = int | float


@dataclass(frozen=True)
class StagePlan:
    """One stage before it runs: the exact command and everything that can be known without running it.

    `inputs` and `outputs` map a name to an absolute path (a list of paths joined as a list). `skip` says why there is
    nothing to do; a skipped stage counts as done. `secrets` names the variables with secrets that the stage may inherit. `settings` is what the result depends on besides the inputs: it and
    the inputs' content make the fingerprint by which a finished stage is known again.
    """

    id: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    nodes: list[str]
    inputs: dict[str, list[str]]
    outputs: dict[str, str]
    derived: dict[str, Any]
    settings: dict[str, Any]
    skip: str = ""
    secrets: list[str] = field(default_factory=list)
    launcher: str = "local"
    """How the command gets to `nodes`: local, ssh, slurm or deepspeed."""
    driver: str = ""
    """What reads the log of a command that is not ours, and says when it is done: megatron or llm-jp-sft."""


@dataclass(frozen=True)
class Outcome:
    """What a stage made. `outputs` maps a name to a path, `metrics` a name to a number or a short text."""

    outputs: Mapping[str, str]
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class StageContext:
    """What a running stage may use: the preset, the run's files, a way to report progress.

    `stop_requested` turns true on SIGTERM: a stage that can save its work does so and raises `StageStopped`; others
    are simply ended after the grace period.
    """

    run: RunDirectory
    preset: Preset
    stage_id: str
    plan: Mapping[str, Any]
    """This stage's entry of plan.json."""
    stop_requested: bool = False
    _last_progress: float = 0.0

    def report(self, record: Mapping[str, Any]) -> None:
        """Append one object to metrics.jsonl. Training reports every logged step; see `progress` for the others."""
        append_record(self.run.metrics(self.stage_id), record)

    def progress(self, step: Number, total: Number | None, unit: str, every: float = 0.5, **values: Any) -> None:
        """Report work done so far, at most once in `every` seconds (the last step is always reported)."""
        now = time.monotonic()
        if step != total and now - self._last_progress < every:
            return
        self._last_progress = now
        self.report({"time": time.time(), "step": step, "total": total, "unit": unit, **values})

    def event(self, kind: str, **values: Any) -> None:
        """Append one object to the run's events.jsonl: checkpoint saved, warning, adjusted number."""
        append_event(self.run, kind, stage=self.stage_id, **values)

    def warn(self, text: str) -> None:
        """A warning: in the log and among the events."""
        print(f"warning: {text}", flush=True)
        self.event("warning", text=text)

    def outputs_of(self, stage_id: str) -> dict[str, str]:
        """The outputs of an earlier stage of this run; empty where it did not run."""
        try:
            return dict(read_json(self.run.result(stage_id))["outputs"])
        except FileNotFoundError:
            return {}

    def listen_for_stop(self) -> None:
        """Let SIGTERM set `stop_requested` instead of ending the process at once."""

        def on_signal(_signal: int, _frame: object) -> None:
            self.stop_requested = True

        signal.signal(signal.SIGTERM, on_signal)


class StageStopped(Exception):  # noqa: N818 (not an error: the stage did what it was asked)
    """Raised by a stage that stopped on request after saving its work."""


@dataclass(frozen=True)
class Stage:
    """One step from raw text to a chat-tuned model.

    `section` is the preset key that the stage owns; `plan` is pure; `work` names the function
    (`module:function`) that takes a `StageContext` and returns an `Outcome`.
    """

    id: str
    title: str
    section: str
    plan: Callable[[Preset, Facts, RunDirectory], StagePlan]
    work: str

    def run(self, context: StageContext) -> Outcome:
        module, function = self.work.split(":")
        outcome: Outcome = getattr(importlib.import_module(module), function)(context)
        return outcome


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one line to a .jsonl file; a single write, so that lines of several processes do not mix."""
    line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def append_event(run: RunDirectory, kind: str, **values: Any) -> None:
    """Append one line to events.jsonl."""
    append_record(run.events, {"time": time.time(), "kind": kind, **values})


def write_result(run: RunDirectory, stage_id: str, outcome: Outcome, started: float) -> None:
    """The stage's own end record. Success is this file and exit code 0, never the exit code alone."""
    write_json(
        run.result(stage_id),
        {
            "schema_version": 1,
            "stage": stage_id,
            "started": started,
            "ended": time.time(),
            "outputs": {name: str(Path(path)) for name, path in outcome.outputs.items()},
            "metrics": dict(outcome.metrics),
        },
    )
