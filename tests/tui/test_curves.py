"""What a chart draws of a curve."""

from __future__ import annotations

import math

import pytest

from core.runs.series import Column, Series
from tui.curves import Curve, gaps, marks, moving_average, pieces, smoothing
from tui.widgets.small_chart import bar_heights


def column(values: list[float], every: int = 1) -> Column:
    made = Column()
    for place, value in enumerate(values):
        made.add(place * every, value)
    return made


def test_a_curve_is_broken_where_a_value_is_no_number() -> None:
    curve = Curve([1, 2, 3, 4, 5, 6], [1.0, math.nan, 3.0, 4.0, math.inf, 6.0])
    assert [(list(part.steps), list(part.values)) for part in pieces(curve, 50)] == [
        ([1], [1.0]),
        ([3, 4], [3.0, 4.0]),
        ([6], [6.0]),
    ]
    assert gaps(curve) == [2, 5]
    assert pieces(Curve([], []), 50) == []
    assert pieces(Curve([1], [math.nan]), 50) == []


def test_a_thinned_curve_keeps_its_peaks_and_its_order() -> None:
    values = [1.0] * 10_000
    values[1234], values[8765] = 50.0, -50.0
    (part,) = pieces(Curve(range(10_000), values), 40)
    assert len(part.steps) <= 4 * 40
    assert max(part.values) == 50.0
    assert min(part.values) == -50.0
    assert list(part.steps) == sorted(set(part.steps))


def test_a_broken_curve_is_thinned_as_a_whole() -> None:
    values = [math.nan if place % 100 == 50 else 1.0 for place in range(10_000)]
    assert sum(len(part.steps) for part in pieces(Curve(range(10_000), values), 40)) < 1000


def test_the_average_goes_by_steps_and_not_by_points() -> None:
    values = [math.sin(step / 300) for step in range(3000)]
    every = moving_average(column(values), 100)
    tenth = moving_average(column(values[::10], every=10), 100)
    assert tenth[-1] == pytest.approx(every[2990], abs=0.02)
    constant = moving_average(column([2.0, math.nan, 2.0]), 10)
    assert list(constant) == [2.0, 2.0, 2.0]
    assert list(moving_average(column([1.0]), 10, begin=5.0)) == [5.0]


def test_the_average_looks_back_over_a_round_number_of_steps() -> None:
    def over(last: int) -> int:
        return smoothing(Series({"loss": Column(column([1.0, 1.0], every=last).steps, column([1.0, 1.0]).values)}))

    assert [over(last) for last in (10, 400, 4000, 2_000_000)] == [5, 10, 100, 50_000]


def test_marks_are_thinned_but_the_newest_stays() -> None:
    steps = list(range(100, 100_001, 100))
    chosen = marks(steps, 0, 100_000, 12)
    assert len(chosen) <= 12
    assert chosen[-1] == 100_000
    assert marks(steps, 950, 1250, 12) == [1000, 1100, 1200]


def test_bars_stand_for_means_and_gaps_for_no_number() -> None:
    assert bar_heights([0.0, 1.0], 2, 8) == [1, 8]
    assert bar_heights([5.0, 5.0], 2, 8) == [5, 5]
    assert bar_heights([0.0, math.nan, 1.0], 3, 8) == [1, None, 8]
    assert bar_heights([50.0], 1, 8, from_zero=True, top=100.0) == [5]
    assert len(bar_heights(list(range(1000)), 30, 16)) == 30
    assert bar_heights([], 30, 16) == []
