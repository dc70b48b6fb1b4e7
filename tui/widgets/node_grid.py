"""One row a node: state, a cell for each GPU, temperature, memory, power, network, age. Only rows that are seen are drawn."""

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
from textual.scroll_view import ScrollView
from textual.strip import Strip

from core.language import tr, tr_later
from core.text.plain import one_line
from tui.status_marks import mark
from tui.widgets.cells import fitted

LONGEST_BARS = 16


@dataclass(frozen=True)
class NodeRow:
    """A node in words; "" where a value is not known."""

    host: str
    status: str
    """ok, stale or lost."""
    bars: tuple[tuple[str, str], ...]
    """(one cell, its colour) of each GPU."""
    temperature: str
    hot: bool
    memory: str
    power: str
    cpu: str
    network: str
    fabric: str
    """InfiniBand."""
    age: str
    """Of the sample."""
    problems: tuple[str, ...]


Cell = tuple[str, Style]


class NodeGrid(ScrollView, can_focus=True):
    """The first row is the heading and stays. The cursor stays on its node, wherever that goes in the order."""

    DEFAULT_CSS = "NodeGrid { height: 1fr; overflow-x: hidden; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "move(-10)", show=False),
        Binding("pagedown", "move(10)", show=False),
        Binding("home", "move(-100000)", show=False),
        Binding("end", "move(100000)", show=False),
        Binding("enter", "open", tr_later("Open node"), tooltip=tr_later("Show the GPUs and processes of this node.")),
    ]

    class Opened(Message):
        """Enter on a node."""

        def __init__(self, host: str) -> None:
            super().__init__()
            self.host = host

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.rows: tuple[NodeRow, ...] = ()
        self._host: str | None = None
        self._bars = 8

    @property
    def cursor(self) -> int:
        """The place of the node that the cursor is on."""
        return next((place for place, row in enumerate(self.rows) if row.host == self._host), 0)

    def show(self, rows: Sequence[NodeRow]) -> None:
        """Draw these nodes: of those that are seen, the ones that changed."""
        rows = tuple(rows)
        if rows == self.rows:
            return
        old, self.rows = self.rows, rows
        if self._host is None and rows:
            self._host = rows[0].host
        bars = min(LONGEST_BARS, max([4, *(len(row.bars) for row in rows)]))
        if len(old) != len(rows) or bars != self._bars:
            self._bars = bars
            self.virtual_size = Size(self.size.width, len(rows) + 1)
            self.refresh()
            return
        top = self.scroll_offset.y
        for y in range(1, self.size.height):
            place = top + y - 1
            if place < len(rows) and rows[place] != old[place]:
                self.refresh_line(y + top)

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width or self.size.width
        base = self.rich_style
        if y == 0:
            cells = self._heading(width, base + Style(bold=True, dim=True))
        else:
            place = self.scroll_offset.y + y - 1
            if place >= len(self.rows):
                return Strip.blank(width, base)
            cells = self._cells(self.rows[place], width, base, place == self.cursor and self.has_focus)
        return Strip([Segment(text, style) for text, style in cells]).crop_extend(0, width, base)

    def _widths(self, width: int) -> dict[str, int]:
        """Columns by what there is room for; the last, for problems, takes what is left."""
        widths = {"state": 9, "host": 16 if width < 100 else 24, "gpus": self._bars + 1}
        widths |= {"temperature": 5, "memory": 5, "power": 7, "cpu": 5, "network": 6}
        if width >= 90:
            widths["fabric"] = 6
        widths["age"] = 7
        widths["problems"] = max(0, width - sum(widths.values()))
        return widths

    def _heading(self, width: int, style: Style) -> list[Cell]:
        titles = {
            "state": tr("State"),
            "host": tr("Node"),
            "gpus": tr("GPUs"),
            "temperature": tr("Temp"),
            "memory": tr("Mem"),
            "power": tr("Power"),
            "cpu": "CPU",
            "network": tr("Net/s"),
            "fabric": "IB/s",
            "age": tr("Age"),
            "problems": tr("Problem"),
        }
        return [(fitted(titles[name], size - 1) + " ", style) for name, size in self._widths(width).items() if size]

    def _cells(self, row: NodeRow, width: int, base: Style, here: bool) -> list[Cell]:
        grey = Style(color="bright_black") if row.status == "lost" else Style()
        style = base + grey
        state = mark(row.status)
        cells: list[Cell] = []
        values = {
            "host": one_line(row.host),
            "temperature": row.temperature,
            "memory": row.memory,
            "power": row.power,
            "cpu": row.cpu,
            "network": row.network,
            "fabric": row.fabric,
            "age": row.age,
            "problems": "; ".join(row.problems).replace("\n", " "),
        }
        for name, size in self._widths(width).items():
            if not size:
                continue
            if name == "state":
                cells.append((fitted(state.plain, size), base + Style.parse(str(state.style))))
            elif name == "gpus":
                cells += self._bar_cells(row, size, style)
            else:
                own = style
                if row.status != "lost":
                    own += Style(color="red") if name == "temperature" and row.hot else Style()
                    own += (
                        Style(color="yellow")
                        if name == "problems" or (name == "age" and row.status == "stale")
                        else Style()
                    )
                own += Style(reverse=here and name == "host", bold=here)
                cells.append((fitted(values[name], size - 1), own))
                cells.append((" ", style))
        return cells

    def _bar_cells(self, row: NodeRow, size: int, style: Style) -> list[Cell]:
        if not row.bars:
            return [(fitted("-", size), style)]
        shown = row.bars[: size - 1]
        cells = [(bar, style if row.status == "lost" else style + Style(color=colour)) for bar, colour in shown]
        return [*cells, (" " * (size - len(shown)), style)]

    def action_move(self, rows: int) -> None:
        if self.rows:
            self._go_to(min(len(self.rows) - 1, max(0, self.cursor + rows)))

    def _go_to(self, place: int) -> None:
        self._host = self.rows[place].host
        height = max(1, self.size.height - 1)
        top = self.scroll_offset.y
        if place < top:
            self.scroll_to(y=place, animate=False)
        elif place >= top + height:
            self.scroll_to(y=place - height + 1, animate=False)
        self.refresh()

    def action_open(self) -> None:
        if self.rows:
            self.post_message(self.Opened(self.rows[self.cursor].host))

    def on_click(self, event: Click) -> None:
        place = self.scroll_offset.y + event.y - 1
        if event.y > 0 and place < len(self.rows):
            self._go_to(place)
            self.action_open()
