"""A training run's curves from metrics.jsonl, in time and memory that do not depend on the length of the run.

A long file is sampled: lines at evenly spaced places are read by seeking, with a few neighbours each, so that the curve
keeps its noise; the last part is read whole, so that the newest values are exact. `read_window` then reads a part of the run
in as much detail as a screen can show, down to every record. Validations are rare among the records, so a sample would miss
most of them: `read_validations` finds them all.
"""

from __future__ import annotations

import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.runs.records import json_records

NAMES = ("loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "mfu", "step_ms", "val_bits_per_byte")
RARE = ("val_loss", "val_bits_per_byte")
WHOLE_LIMIT = 1 << 20
"""A file, or a window of one, up to so many bytes is read whole."""
NEIGHBOURHOOD = 2048
SAMPLES = 1200
BLOCK = 1 << 22
KEPT = 3000
"""Points of a column that are kept at least; twice as many, and the newest ones as they came, at most."""
NEWEST = 1024
ANCHOR_BYTES = 1 << 18


@dataclass
class Column:
    """One curve: (steps[i], values[i]) by rising step; NaN where the value was not a number.

    Points that are too many to keep are thinned: of each group of neighbours the smallest and the largest value stay, and one
    that is not a number, so that peaks and gaps outlive the thinning.
    """

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    stride: int = 1
    """Records for which one thinned point stands."""
    _newest: int = 0
    """Points at the end that are not thinned."""

    def add(self, step: int, value: float) -> None:
        steps, values = self.steps, self.values
        while steps and steps[-1] >= step:  # a resumed attempt replaces the steps it does again
            steps.pop()
            values.pop()
            self._newest = max(0, self._newest - 1)
        steps.append(step)
        values.append(value)
        self._newest += 1
        if self._newest >= NEWEST and self.stride > 1:
            self._thin(len(steps) - self._newest, 2 * self.stride)
        if len(steps) - self._newest * (self.stride > 1) >= 2 * KEPT:
            self.stride *= 2
            self._thin(0, 4)

    def stand_for(self, records: int) -> None:
        """Say that the points so far are a sample of so many records; later ones are thinned to the same density."""
        self.stride, self._newest = max(self.stride, records // KEPT), 0

    def _thin(self, begin: int, group: int) -> None:
        steps, values = thinned(self.steps[begin:], self.values[begin:], group)
        self.steps[begin:], self.values[begin:] = steps, values
        self._newest = 0

    def copy(self) -> Column:
        return Column(self.steps[:], self.values[:], self.stride, self._newest)

    def part(self, first: float, last: float) -> tuple[array[int], array[float]]:
        """The points from step `first` to `last`, with one neighbour on either side, so that lines run on over the edge."""
        begin = max(0, bisect_left(self.steps, first) - 1)
        end = bisect_left(self.steps, last) + 2
        return self.steps[begin:end], self.values[begin:end]


def thinned(steps: array[int], values: array[float], group: int) -> tuple[array[int], array[float]]:
    """Of every `group` neighbours at most two: the smallest and the largest, or one number and one that is none."""
    kept_steps, kept_values = array("q"), array("d")
    for begin in range(0, len(steps), group):
        places = range(begin, min(begin + group, len(steps)))
        finite = [place for place in places if math.isfinite(values[place])]
        odd = [place for place in places if not math.isfinite(values[place])]
        if odd:
            chosen = {odd[0], *finite[:1]}
        else:
            chosen = {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
        for place in sorted(chosen):
            kept_steps.append(steps[place])
            kept_values.append(values[place])
    return kept_steps, kept_values


@dataclass
class Series:
    """The curves of one stage."""

    columns: dict[str, Column] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    """The newest value of each name of the records."""
    size: int = 0
    """Bytes of the file that are accounted for."""
    anchors: list[tuple[int, int]] = field(default_factory=list)
    """(byte, step) of records here and there, by rising byte: where to look for a step. Steps fall where a run was resumed."""
    sampled: bool = False
    """Whether records were left out in reading; validations are then missing until `read_validations`."""

    def add(self, record: dict[str, Any]) -> None:
        step = record.get("step")
        if not isinstance(step, int):
            return
        self.last.update(record)
        for name in NAMES:
            value = record.get(name, self)
            if value is None:
                self._column(name).add(step, math.nan)
            elif isinstance(value, (int, float)):
                self._column(name).add(step, float(value))

    def _column(self, name: str) -> Column:
        column = self.columns.get(name)
        if column is None:
            column = self.columns[name] = Column()
        return column

    def column(self, name: str) -> Column:
        """The curve of that name, empty where there is none."""
        return self.columns.get(name) or Column()

    @property
    def span(self) -> tuple[int, int]:
        """The first and the last step of all curves; (0, 0) where there are none."""
        ends = [(column.steps[0], column.steps[-1]) for column in self.columns.values() if column.steps]
        return (min(first for first, _ in ends), max(last for _, last in ends)) if ends else (0, 0)

    def copy(self) -> Series:
        """What another thread may read while this one grows."""
        columns = {name: column.copy() for name, column in self.columns.items()}
        return Series(columns, dict(self.last), self.size, list(self.anchors), self.sampled)

    def _anchor(self, byte: int, step: Any) -> None:
        if isinstance(step, int) and (not self.anchors or byte >= self.anchors[-1][0] + ANCHOR_BYTES):
            self.anchors.append((byte, step))
            if len(self.anchors) >= 4 * SAMPLES:
                del self.anchors[1::2]


def read_series(path: Path) -> Series:
    """The whole run in a few thousand points a curve. A missing file is an empty series."""
    series = Series()
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            series.sampled = size > WHOLE_LIMIT
            _sample(file, [(0, size)], series)
    except FileNotFoundError:
        return series
    return series


def extend_series(series: Series, path: Path) -> bool:
    """Add what was appended since; True if there was something. A file that shrank, or grew by very much, is read anew."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size == series.size:
                return False
            if size - series.size > 4 * WHOLE_LIMIT or size < series.size:
                fresh = read_series(path)
                vars(series).update(vars(fresh))
                return True
            data = os.pread(file.fileno(), size - series.size, series.size)
    except FileNotFoundError:
        return False
    return _take(series, data, series.size)


def read_window(path: Path, anchors: list[tuple[int, int]], first: int, last: int) -> Series:
    """The records of the steps from `first` to `last`: all of them where they fill at most `WHOLE_LIMIT` bytes, else evenly
    spaced ones with their neighbours. `anchors` are those of the series of the whole file.
    """
    series = Series()
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            ranges = _ranges(anchors, size, first, last)
            series.sampled = sum(end - begin for begin, end in ranges) > WHOLE_LIMIT
            _sample(file, ranges, series, wanted=lambda step: first <= step <= last)
    except FileNotFoundError:
        return series
    return series


def read_validations(path: Path, size: int, go_on: Callable[[], bool]) -> dict[str, Column]:
    """Every validation in the first `size` bytes, by searching the bytes for its name; {} when `go_on` turned false.

    450 MB take a third of a second from the page cache; the file is read in blocks so that other threads are not held up.
    """
    found = Series()
    position = 0
    try:
        with path.open("rb", buffering=0) as file:
            while position < size:
                if not go_on():
                    return {}
                block = os.pread(file.fileno(), min(BLOCK, size - position), position)
                whole = block.rfind(b"\n") + 1
                if not whole:
                    break
                for record in json_records(_lines_with(block[:whole], b'"val_loss"')):
                    found.add({name: record[name] for name in ("step", *RARE) if name in record})
                position += whole
    except FileNotFoundError:
        return {}
    return found.columns


def _lines_with(block: bytes, word: bytes) -> Iterator[bytes]:
    place = block.find(word)
    while place >= 0:
        end = block.find(b"\n", place)
        yield block[block.rfind(b"\n", 0, place) + 1 : end]
        place = block.find(word, end)


def _ranges(anchors: list[tuple[int, int]], size: int, first: int, last: int) -> list[tuple[int, int]]:
    """The parts of the file between neighbouring anchors that may hold steps of the window."""
    if not anchors:
        return [(0, size)]
    ranges: list[tuple[int, int]] = []
    bounds = [*anchors, (size, max(last, anchors[-1][1]))]
    if anchors[0][0] > 0:
        bounds.insert(0, (0, 0))
    for (begin, one), (end, other) in pairwise(bounds):
        # A fall of the step within the part means that it holds steps up to an unknown one before the fall.
        if (one <= last and first <= other) if one <= other else (one <= last or first <= other):
            if ranges and ranges[-1][1] == begin:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((begin, end))
    return ranges


def _sample(
    file: FileIO, ranges: list[tuple[int, int]], series: Series, wanted: Callable[[int], bool] | None = None
) -> None:
    """Add the records of these parts of the file: all where they are few, else the last bytes whole and samples before."""
    total = sum(end - begin for begin, end in ranges)
    descriptor = file.fileno()
    tail = total if total <= WHOLE_LIMIT else WHOLE_LIMIT // 2
    stride = max(NEIGHBOURHOOD, (total - tail) // SAMPLES)
    before_tail = total - tail
    passed = 0
    for begin, end in ranges:
        whole_from = max(begin, begin + before_tail - passed)
        for place in range(begin, min(whole_from, end), stride):
            data = os.pread(descriptor, min(NEIGHBOURHOOD, end - place), place)
            start = data.find(b"\n") + 1 if place else 0
            _take(series, data[start:], place + start, wanted)
        if whole_from < end:
            data = os.pread(descriptor, end - whole_from, whole_from)
            start = data.find(b"\n") + 1 if whole_from and not _line_begins(descriptor, whole_from) else 0
            _take(series, data[start:], whole_from + start, wanted)
        passed += end - begin
    if total > WHOLE_LIMIT:
        head = os.pread(descriptor, NEIGHBOURHOOD, ranges[0][0])
        records = total * head.count(b"\n") // NEIGHBOURHOOD
        for name in series.columns.keys() - RARE:
            series.columns[name].stand_for(records)


def _line_begins(descriptor: int, place: int) -> bool:
    return os.pread(descriptor, 1, place - 1) == b"\n"


def _take(series: Series, data: bytes, place: int, wanted: Callable[[int], bool] | None = None) -> bool:
    """Add the whole lines of `data`, which begins at byte `place`; True if there was one."""
    end = data.rfind(b"\n") + 1
    anchored = False
    for record in json_records(data[:end].split(b"\n")):
        step = record.get("step")
        if not anchored:
            series._anchor(place, step)
            anchored = True
        if wanted is None or (isinstance(step, int) and wanted(step)):
            series.add(record)
    series.size = place + end
    return end > 0
