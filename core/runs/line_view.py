"""A run in lines: one refreshed line for the stage that runs, plain lines where the output is no terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from core.language import tr
from core.quantities import count, duration
from core.runs.directory import RunDirectory
from core.runs.state import ENDED, Status, read_status, tail_records
from core.text.plain import plain

REFRESH_S = 0.5
PLAIN_LINE_EVERY_S = 10.0
BAR_FROM = 100
"""Columns from which on there is room for a bar beside the numbers."""
SHOWN = ("vocab_size", "documents", "tokens", "steps", "loss", "val_loss", "perplexity", "rejected")


class LineView:
    """Follows a run by reading its files; it can be ended and started again at any time."""

    def __init__(self, run: RunDirectory, out: TextIO = sys.stdout) -> None:
        self.run = run
        self.out = out
        self.refreshes = out.isatty()
        self._printed: set[str] = set()
        self._last_plain = 0.0
        self._last_text = ""

    def follow(self, sleep: Callable[[float], None] = time.sleep) -> Status:
        """Show the run until it ends; returns its last status."""
        while True:
            status = read_status(self.run)
            self.show(status)
            if status.state in ENDED:
                return status
            sleep(REFRESH_S)

    def show(self, status: Status) -> None:
        for stage_id, stage in status.document["stages"].items():
            if not _has_ended(status, stage):
                continue
            if stage_id not in self._printed:
                self._printed.add(stage_id)
                self._clear()
                print(ended_line(stage_id, stage), file=self.out, flush=True)
        if status.state == "queued":
            job, why = status.document["job"], status.document["reason"]
            self._show_running(plain(tr("queued in Slurm as job {job} ({reason})", job=job, reason=why)))
        current = status.document["stage"]
        stage = status.document["stages"].get(current) if current else None
        if stage and stage["state"] == "running":
            self._show_running(running_line(self.run, current, stage))

    def _show_running(self, text: str) -> None:
        if self.refreshes:
            self.out.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
            self.out.flush()
        elif text != self._last_text and time.monotonic() - self._last_plain >= PLAIN_LINE_EVERY_S:
            self._last_plain = time.monotonic()
            print(text, file=self.out, flush=True)
        self._last_text = text

    def _clear(self) -> None:
        if self.refreshes:
            self.out.write("\r\x1b[K")

    def close(self) -> None:
        """Leave the cursor on a line of its own."""
        if self.refreshes:
            self.out.write("\n")
            self.out.flush()


def _has_ended(status: Status, stage: dict[str, Any]) -> bool:
    """Whether a stage's end is news of this start of the run; what an earlier start left is still to be looked at."""
    if stage["state"] not in ("done", "failed", "stopped", "skipped"):
        return False
    old = stage.get("ended") is not None and stage["ended"] < status.document.get("started", 0)
    return not (old and status.state == "running" and not stage.get("reused"))


def ended_line(stage_id: str, stage: dict[str, Any]) -> str:
    """`done     tokenizer          3s  vocab_size 4096  ...`"""
    word = "reused" if stage.get("reused") and stage["state"] == "done" else stage["state"]
    took = duration(stage["ended"] - stage["started"]) if stage.get("ended") and stage.get("started") else ""
    text = stage.get("why") or stage.get("error") or ""
    if stage["state"] == "done":
        values = stage.get("metrics", {})
        text = "  ".join(f"{name} {_number(values[name])}" for name in SHOWN if name in values)
    return f"{word:<8} {stage_id:<18} {took:>6}  {plain(text)}".rstrip()


def running_line(run: RunDirectory, stage_id: str, stage: dict[str, Any]) -> str:
    """`running  pretrain  [####------]  120/600  loss 4.310  2.9k tokens/s  ETA 2m10s`"""
    started = stage["started"]
    records = [record for record in tail_records(run.metrics(stage_id)) if record.get("time", 0) >= started]
    parts = [f"{'running':<8} {stage_id:<18} {duration(time.time() - started):>6}"]
    last = {name: value for record in records for name, value in record.items()}
    step, total = last.get("step"), last.get("total")
    if step is not None and total:
        if shutil.get_terminal_size().columns >= BAR_FROM:
            filled = min(10, int(10 * step / total))
            parts.append(f"[{'#' * filled}{'-' * (10 - filled)}]")
        parts.append(f"{count(step)}/{count(total)} {last.get('unit', '')}".rstrip())
    elif step is not None:
        parts.append(f"{count(step)} {last.get('unit', '')}".rstrip())
    for name, label in (("loss", "loss"), ("val_loss", "valid")):
        if last.get(name) is not None:
            parts.append(f"{label} {last[name]:.3f}")
    if last.get("tokens_per_s"):
        parts.append(f"{count(last['tokens_per_s'])} tokens/s")
    remaining = seconds_left(records, total)
    if remaining is not None:
        parts.append(f"ETA {duration(remaining)}")
    return plain("  ".join(parts))


def seconds_left(records: list[dict[str, Any]], total: Any) -> float | None:
    """Seconds to the last step at the speed of the records at hand; None before there are two."""
    timed = [record for record in records if "step" in record and "time" in record]
    if not total or len(timed) < 2:
        return None
    steps, seconds = timed[-1]["step"] - timed[0]["step"], timed[-1]["time"] - timed[0]["time"]
    if steps <= 0 or seconds <= 0:
        return None
    return float((total - timed[-1]["step"]) * seconds / steps)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else count(value)
    return count(value) if isinstance(value, int) else plain(str(value))


def summary(status: Status) -> str:
    """What to read when a run has ended: where the results are, or what failed, where it says so, and what to type."""
    document, name = status.document, status.run.name
    lines = []
    if status.state == "done":
        learnt = document["stages"].get("pretrain", {}).get("metrics", {})
        if {"first_val_loss", "val_loss", "unigram_entropy_nats"} <= learnt.keys():
            lines.append(
                f"validation loss {learnt['first_val_loss']:.3f} -> {learnt['val_loss']:.3f} nats per token; guessing by "
                f"frequency alone would give {learnt['unigram_entropy_nats']:.3f} (the corpus' unigram entropy)"
            )
        lines.append(f"run {name} is done. Results:")
        for stage_id, stage in document["stages"].items():
            for output, path in (stage.get("outputs") or {}).items():
                lines.append(f"  {stage_id + ' ' + output:<30} {path}")
    elif status.state == "failed":
        for stage_id, stage in document["stages"].items():
            if stage["state"] != "failed":
                continue
            lines.append(f"run {name} failed in {stage_id}: {stage.get('error', '')}")
            evidence = stage.get("evidence")
            if evidence:
                lines.append(f"  {evidence['file']}:{evidence['line']}")
                lines += [f"  -> {evidence['hint']}"] if evidence["hint"] else []
            verdict = stage.get("verdict") or {}
            if verdict.get("cause"):
                lines.append(tr("  cause ({verdict}): {cause}", verdict=verdict["id"], cause=tr(verdict["cause"])))
                lines.append(tr("  what to do: {fix}", fix=tr(verdict["fix"])))
        lines += [f"run {name} failed: {document['error']}"] if document.get("error") else []
        lines.append(f"  nothing is lost: `llm-wizard resume {name}` goes on from here")
    elif status.state == "queued":
        job, why = document["job"], document["reason"]
        lines.append(tr("run {run} is queued in Slurm as job {job} ({reason})", run=name, job=job, reason=why))
        lines.append(tr("  `llm-wizard stop {run}` cancels it, `llm-wizard attach {run}` waits for it", run=name))
    elif status.state == "stopped":
        lines.append(f"run {name} was stopped; `llm-wizard resume {name}` goes on from here")
    elif status.state == "lost":
        lines.append(f"run {name} lost its supervisor; `llm-wizard resume {name}` goes on from here")
    return plain("\n".join(lines))
