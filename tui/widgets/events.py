"""What happened in a run, a line an event, the newest at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text
from textual.containers import VerticalScroll
from textual.widgets import Static

from core.language import tr
from core.text.plain import plain
from tui.status_marks import coloured_glyph

_STATES = {
    "run-started": "running",
    "stage-started": "running",
    "stage-done": "done",
    "stage-reused": "done",
    "stage-failed": "failed",
    "stage-stopped": "stopped",
    "stop-requested": "stopped",
    "phase": "running",
    "warning": "warn",
    "checkpoint": "pass",
    "checkpoint-saved": "pass",
    "verdict": "warn",
    "wandb": "pass",
}


class EventList(VerticalScroll, can_focus=True):
    """The events; it follows the newest one unless one has scrolled up."""

    DEFAULT_CSS = "EventList { height: 1fr; } EventList Static { height: auto; }"

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._shown: tuple[Mapping[str, Any], ...] = ()

    def compose(self) -> Any:
        yield Static(tr("Nothing has happened yet."), markup=False)

    def show(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Draw these events, if there are new ones."""
        if len(events) == len(self._shown) and (not events or events[-1] is self._shown[-1]):
            return
        self._shown = tuple(events)
        at_end = self.is_vertical_scroll_end
        self.query_one(Static).update(Text("\n").join(event_line(event) for event in events))
        if at_end:
            self.call_after_refresh(self.scroll_end, animate=False, immediate=True)


def event_line(event: Mapping[str, Any]) -> Text:
    """`12:03:11 ✔ checkpoint of step 100 saved`."""
    kind = str(event.get("kind"))
    state = str(event.get("state")) if kind == "run-ended" else _STATES.get(kind, "waiting")
    at = event.get("time")
    clock = time.strftime("%H:%M:%S", time.localtime(at)) if isinstance(at, (int, float)) else " " * 8
    line = Text(clock + " ", style="bright_black", no_wrap=False)
    line.append_text(coloured_glyph(state))
    return line.append(plain(event_text(event)).replace("\n", " "), style="")


def event_text(event: Mapping[str, Any]) -> str:
    """An event in words; one of an unknown kind with all that it says."""
    stage, kind = str(event.get("stage", "")), str(event.get("kind"))
    if kind == "run-started":
        return tr("the run was started")
    if kind == "run-ended":
        return tr("the run ended: {state}", state=tr(str(event.get("state", "?"))))
    if kind == "stage-started":
        attempt = event.get("attempt", 1)
        if attempt == 1:
            return tr("{stage} started", stage=stage)
        return tr("{stage} started, attempt {attempt}", stage=stage, attempt=attempt)
    if kind == "stage-done":
        return tr("{stage} is done", stage=stage)
    if kind == "stage-reused":
        return tr("{stage} was done already", stage=stage)
    if kind == "stage-failed":
        return tr("{stage} failed: {why}", stage=stage, why=event.get("error", ""))
    if kind == "stage-stopped":
        return tr("{stage} stopped", stage=stage)
    if kind == "stop-requested":
        by = event.get("by")
        return tr("{who} asked to stop", who=by) if by else tr("a signal asked to stop")
    if kind == "phase":
        return f"{stage}: {event.get('text', '')}"
    if kind == "warning":
        return tr("warning: {words}", words=event.get("text", ""))
    if kind in ("checkpoint", "checkpoint-saved"):
        return tr("checkpoint of step {step} saved", step=event.get("step", "?"))
    if kind == "verdict":
        return tr("verdict: {words}", words=event.get("text") or event.get("id") or "?")
    if kind == "wandb":
        return tr("reports to W&B: {where}", where=event.get("url") or event.get("folder") or "?")
    values = ", ".join(f"{name} {value}" for name, value in event.items() if name not in ("time", "kind"))
    return f"{kind}: {values}" if values else kind
