"""Every state as glyph, word and colour, so that none of the three is needed alone."""

from __future__ import annotations

import os

from rich.text import Text

from core.language import tr, tr_later

# state: glyph, glyph where only ASCII can be shown, word, colour (one of the terminal's sixteen)
_MARKS = {
    "done": ("✔", "+", tr_later("done"), "green"),
    "running": ("▶", ">", tr_later("running"), "cyan"),
    "waiting": ("·", ".", tr_later("waiting"), "bright_black"),
    "queued": ("·", ".", tr_later("queued"), "bright_black"),
    "skipped": ("–", "-", tr_later("skipped"), "bright_black"),
    "failed": ("✘", "x", tr_later("failed"), "red"),
    "stopped": ("■", "#", tr_later("stopped"), "yellow"),
    "lost": ("?", "?", tr_later("lost"), "magenta"),
    "pass": ("✔", "+", tr_later("pass"), "green"),
    "warn": ("!", "!", tr_later("warn"), "yellow"),
    "fail": ("✘", "x", tr_later("fail"), "red"),
    "skip": ("–", "-", tr_later("skip"), "bright_black"),
    "unknown": ("?", "?", tr_later("unknown"), "magenta"),
    "ok": ("✔", "+", tr_later("ok"), "green"),
    "stale": ("!", "!", tr_later("stale"), "yellow"),
    "healthy": ("✔", "+", tr_later("healthy"), "green"),
    "root": ("✘", "x", tr_later("cause"), "red"),
    "cascade": ("→", ">", tr_later("follows"), "yellow"),
    "advisory": ("!", "!", tr_later("advice"), "yellow"),
    "info": ("·", ".", tr_later("note"), "bright_black"),
}


def ascii_only() -> bool:
    """Whether only ASCII is drawn: `--ascii`, which tui.start puts into the environment."""
    return bool(os.environ.get("LLM_WIZARD_ASCII"))


def glyph(state: str) -> str:
    """The one-cell glyph of a state."""
    marks = _MARKS.get(state, ("?", "?", state, "white"))
    return marks[1] if ascii_only() else marks[0]


def coloured_glyph(state: str) -> Text:
    """The glyph alone and a space, for a line whose words say more than the state's."""
    return Text(f"{glyph(state)} ", style=str(mark(state).style))


def mark(state: str) -> Text:
    """The glyph and the word of a state, in its colour."""
    _, _, word, colour = _MARKS.get(state, ("?", "?", state, "white"))
    return Text(f"{glyph(state)} {tr(word)}", style=colour, no_wrap=True)
