"""What the terminal can do, looked at before Textual is imported: Textual itself notices none of it.

Textual draws on `sys.__stderr__` and reads stdin, whatever they are: under TERM=dumb, into a file, or as `\\u2500` where
the encoding is not UTF-8 (measured with 8.2.8).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from io import StringIO
from typing import Any

from core.encoding import is_utf8
from core.language import tr, tr_later

OVER_SSH = {"TEXTUAL_ANIMATIONS": "none", "TEXTUAL_FPS": "15", "TEXTUAL_SMOOTH_SCROLL": "0"}
"""Textual's own settings, for a line that is slow; read once, when Textual is imported."""

SIXTEEN_COLOURS = "ansi-dark"
"""Textual's theme of the terminal's own colours: nothing is rounded to one of sixteen, and the fewest bytes are sent."""


@dataclass(frozen=True)
class Terminal:
    """What decides between the screen, the prompts and the help."""

    stdin_is_tty: bool
    stdout_is_tty: bool
    stderr_is_tty: bool
    term: str
    """TERM; empty where it is not set."""
    encoding: str
    """That of stderr, on which the screen is drawn."""

    @property
    def can_ask(self) -> bool:
        """Whether a question can be shown and answered: one tty is enough, it can be read and written."""
        return self.stdin_is_tty or self.stdout_is_tty or self.stderr_is_tty

    @property
    def moves_the_cursor(self) -> bool:
        """Whether escape sequences do what they say and typed text arrives as UTF-8."""
        return self.term not in ("", "dumb", "unknown") and is_utf8(self.encoding)

    def why_no_screen(self) -> str:
        """The reason for which the screen cannot be shown, for the user to read; empty where it can."""
        if not self.stdin_is_tty:
            return tr(_NO_TTY, stream="stdin")
        if not self.stderr_is_tty:
            return tr(_NO_TTY, stream="stderr")
        if not self.term:
            return tr("The screen needs a terminal that can move the cursor; TERM is not set.")
        if self.term in ("dumb", "unknown"):
            return tr("The screen needs a terminal that can move the cursor; TERM is {term}.", term=self.term)
        if not is_utf8(self.encoding):
            return tr("The screen needs a terminal in UTF-8; this one uses {encoding}.", encoding=self.encoding)
        return ""


_NO_TTY = tr_later("The screen needs a terminal; {stream} is none.")


def this_terminal(environment: Mapping[str, str]) -> Terminal:
    """The terminal of this process."""
    streams = (sys.__stdin__, sys.__stdout__, sys.__stderr__)
    ttys = [stream is not None and not stream.closed and stream.isatty() for stream in streams]
    return Terminal(
        stdin_is_tty=ttys[0],
        stdout_is_tty=ttys[1],
        stderr_is_tty=ttys[2],
        term=environment.get("TERM", ""),
        encoding=getattr(sys.__stderr__, "encoding", None) or "ascii",
    )


def prepare(environment: MutableMapping[str, str], ascii_only: bool) -> None:
    """Set what Textual and the screens read from the environment, before they are imported. What the user set stays."""
    if ascii_only:
        environment["LLM_WIZARD_ASCII"] = "1"
    if environment.get("NO_COLOR") == "":  # no-color.org: only a value that is not empty counts; Textual takes any
        del environment["NO_COLOR"]
    if environment.get("SSH_CONNECTION"):
        for name, value in OVER_SSH.items():
            environment.setdefault(name, value)
    if environment.get("NO_COLOR") or _has_few_colours(environment.get("TEXTUAL_COLOR_SYSTEM", "auto")):
        environment.setdefault("TEXTUAL_THEME", SIXTEEN_COLOURS)


def _has_few_colours(asked: str) -> bool:
    """Whether there are at most 16 colours, as rich tells it from TERM and COLORTERM: Textual takes rich's word."""
    from rich.console import Console

    system: Any = asked if asked in ("standard", "256", "truecolor") else "auto"
    return Console(file=StringIO(), force_terminal=True, color_system=system).color_system not in ("256", "truecolor")
