"""A curve in a few rows: a title with the newest value, and bars of eighths of a cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from tui.status_marks import ascii_only
from tui.widgets.cells import fitted

BARS = " ▁▂▃▄▅▆▇█"
BARS_ASCII = " ..--==##"
NO_NUMBER = "x"


class SmallChart(Widget):
    """`show` gives it numbers from the oldest to the newest, NaN where there is none."""

    DEFAULT_CSS = "SmallChart { height: 3; min-width: 12; }"

    def __init__(self, title: str, *, id: str | None = None, colour: str = "cyan", from_zero: bool = False) -> None:
        super().__init__(id=id)
        self._title = title
        self._colour = colour
        self._from_zero = from_zero
        self._value = ""
        self._values: Sequence[float] = ()
        self._top = math.nan

    def show(self, value: str, values: Sequence[float], top: float = math.nan) -> None:
        """Draw these; `top` is the value of a full bar, the largest number where it is not given."""
        self._value, self._values, self._top = value, values, top
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width, rows = self.size
        base = self.rich_style
        if y == 0:
            taken = min(width, cell_len(self._title) + 1)
            title, value = fitted(self._title, taken), fitted(self._value, width - taken)
            return Strip([Segment(title, base), Segment(value, base + Style(bold=True))], width)
        heights = bar_heights(self._values, width, (rows - 1) * 8, self._from_zero, self._top)
        marks = BARS_ASCII if ascii_only() else BARS
        below = 8 * (rows - 1 - y)
        cells = []
        for height in heights:
            if height is None:
                cells.append(NO_NUMBER if y == rows - 1 else " ")
            else:
                cells.append(marks[min(8, max(0, height - below))])
        text = fitted("".join(cells), width)
        return Strip([Segment(text, base + Style(color=self._colour))], width)


def bar_heights(
    values: Sequence[float], width: int, full: int, from_zero: bool = False, top: float = math.nan
) -> list[int | None]:
    """The height of each of at most `width` bars in 1..full, of the mean of the values that share it; None for NaN, [] where there is no number."""
    if width <= 0 or not any(map(math.isfinite, values)):
        return []
    count = min(width, len(values))
    means: list[float] = []
    for place in range(count):
        part = [
            value
            for value in values[place * len(values) // count : (place + 1) * len(values) // count]
            if math.isfinite(value)
        ]
        means.append(sum(part) / len(part) if part else math.nan)
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(0.0, *finite) if from_zero else min(finite), max(finite) if math.isnan(top) else top
    spread = high - low
    flat = 0.0 if from_zero else 0.5
    shares = [(mean - low) / spread if spread else flat for mean in means]
    return [
        None if math.isnan(mean) else 1 + round(min(1.0, max(0.0, share)) * (full - 1))
        for mean, share in zip(means, shares, strict=True)
    ]
