"""The stages of a run with their states; the arrow keys move in it, Enter shows the stage's curves and log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from core.language import tr_later
from tui.status_marks import ascii_only, mark
from tui.widgets.cells import fitted

CELL = 26
"""Columns of one stage where several stand side by side; from WITH_BAR on there is room for a bar and the time."""
WITH_BAR = 44


@dataclass(frozen=True)
class StageRow:
    """One stage as the rail shows it."""

    id: str
    state: str
    share: float | None = None
    """Of the work done, 0 to 1, while it runs; None where that is not known."""
    note: str = ""
    """How long it took, or what is left."""


class StageRail(Widget, can_focus=True):
    """One stage a row where it is tall enough for that, else several in a row."""

    DEFAULT_CSS = "StageRail { height: auto; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(0, -1)", show=False),
        Binding("down", "move(0, 1)", show=False),
        Binding("left", "move(-1, 0)", show=False),
        Binding("right", "move(1, 0)", show=False),
        Binding(
            "enter", "choose", tr_later("Show stage"), tooltip=tr_later("Show the curves and the log of this stage.")
        ),
    ]

    class Chosen(Message):
        """The user wants to see this stage."""

        def __init__(self, stage_id: str) -> None:
            super().__init__()
            self.stage_id = stage_id

    def __init__(self, *, in_one_column: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.in_one_column = in_one_column
        self.rows: tuple[StageRow, ...] = ()
        self.shown = ""
        """The stage whose curves and log are shown."""
        self._cursor = 0

    def show(self, rows: Sequence[StageRow], shown: str) -> None:
        """Draw these stages, if anything changed."""
        if tuple(rows) == self.rows and shown == self.shown:
            return
        first = not self.rows
        grew = len(rows) != len(self.rows)
        if shown != self.shown or first:
            self._cursor = next((place for place, row in enumerate(rows) if row.id == shown), 0)
        self.rows, self.shown = tuple(rows), shown
        self.refresh(layout=grew)

    def _columns(self, width: int) -> int:
        return 1 if self.in_one_column else max(1, min(width // CELL, 3 if width < 4 * CELL else 5))

    def _lines(self, width: int) -> int:
        columns = self._columns(width)
        return -(-len(self.rows) // columns)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return max(1, self._lines(width))

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        columns, lines = self._columns(width), self._lines(width)
        base = self.rich_style
        strips: list[Segment] = []
        for column in range(columns):
            place = column * lines + y
            left = width * column // columns
            cell = width * (column + 1) // columns - left
            if y < lines and place < len(self.rows):
                strips += self._cell(place, cell, base)
            else:
                strips.append(Segment(" " * cell, base))
        return Strip(strips, width)

    def _cell(self, place: int, width: int, base: Style) -> list[Segment]:
        row = self.rows[place]
        state = mark(row.state)
        here = self.has_focus and place == self._cursor
        style = base + Style(reverse=here, bold=row.id == self.shown, underline=row.id == self.shown)
        pointer = "›" if row.id == self.shown else " "
        parts = [(pointer, style), (fitted(state.plain, 10), base + Style.parse(str(state.style))), (" ", base)]
        used = 1 + 10 + 1
        if width >= WITH_BAR:
            parts.append((fitted(row.id, 18), style))
            parts.append((fitted(" " + _bar(row.share, 6) + " " + row.note, width - used - 18), base))
        else:
            text = row.id
            if row.share is not None:
                text += f" {row.share:.0%}"
            parts.append((fitted(text, width - used), style))
        return [Segment(text, text_style) for text, text_style in parts]

    def action_move(self, columns: int, rows: int) -> None:
        lines = self._lines(self.size.width)
        target = self._cursor + rows + columns * lines
        if 0 <= target < len(self.rows):
            self._cursor = target
            self.refresh()

    def action_choose(self) -> None:
        if self.rows:
            self.post_message(self.Chosen(self.rows[self._cursor].id))

    def on_click(self, event: Click) -> None:
        width = self.size.width
        columns, lines = self._columns(width), self._lines(width)
        place = min(columns - 1, event.x * columns // max(1, width)) * lines + event.y
        if event.y < lines and place < len(self.rows):
            self._cursor = place
            self.refresh()
            self.action_choose()


def _bar(share: float | None, width: int) -> str:
    if share is None:
        return " " * width
    full, empty = ("#", "-") if ascii_only() else ("█", "░")
    filled = round(share * width)
    return full * filled + empty * (width - filled)
