"""A log: its growing end, or a part of it that one has scrolled or searched to. Only lines that are seen are drawn.

The view knows no file. It says what it wants (older lines, a search, a rank) and is given lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import on
from textual.binding import Binding, BindingType
from textual.events import MouseScrollDown, MouseScrollUp, Resize
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from core.language import tr_later
from tui.log_reader import LogLine

MOST_LINES = 6000
"""Lines that are held while one scrolls through older parts."""
NEAR_EDGE = 20
SIDEWAYS = 20

_WORSE = (
    (re.compile(r"\b(?:error|exception|traceback|fatal|critical|failed)\b|Error\b", re.IGNORECASE), Style(color="red")),
    (re.compile(r"\bwarn(?:ing)?\b|Warning\b", re.IGNORECASE), Style(color="yellow")),
)


class LogView(ScrollView, can_focus=True):
    """The lines. Following, it shows the end; moving up pauses it, End follows again."""

    DEFAULT_CSS = "LogView { height: 1fr; overflow-x: hidden; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "rows(-1)", show=False),
        Binding("down,j", "rows(1)", show=False),
        Binding("pageup,b", "pages(-1)", show=False),
        Binding("pagedown", "pages(1)", show=False),
        Binding("home", "older_end", show=False),
        Binding("left", "sideways(-1)", show=False),
        Binding("right", "sideways(1)", show=False),
        Binding(
            "space,p",
            "pause",
            tr_later("Pause"),
            key_display="spc",
            tooltip=tr_later("Hold the log still, or follow it again."),
        ),
        Binding(
            "end,G",
            "follow",
            tr_later("Follow"),
            key_display="end",
            show=False,
            tooltip=tr_later("Show the newest lines as they come."),
        ),
    ]

    class Moved(Message):
        """The part that is seen, or whether it follows, has changed."""

    class MoreWanted(Message):
        """The view is near the edge of what it holds: lines before, or behind, the one that begins at that byte."""

        def __init__(self, before: int | None = None, after: int | None = None) -> None:
            super().__init__()
            self.before, self.after = before, after

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.lines: list[LogLine] = []
        self.following = True
        self.needle = ""
        self.found: int | None = None
        """The byte of the line that a search went to."""
        self._left = 0
        self._asked: int | None = None

    # --- what it is given

    def show_end(self, lines: Sequence[LogLine]) -> None:
        """The newest lines, while it follows."""
        if not self.following:
            return
        self.lines = list(lines)
        self._resize()
        self._keep_at_end()
        self.refresh()

    @on(Resize)
    def _keep_at_end(self) -> None:
        self.call_after_refresh(self._to_end)

    def _to_end(self) -> None:
        if self.following:  # still
            self.scroll_end(animate=False, immediate=True, x_axis=False)

    @property
    def top(self) -> int:
        """The place of the first line that is seen. Following, it does not wait for the scroll bar, which comes a frame later."""
        return max(0, len(self.lines) - self.size.height) if self.following else self.scroll_offset.y

    def show_part(self, lines: Sequence[LogLine], found: int | None) -> None:
        """A part of the log, with the line that begins at byte `found` in the middle."""
        self.following, self.found = False, found
        self.lines = list(lines)
        self._resize()
        place = next((place for place, line in enumerate(self.lines) if line.byte == found), len(self.lines) - 1)
        self.scroll_to(y=max(0, place - self.size.height // 2), animate=False, immediate=True)
        self.refresh()
        self.post_message(self.Moved())

    def add(self, part: str, lines: Sequence[LogLine]) -> None:
        """Lines "older" than the first or "newer" than the last; what is seen stays where it is."""
        self._asked = None
        if self.following or not lines or not self.lines:
            return
        top = self.scroll_offset.y
        if part == "older" and lines[-1].byte < self.lines[0].byte:
            self.lines = [*lines, *self.lines][:MOST_LINES]
            top += len(lines)
        elif part == "newer" and lines[0].byte > self.lines[-1].byte:
            self.lines += lines
            dropped = max(0, len(self.lines) - MOST_LINES)
            del self.lines[:dropped]
            top -= dropped
        self._resize()
        self.scroll_to(y=top, animate=False, immediate=True)
        self.refresh()

    def clear(self) -> None:
        """Another log: begin at its end."""
        self.lines, self.following, self.found, self._left, self._asked = [], True, None, 0, None
        self._resize()
        self.refresh()

    def _resize(self) -> None:
        size = Size(self.size.width, len(self.lines))
        if size != self.virtual_size:
            self.virtual_size = size

    @property
    def seen(self) -> list[LogLine]:
        """The lines that are on the screen."""
        return self.lines[self.top : self.top + self.size.height]

    # --- drawing

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width or self.size.width
        base = self.rich_style
        place = self.top + y
        if place >= len(self.lines):
            return Strip.blank(width, base)
        line = self.lines[place]
        style = base + next((worse for pattern, worse in _WORSE if pattern.search(line.text)), Style.null())
        if line.byte == self.found:
            style += Style(bold=True)
        strip = Strip(list(_marked(line.text, self.needle, style)))
        return strip.crop_extend(self._left, self._left + width, base)

    # --- moving

    def action_rows(self, rows: int) -> None:
        self._move(rows)

    def action_pages(self, pages: int) -> None:
        self._move(pages * max(1, self.size.height - 1))

    def action_older_end(self) -> None:
        self._move(-len(self.lines))

    def action_sideways(self, steps: int) -> None:
        self._left = max(0, self._left + steps * SIDEWAYS)
        self.refresh()

    def action_pause(self) -> None:
        if self.following:
            self._hold()
            self.post_message(self.Moved())
        else:
            self.action_follow()

    def _hold(self) -> None:
        top, self.following = self.top, False
        self.scroll_to(y=top, animate=False, immediate=True)

    def action_follow(self) -> None:
        self.following, self.found = True, None
        self.post_message(self.Moved())

    def _move(self, rows: int) -> None:
        if rows < 0 and self.following:
            self._hold()
        if self.following:
            return
        self.scroll_to(y=self.scroll_offset.y + rows, animate=False, immediate=True)
        self._ask_for_more()
        self.post_message(self.Moved())

    def _ask_for_more(self) -> None:
        if not self.lines or self.following:
            return
        top = self.scroll_offset.y
        if top < NEAR_EDGE and self.lines[0].byte > 0 and self._asked != self.lines[0].byte:
            self._asked = self.lines[0].byte
            self.post_message(self.MoreWanted(before=self._asked))
        elif top + self.size.height > len(self.lines) - NEAR_EDGE and self._asked != self.lines[-1].byte:
            self._asked = self.lines[-1].byte
            self.post_message(self.MoreWanted(after=self._asked))

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        event.prevent_default()
        event.stop()
        self._move(-3)

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        event.prevent_default()
        event.stop()
        self._move(3)


def _marked(text: str, needle: str, style: Style) -> Iterable[Segment]:
    """The text with every place reversed where the needle stands in it."""
    if not needle:
        yield Segment(text, style)
        return
    low, sought, done = text.lower(), needle.lower(), 0
    if len(low) != len(text):  # a letter whose lower case is longer: the places would not be the same
        low, sought = text, needle
    while (place := low.find(sought, done)) >= 0:
        yield Segment(text[done:place], style)
        yield Segment(text[place : place + len(sought)], style + Style(reverse=True))
        done = place + len(sought)
    yield Segment(text[done:], style)
