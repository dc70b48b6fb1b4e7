"""What a chart draws of a run's curves: the part that is seen, thinned to its columns, with gaps where a value was no number."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.runs.series import Column, Series

SMOOTHED_SHARE = 50
"""The moving average looks back over this part of the run."""


@dataclass(frozen=True)
class Curve:
    """Points by rising step; NaN is a gap."""

    steps: Sequence[int]
    values: Sequence[float]

    def at(self, step: float) -> tuple[int, float] | None:
        """The point nearest to a step."""
        if not self.steps:
            return None
        right = bisect_left(self.steps, step)
        near = [place for place in (right - 1, right) if 0 <= place < len(self.steps)]
        place = min(near, key=lambda place: abs(self.steps[place] - step))
        return self.steps[place], self.values[place]


def pieces(curve: Curve, cells: int) -> list[Curve]:
    """The unbroken parts of a curve, each thinned to what `cells` columns can show of it: two dots side by side in a cell."""
    parts: list[Curve] = []
    begin = 0
    for place, value in enumerate([*curve.values, math.nan]):
        if math.isfinite(value):
            continue
        if place > begin:
            parts.append(Curve(curve.steps[begin:place], curve.values[begin:place]))
        begin = place + 1
    if not parts:
        return []
    span = max(1, curve.steps[-1] - curve.steps[0])
    return [_thin(part, max(1, round(2 * cells * (part.steps[-1] - part.steps[0]) / span))) for part in parts]


def _thin(curve: Curve, buckets: int) -> Curve:
    """The smallest and the largest value of each bucket of steps, in their order."""
    if len(curve.steps) <= 2 * buckets:
        return curve
    first, last = curve.steps[0], curve.steps[-1]
    steps: list[int] = []
    values: list[float] = []
    begin = 0
    for bucket in range(buckets):
        end = bisect_right(curve.steps, first + (last - first) * (bucket + 1) / buckets, lo=begin)
        if bucket == buckets - 1:
            end = len(curve.steps)
        if end <= begin:
            continue
        part = curve.values[begin:end]
        low = begin + min(range(len(part)), key=part.__getitem__)
        high = begin + max(range(len(part)), key=part.__getitem__)
        for place in sorted({low, high}):
            steps.append(curve.steps[place])
            values.append(curve.values[place])
        begin = end
    return Curve(steps, values)


def gaps(curve: Curve) -> list[int]:
    """The steps whose value was not a number."""
    return [step for step, value in zip(curve.steps, curve.values, strict=True) if not math.isfinite(value)]


def smoothing(series: Series) -> int:
    """Steps over which the moving average forgets to 1/e: a round number, about a fiftieth of the run so far, five at least."""
    first, last = series.span
    rough = max(5.0, (last - first) / SMOOTHED_SHARE)
    power = 10 ** math.floor(math.log10(rough))
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough))


def moving_average(column: Column, over: int, begin: float | None = None) -> array[float]:
    """Exponential moving average of a column, by steps and not by points, so that thinning hardly changes it.

    `begin` is the average before the first point. What is not a number is passed over.
    """
    averages = array("d")
    average = begin
    before = column.steps[0] if column.steps else 0
    for step, value in zip(column.steps, column.values, strict=True):
        if math.isfinite(value):
            weight = 1 - math.exp(-(step - before) / over)
            average = value if average is None else average + weight * (value - average)
            before = step
        averages.append(math.nan if average is None else average)
    return averages


def marks(steps: Iterable[int], first: float, last: float, most: int) -> list[int]:
    """Of the steps that are seen at most `most`, evenly chosen, the newest among them."""
    seen = [step for step in steps if first <= step <= last]
    if len(seen) <= most:
        return seen
    every = -(-len(seen) // max(1, most))
    return seen[::-1][::every][::-1]
