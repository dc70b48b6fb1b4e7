"""The plot of the loss chart, by textual-plot. Importing this module imports numpy: only the Run screen does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Grid
from textual.events import Leave, MouseEvent, MouseMove, MouseScrollDown, MouseScrollUp
from textual.message import Message
from textual.strip import Strip
from textual_hires_canvas import Canvas
from textual_plot import HiResMode, PlotWidget
from textual_plot.axis_formatter import NumericAxisFormatter
from textual_plot.plot_widget import Legend

from core.quantities import count
from tui.curves import Curve, pieces


@dataclass(frozen=True)
class Look:
    """How one curve is drawn: a line of dots where `marker` is empty, else one marker a point."""

    colour: str
    marker: str = ""


class StepFormatter(NumericAxisFormatter):
    """Steps: 1.2M, or all digits where the ticks would look alike."""

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        ticks = super().get_ticks(min_, max_, max_ticks)
        return sorted({float(round(tick)) for tick in ticks})

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        labels = [count(tick) for tick in ticks]
        return labels if len(set(labels)) == len(labels) else [f"{tick:,.0f}" for tick in ticks]


class LogFormatter(NumericAxisFormatter):
    """Ticks at round values of 10**y."""

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        low, high = 10.0**min_, 10.0**max_
        if max_ - min_ < 0.7:  # less than a factor of five: evenly spaced values are the round ones
            return [math.log10(tick) for tick in super().get_ticks(low, high, max_ticks) if tick > 0]
        ticks = [
            power + math.log10(factor) for power in range(math.floor(min_), math.ceil(max_) + 1) for factor in (1, 2, 5)
        ]
        seen = [tick for tick in ticks if min_ <= tick <= max_]
        return seen if len(seen) <= max_ticks else [tick for tick in seen if tick == round(tick)]

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        return [f"{10.0**tick:.3g}" for tick in ticks]


class SizedCanvas(Canvas):
    """A line before the first layout has no style in textual-hires-canvas, and NO_COLOR's filter fails on that."""

    def render_line(self, y: int) -> Strip:
        strip = super().render_line(y)
        return strip if strip.cell_length else Strip.blank(self.size.width, self.rich_style)


class LossPlot(PlotWidget, inherit_bindings=False):
    """Draws what it is told; what the mouse does to the view it only says."""

    can_focus = False

    class Zoomed(Message):
        """The wheel: make the view `factor` times as wide around a step."""

        def __init__(self, factor: float, step: float) -> None:
            super().__init__()
            self.factor, self.step = factor, step

    class Dragged(Message):
        """The mouse pulled the plot by so many cells."""

        def __init__(self, cells: int) -> None:
            super().__init__()
            self.cells = cells

    class Hovered(Message):
        """The mouse is over this step; None when it has left."""

        def __init__(self, step: float | None) -> None:
            super().__init__()
            self.step = step

    def compose(self) -> ComposeResult:
        with Grid():
            for part in ("margin-top", "margin-left", "plot", "margin-bottom"):
                yield SizedCanvas(1, 1, id=part)
        yield Legend(id="legend")

    def on_mount(self) -> None:
        self.margin_top, self.margin_bottom, self.margin_left = 0, 1, 8
        self.set_x_formatter(StepFormatter())

    @property
    def cells(self) -> int:
        """Columns between the axes."""
        return max(1, self.size.width - self.margin_left - 2)

    def draw(
        self,
        curves: Sequence[tuple[Curve, Look]],
        view: tuple[float, float],
        log: bool,
        marks: Sequence[int],
        missing: Sequence[int],
        cursor: float | None,
    ) -> None:
        """Draw the curves over the steps of `view`. `marks` are steps of checkpoints, `missing` those without a number."""
        self.clear()
        self.set_xlimits(*view)
        self.set_y_formatter(LogFormatter() if log else NumericAxisFormatter())
        low, high = math.inf, -math.inf
        prepared = []
        for curve, look in curves:
            for piece in pieces(curve, self.cells):
                values = [
                    math.log10(value) if log and value > 0 else value for value in piece.values if not log or value > 0
                ]
                steps = [step for step, value in zip(piece.steps, piece.values, strict=True) if not log or value > 0]
                inside = [value for step, value in zip(steps, values, strict=True) if view[0] <= step <= view[1]]
                low, high = min([low, *inside]), max([high, *inside])
                prepared.append((steps, values, look))
        if low > high:
            low, high = 0.0, 1.0
        margin = 0.04 * (high - low) or max(1e-3, abs(high) * 0.01)
        self.set_ylimits(low - margin, high + margin)
        # Before the curves, which then pass over the lines; textual-plot's own vertical lines would hide them.
        self._upright(marks, "┊", "bright_black")
        self._upright([cursor] if cursor is not None else [], "│", "bold")
        for steps, values, look in prepared:
            if look.marker:
                self.scatter(steps, values, marker=look.marker, marker_style=look.colour)
            elif len(steps) == 1:
                self.scatter(steps, values, marker_style=look.colour, hires_mode=HiResMode.BRAILLE)
            else:
                self.plot(steps, values, line_style=look.colour, hires_mode=HiResMode.BRAILLE)
        if missing:
            self.scatter(missing, [high] * len(missing), marker="x", marker_style="bold red")

    def _upright(self, steps: Sequence[float], marker: str, style: str) -> None:
        """Vertical lines at these steps: one marker a row of cells."""
        rows = max(1, self.size.height - self.margin_bottom - 2)
        low, high = self._y_min, self._y_max
        heights = [low + (row + 0.5) * (high - low) / rows for row in range(rows)]
        for step in steps:
            self.scatter([step] * rows, heights, marker=marker, marker_style=style)

    # --- the mouse; textual-plot's own handlers, which change limits behind our back, are kept from the events

    def _step_at(self, event: MouseEvent) -> float | None:
        canvas = self.query_one("#plot", Canvas)
        x = event.screen_x - canvas.region.x
        return self.get_coordinate_from_pixel(x, 1)[0] if 0 <= x < canvas.size.width else None

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        self._zoomed(event, 1.25)  # towards one is nearer, as on maps

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        self._zoomed(event, 0.8)

    def _zoomed(self, event: MouseEvent, factor: float) -> None:
        event.prevent_default()
        event.stop()
        step = self._step_at(event)
        if step is not None:
            self.post_message(self.Zoomed(factor, step))

    def on_mouse_move(self, event: MouseMove) -> None:
        event.prevent_default()
        if event.button:
            self.post_message(self.Dragged(event.delta_x))
        else:
            self.post_message(self.Hovered(self._step_at(event)))

    def on_leave(self, event: Leave) -> None:
        if not self.is_mouse_over:
            self.post_message(self.Hovered(None))
