"""A training run's curves from metrics.jsonl, read in time that does not depend on the length of the run.

A file of millions of steps is sampled: lines at evenly spaced places are read by seeking, with a few neighbours each, so
the curve keeps its noise; the last part is read whole, so the newest values are exact.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

WHOLE_LIMIT = 1 << 20
NEIGHBOURHOOD = 2048
SAMPLES = 1200


@dataclass
class Series:
    """Columns of equal meaning: `points[name]` is a list of (step, value); a value is None where it was not a number."""

    points: dict[str, list[tuple[int, float | None]]] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    """The newest value of each name."""
    size: int = 0
    """Bytes of the file that are accounted for."""

    def add(self, record: dict[str, Any]) -> None:
        step = record.get("step")
        if not isinstance(step, int):
            return
        self.last.update(record)
        for name, value in record.items():
            if name in NAMES and (value is None or isinstance(value, (int, float))):
                column = self.points.setdefault(name, [])
                while column and column[-1][0] >= step:  # a resumed attempt replaces the steps it does again
                    column.pop()
                column.append((step, float(value) if value is not None else None))


NAMES = ("loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "mfu", "step_ms", "val_bits_per_byte")


def read_series(path: Path) -> Series:
    """The whole run in at most a few thousand points. A missing file is an empty series."""
    series = Series()
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for record in _records(file, size):
                series.add(record)
            series.size = size
    except FileNotFoundError:
        pass
    return series


def extend_series(series: Series, path: Path) -> bool:
    """Add what was appended since; True if there was something. A file that shrank is read anew by the caller."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size - series.size > 4 * WHOLE_LIMIT or size < series.size:
                fresh = read_series(path)
                series.points, series.last, series.size = fresh.points, fresh.last, fresh.size
                return True
            file.seek(series.size)
            data = file.read(size - series.size)
    except FileNotFoundError:
        return False
    end = data.rfind(b"\n") + 1
    for record in _parse(data[:end]):
        series.add(record)
    series.size += end
    return end > 0


def _records(file: BinaryIO, size: int) -> Iterator[dict[str, Any]]:
    if size <= WHOLE_LIMIT:
        yield from _parse(file.read())
        return
    tail = size - WHOLE_LIMIT // 2
    stride = max(NEIGHBOURHOOD, tail // SAMPLES)
    for place in range(0, tail, stride):
        file.seek(place)
        block = file.read(NEIGHBOURHOOD)
        start = block.find(b"\n") + 1 if place else 0
        yield from _parse(block[start : block.rfind(b"\n") + 1])
    file.seek(tail)
    block = file.read()
    yield from _parse(block[block.find(b"\n") + 1 :])


def _parse(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        if line:
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # the end of the file is still being written
            if isinstance(record, dict):
                yield record
