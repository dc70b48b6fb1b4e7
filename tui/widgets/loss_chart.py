"""The loss of a stage: training, its moving average, validation; zoom, pan, a cursor with the values at its step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import DescendantBlur, DescendantFocus, Resize
from textual.widgets import Static

from core.language import tr, tr_later
from core.quantities import count
from core.runs.series import Column, Series
from tui.curves import Curve, gaps, marks, moving_average, smoothing
from tui.messages import Newest
from tui.status_marks import ascii_only
from tui.widgets.loss_plot import Look, LossPlot

NARROWEST = 10
"""Steps that a view shows at least."""
CELLS_A_MARK = 5


class Values(Static, can_focus=True):
    """The row above the plot. It has the focus for the whole chart, because a focus that moves restyles and redraws all that
    is within the widget that has it, and the plot is slow to draw.
    """

    DEFAULT_CSS = """
    Values { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    Values:focus { background: $boost; }
    """


class LossChart(Vertical):
    """Shows the whole run and follows it until one zooms or moves; `0` follows again."""

    DEFAULT_CSS = """
    LossChart { height: 1fr; }
    LossChart #no-curves { height: 1fr; content-align: center middle; color: $text-muted; }
    LossChart LossPlot { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "left",
            "point(-1)",
            tr_later("Value"),
            key_display="←→",
            tooltip=tr_later("Move the cursor; the values at its step stand above."),
        ),
        Binding("right", "point(1)", show=False),
        Binding(
            "plus,equals_sign",
            "zoom(0.5)",
            tr_later("Zoom"),
            key_display="+",
            tooltip=tr_later("Show fewer steps, around the cursor."),
        ),
        Binding("minus", "zoom(2.0)", tr_later("Zoom out"), show=False, tooltip=tr_later("Show more steps.")),
        Binding(
            "less_than_sign,comma",
            "pan(-0.5)",
            tr_later("Earlier"),
            show=False,
            tooltip=tr_later("Move half a view to earlier steps."),
        ),
        Binding(
            "greater_than_sign,full_stop",
            "pan(0.5)",
            tr_later("Later"),
            show=False,
            tooltip=tr_later("Move half a view to later steps."),
        ),
        Binding(
            "y",
            "log_scale",
            tr_later("Log scale"),
            tooltip=tr_later("Show the loss on a logarithmic scale, or on a linear one."),
        ),
        Binding(
            "0,escape",
            "whole",
            tr_later("Whole run"),
            show=False,
            tooltip=tr_later("Show the whole run and follow it."),
        ),
    ]

    class ViewChanged(Newest):
        """Other steps are seen; None when it is the whole run."""

        def __init__(self, steps: tuple[int, int] | None) -> None:
            super().__init__()
            self.steps = steps

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.series = Series()
        self.checkpoints: tuple[int, ...] = ()
        self.log_scale = False
        self.cursor: float | None = None
        """The step that the values are shown of; the newest when None."""
        self.view: tuple[float, float] | None = None
        """The first and the last step that are seen; the whole run when None."""
        self._detail: Series | None = None
        self._detail_steps = (0, 0)
        self._average = Column()
        self._over = 1
        self._hovering = False
        self._missing = False
        self._plot: LossPlot | None = None

    def compose(self) -> ComposeResult:
        yield Values(id="values", markup=False)
        self._plot = LossPlot()
        yield self._plot
        yield Static(id="no-curves", markup=False)

    def on_mount(self) -> None:
        self._draw()

    # --- what it is given

    def show(self, series: Series, checkpoints: tuple[int, ...], otherwise: str = "") -> None:
        """Draw these curves; where there are none, say `otherwise`."""
        self.series, self.checkpoints = series, checkpoints
        self.query_one("#no-curves", Static).update(otherwise, layout=False)
        self._over = smoothing(series)
        loss = series.column("loss")
        self._average = Column(loss.steps, moving_average(loss, self._over))
        self._draw()

    def show_detail(self, detail: Series, steps: tuple[int, int]) -> None:
        """Draw these records where their steps cover what is seen."""
        self._detail, self._detail_steps = detail, steps
        self._draw()

    def clear(self) -> None:
        """Another stage."""
        self.series, self.checkpoints, self.cursor, self.view, self._detail = Series(), (), None, None, None
        self._average = Column()
        self._draw()

    # --- the view

    @property
    def is_empty(self) -> bool:
        """Whether there is no curve to draw."""
        return not (self.series.column("loss").steps or self.series.column("val_loss").steps)

    @property
    def seen(self) -> tuple[float, float]:
        """The first and the last step that are seen."""
        if self.view is not None:
            return self.view
        first, last = self._span()
        return float(first), float(max(last, first + 1))

    def _span(self) -> tuple[int, int]:
        ends = [
            (column.steps[0], column.steps[-1])
            for column in (self.series.column("loss"), self.series.column("val_loss"))
            if column.steps
        ]
        return (min(first for first, _ in ends), max(last for _, last in ends)) if ends else (0, 1)

    def _look_at(self, first: float, last: float) -> None:
        """Show these steps, within the run."""
        whole_first, whole_last = self._span()
        width = min(max(last - first, NARROWEST), max(NARROWEST, whole_last - whole_first))
        if width >= whole_last - whole_first:
            self._see(None)
            return
        first = min(max(first, whole_first), whole_last - width)
        self._see((first, first + width))

    def _see(self, view: tuple[float, float] | None) -> None:
        if view == self.view:
            return
        self.view = view
        self._draw()
        self.post_message(self.ViewChanged(None if view is None else (math.floor(view[0]), math.ceil(view[1]))))

    def action_zoom(self, factor: float) -> None:
        first, last = self.seen
        around = self.cursor if self.cursor is not None and first <= self.cursor <= last else last
        if self.view is not None and self.cursor is None:
            around = (first + last) / 2
        self._zoom(factor, around)

    def _zoom(self, factor: float, around: float) -> None:
        first, last = self.seen
        self._look_at(around - (around - first) * factor, around + (last - around) * factor)

    def action_pan(self, share: float) -> None:
        first, last = self.seen
        self._look_at(first + share * (last - first), last + share * (last - first))

    def action_whole(self) -> None:
        self.cursor = None
        self._see(None)
        self._draw()

    def action_log_scale(self) -> None:
        self.log_scale = not self.log_scale
        self._draw()

    def action_point(self, cells: int) -> None:
        """Move the cursor by a cell; at the edge the view moves with it."""
        first, last = self.seen
        step = (last - first) / self._cells()
        at = self.cursor if self.cursor is not None and first <= self.cursor <= last else (last if cells < 0 else first)
        whole_first, whole_last = self._span()
        target = at + cells * max(step, 1.0)
        self.cursor = float(min(max(target, whole_first), whole_last))
        if self.view is not None and not first <= self.cursor <= last:
            self._look_at(first + cells * (last - first) / 4, last + cells * (last - first) / 4)
        self._draw()

    def _cells(self) -> int:
        return self._plot.cells if self._plot else 1

    # --- drawing

    @on(Resize)
    def _draw(self) -> None:
        plot = self._plot
        if plot is None or not plot.is_mounted or not self.display:
            return
        valid, empty = self.series.column("val_loss"), self.is_empty
        plot.display = not empty
        self.query_one("#no-curves").display = empty
        self.query_one(Values).display = not empty
        if empty:
            return
        first, last = self.seen
        train, average = self._visible(first, last)
        by_shape = ascii_only() or self.app.no_color
        looks = self._looks(by_shape)
        valid_seen = Curve(*valid.part(first, last))
        curves = [
            (train, Look(looks["loss"][1], "." if ascii_only() else "")),
            (average, Look(looks["average"][1], looks["average"][0] if by_shape else "")),
            (valid_seen, Look(looks["val_loss"][1], looks["val_loss"][0])),
        ]
        cells = self._cells()
        missing = marks(gaps(train), first, last, cells)
        plot.draw(
            curves,
            (first, last),
            self.log_scale,
            marks(self.checkpoints, first, last, max(1, cells // CELLS_A_MARK)),
            missing,
            self.cursor if self.cursor is not None and first <= self.cursor <= last else None,
        )
        self._missing = bool(missing)
        self._show_values()

    @on(DescendantFocus)
    @on(DescendantBlur)
    def _show_values(self) -> None:
        if not self.is_empty:
            self.query_one(Values).update(self._values(), layout=False)

    def _looks(self, by_shape: bool) -> dict[str, tuple[str, str]]:
        """(marker in the plot and the legend, colour) of each curve."""
        if ascii_only():
            return {"loss": (".", "cyan"), "average": ("*", "yellow"), "val_loss": ("O", "magenta")}
        return {"loss": ("⠒", "cyan"), "average": ("•" if by_shape else "━", "yellow"), "val_loss": ("◆", "magenta")}

    def _visible(self, first: float, last: float) -> tuple[Curve, Curve]:
        """Training and its average over the steps that are seen, from the records themselves where they are at hand."""
        loss, average = self.series.column("loss"), self._average
        detail = self._detail
        if (
            self.view is not None
            and detail is not None
            and self._detail_steps[0] <= first
            and last <= self._detail_steps[1]
        ):
            records = detail.column("loss")
            if records.steps:
                place = bisect_right(average.steps, records.steps[0]) - 1
                begin = average.values[place] if place >= 0 and math.isfinite(average.values[place]) else None
                average = Column(records.steps, moving_average(records, self._over, begin))
                loss = records
        return Curve(*loss.part(first, last)), Curve(*average.part(first, last))

    def _values(self) -> Text:
        """The legend, with the values at the cursor, or the newest ones."""
        looks = self._looks(ascii_only() or self.app.no_color)
        step = self.cursor
        first, last = self.seen
        train, average = self._visible(first, last)
        if step is None:
            step = float(self._span()[1])
        text = Text("› " if self.query_one(Values).has_focus else "", no_wrap=True)
        near = train.at(step)
        if near is not None:
            style = "bold reverse" if self.cursor is not None else ""
            text.append(tr("step {step}", step=f"{near[0]:,}"), style=style).append("  ")
        for name, title, curve in (
            ("loss", tr("train"), train),
            ("average", tr("EMA {steps}", steps=count(self._over)), average),
            ("val_loss", tr("valid"), Curve(*self._whole("val_loss"))),
        ):
            point = curve.at(step)
            if point is None:
                continue
            value = f"{point[1]:.4f}" if math.isfinite(point[1]) else "NaN"
            text.append(looks[name][0] + " ", style=looks[name][1])
            text.append(f"{title} ").append(value, style="bold").append("  ")
        if self.log_scale:
            text.append(tr("log scale") + "  ")
        if self._missing:
            text.append("x ", style="bold red").append("NaN  ")
        if self.checkpoints:
            text.append(("|" if ascii_only() else "┊") + " ", style="bright_black").append(tr("checkpoint"))
        return text

    def _whole(self, name: str) -> tuple[Sequence[int], Sequence[float]]:
        column = self.series.column(name)
        return column.steps, column.values

    # --- the mouse

    @on(LossPlot.Zoomed)
    def _wheel(self, event: LossPlot.Zoomed) -> None:
        event.stop()
        self._zoom(event.factor, event.step)

    @on(LossPlot.Dragged)
    def _pulled(self, event: LossPlot.Dragged) -> None:
        event.stop()
        self.action_pan(-event.cells / self._cells())

    @on(LossPlot.Hovered)
    def _pointed(self, event: LossPlot.Hovered) -> None:
        event.stop()
        if event.step is not None or self._hovering:
            self._hovering = event.step is not None
            self.cursor = event.step
            self._draw()
