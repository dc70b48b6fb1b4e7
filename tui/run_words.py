"""What the Run screen says of a run in words: its head line, its values, its stages, and what a user should know now."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from core.language import tr
from core.quantities import count, duration
from core.text.plain import plain
from tui.run_reader import TRAINING, Progress, RunSnapshot
from tui.status_marks import ascii_only, coloured_glyph, mark
from tui.widgets.stage_rail import StageRow


def head_line(snapshot: RunSnapshot, now: float, width: int) -> Text:
    """`▶ running  quickstart  pretrain 120/300 ████░░░░ 40%  ETA 2m10s`"""
    document = snapshot.status.document
    text = mark(snapshot.status.state)
    text.append(f"  {plain(snapshot.status.run.name)}", style="bold")
    stage_id = document["stage"]
    if stage_id:
        text.append(f"  {stage_id}")
    if snapshot.progress is not None:
        text.append(" " + progress_text(snapshot.progress, 20 if width >= 110 else 8))
    started, ended = document.get("started"), document.get("ended")
    if started and snapshot.status.state == "running":
        text.append("  " + tr("for {time}", time=duration(max(0.0, now - started))), style="bright_black")
    elif started and ended:
        text.append("  " + tr("after {time}", time=duration(ended - started)), style="bright_black")
    return text


def progress_text(progress: Progress, bar: int) -> str:
    """`120/300 ████░░░░ 40%  ETA 2m10s`, with what of it is known."""
    if not progress.total:
        return f"{count(progress.step)} {plain(progress.unit)}"
    share = progress.share or 0.0
    full, empty = ("#", "-") if ascii_only() else ("█", "░")
    filled = int(share * bar)
    parts = [f"{count(progress.step)}/{count(progress.total)} {full * filled}{empty * (bar - filled)} {share:.0%}"]
    if progress.seconds_left is not None:
        parts.append(tr("{time} left", time=duration(progress.seconds_left)))
    return "  ".join(parts)


def values_line(snapshot: RunSnapshot) -> Text:
    """The newest values of the stage that is shown."""
    last = snapshot.series.last
    text = Text(snapshot.stage_id, style="underline", no_wrap=True)
    for name, title, form in (
        ("loss", tr("loss"), "{:.4f}"),
        ("val_loss", tr("validation"), "{:.4f}"),
        ("val_bits_per_byte", tr("bits/byte"), "{:.3f}"),
    ):
        if name not in last:
            continue
        value = last[name]
        shown = form.format(value) if isinstance(value, (int, float)) else "NaN"
        text.append(f"  {title} ").append(shown, style="bold" if value is not None else "bold red")
    if isinstance(last.get("tokens"), (int, float)):
        text.append("  " + tr("{count} tokens", count=count(last["tokens"])))
    if isinstance(last.get("attempt"), int) and last["attempt"] > 1:
        text.append("  " + tr("attempt {number}", number=last["attempt"]))
    return text


def no_loss(stage_id: str) -> str:
    """What stands in place of the curves."""
    if stage_id in TRAINING:
        return tr("The first loss comes with the first step that is logged. l shows the log.")
    return tr("{stage} has no loss to draw. l shows its log.", stage=stage_id)


def stage_rows(snapshot: RunSnapshot, now: float) -> list[StageRow]:
    """The rail's rows."""
    document = snapshot.status.document
    rows = []
    for stage_id, stage in document["stages"].items():
        share, note = None, ""
        if stage["state"] == "running":
            progress = snapshot.progress if stage_id == document["stage"] else None
            share = progress.share if progress else None
            left = progress.seconds_left if progress else None
            note = tr("{time} left", time=duration(left)) if left is not None else duration(now - stage["started"])
        elif stage.get("started") and stage.get("ended"):
            note = duration(stage["ended"] - stage["started"])
        rows.append(StageRow(stage_id, stage["state"], share, note))
    return rows


def notice(snapshot: RunSnapshot, now: float) -> Text | None:
    """What a user should know now: a stop that was asked for, a failure and its reason, where results are."""
    status = snapshot.status
    document = status.document
    if status.state == "running":
        return _asked(snapshot, now)
    name = plain(status.run.name)
    if status.state == "queued":
        job, why = plain(document["job"]), plain(document["reason"])
        return _line("queued", tr("Queued in Slurm as job {job} ({reason}).", job=job, reason=why))
    if status.state == "failed":
        for stage_id, stage in document["stages"].items():
            if stage["state"] == "failed":
                return _line("failed", _failure(stage_id, stage))
        return _line("failed", tr("The run failed: {why}", why=plain(str(document.get("error", "?")))))
    if status.state == "stopped":
        stop = snapshot.stop
        if stop is not None and stop.by:
            return _line(
                "stopped", tr("{who} stopped the run; r goes on from its last checkpoint.", who=plain(stop.by))
            )
        return _line("stopped", tr("The run was stopped; r goes on from its last checkpoint."))
    if status.state == "lost":
        words = tr(
            "The supervisor of {name} is gone and did not say why; r goes on from the last checkpoint.", name=name
        )
        return _line("lost", words)
    return _line("done", tr("The run is done. Its results are in {folder}", folder=plain(str(status.run.outputs))))


def _failure(stage_id: str, stage: Mapping[str, Any]) -> str:
    words = tr("{stage} failed: {why}", stage=stage_id, why=plain(str(stage.get("error", "?"))))
    hint = (stage.get("evidence") or {}).get("hint")
    if hint:
        words += " -> " + plain(str(hint))
    return words.replace("\n", " ") + "  " + tr("(t: cause and fix; r: go on from the last checkpoint)")


def _asked(snapshot: RunSnapshot, now: float) -> Text | None:
    stop = snapshot.stop
    if stop is not None:
        when = time.strftime("%H:%M:%S", time.localtime(stop.time))
        who = plain(stop.by) or tr("a signal")
        if stop.grace is None:
            words = tr("{who} asked at {when} to stop; the run has not seen it yet.", who=who, when=when)
        else:
            left = max(0.0, stop.grace - (now - stop.time))
            words = tr(
                "{who} asked at {when} to stop; the stage is saving its work (at most {time} more).",
                who=who,
                when=when,
                time=duration(left),
            )
        return _line("stopped", words)
    if snapshot.checkpoint_asked:
        return _line("waiting", tr("A checkpoint has been asked for; it is saved at the end of a step."))
    return None


def _line(state: str, words: str) -> Text:
    return coloured_glyph(state).append(words, style="none")
