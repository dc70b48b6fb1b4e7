"""Curves of runs of any length: nothing that matters is thinned away, and the newest values are exact."""

from __future__ import annotations

import math
import random
from pathlib import Path

import orjson
import pytest

from core.runs.series import KEPT, NEWEST, Column, extend_series, read_series, read_validations, read_window, thinned


def record(step: int, **values: object) -> bytes:
    full = {"time": 1.7e9 + step, "total": 10**6, "step": step, "loss": 2 + 8 / (1 + step), "lr": 1e-3, "mfu": None}
    return orjson.dumps(full | values, option=orjson.OPT_APPEND_NEWLINE)


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60,000 steps, a validation every 1,000."""
    path = tmp_path_factory.mktemp("long") / "metrics.jsonl"
    with path.open("wb") as file:
        for step in range(1, 60_001):
            file.write(record(step, **({"val_loss": float(step)} if step % 1000 == 0 else {})))
    return path


def test_a_short_run_is_read_record_by_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(record(step) for step in range(1, 501)))
    series = read_series(path)
    assert list(series.column("loss").steps) == list(range(1, 501))
    assert series.last["step"] == 500
    assert not series.sampled


def test_a_missing_file_is_an_empty_series(tmp_path: Path) -> None:
    series = read_series(tmp_path / "none.jsonl")
    assert series.span == (0, 0)
    assert not extend_series(series, tmp_path / "none.jsonl")


def test_what_is_no_number_stays_as_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(record(1) + record(2, loss=None) + record(3))
    values = read_series(path).column("loss").values
    assert [math.isnan(value) for value in values] == [False, True, False]


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        record(1) + b'{"step": 2, "lo' + b"\n[1]\nnull\n\xff\xfe\n" + b'{"step": "3", "loss": 1}\n' + record(4)
    )
    assert list(read_series(path).column("loss").steps) == [1, 4]


def test_what_is_appended_is_added_and_a_half_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(record(1))
    series = read_series(path)
    half = record(2)
    with path.open("ab") as file:
        file.write(half[:20])
        file.flush()
        assert not extend_series(series, path)
        file.write(half[20:])
        file.flush()
        assert extend_series(series, path)
    assert list(series.column("loss").steps) == [1, 2]
    path.write_bytes(record(7))  # shorter: another file
    assert extend_series(series, path)
    assert list(series.column("loss").steps) == [7]


def test_a_resumed_attempt_replaces_the_steps_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(record(step, loss=1.0) for step in range(1, 11)))
    series = read_series(path)
    with path.open("ab") as file:
        file.write(b"".join(record(step, loss=2.0) for step in range(6, 9)))
    extend_series(series, path)
    column = series.column("loss")
    assert list(column.steps) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert list(column.values) == [1.0] * 5 + [2.0] * 3


def test_thinning_keeps_peaks_and_gaps() -> None:
    chance = random.Random(1)
    column = Column()
    peaks = {777: 99.0, 31_234: -99.0, 55_555: math.nan}
    for step in range(100_000):
        column.add(step, peaks.get(step, chance.random()))
    assert KEPT / 2 < len(column.steps) < 2 * KEPT + NEWEST
    kept = dict(zip(column.steps, column.values, strict=True))
    assert kept[777] == 99.0
    assert kept[31_234] == -99.0
    assert math.isnan(kept[55_555])
    assert list(column.steps) == sorted(column.steps)
    # Evenly: a tenth of the run has about a tenth of the points.
    tenth = sum(10_000 <= step < 20_000 for step in column.steps)
    assert tenth == pytest.approx(len(column.steps) / 10, rel=0.3)


def test_a_group_is_thinned_to_its_extremes_in_their_order() -> None:
    column = Column()
    for step, value in enumerate([1.0, 5.0, -2.0, 3.0]):
        column.add(step, value)
    steps, values = thinned(column.steps, column.values, 4)
    assert list(steps) == [1, 2]
    assert list(values) == [5.0, -2.0]


def test_a_long_run_is_a_sample_whose_end_is_exact(long_file: Path) -> None:
    series = read_series(long_file)
    column = series.column("loss")
    assert series.sampled
    assert len(column.steps) < 2 * KEPT + NEWEST
    assert list(column.steps) == sorted(set(column.steps))
    assert column.steps[-1] == 60_000
    for step, value in zip(column.steps, column.values, strict=True):
        assert value == 2 + 8 / (1 + step)
    gaps = [after - before for before, after in zip(column.steps, column.steps[1:], strict=False)]
    assert column.steps[0] == 1
    assert max(gaps) < 300


def test_a_sampled_series_keeps_its_bounds_while_the_run_goes_on(long_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(long_file.read_bytes())
    series = read_series(path)
    for begin in range(60_001, 120_001, 5000):
        with path.open("ab") as file:
            file.write(b"".join(record(step) for step in range(begin, begin + 5000)))
        extend_series(series, path)
    column = series.column("loss")
    assert len(column.steps) < 2 * KEPT + NEWEST
    assert column.steps[-1] == 120_000
    halves = [sum(begin < step <= begin + 60_000 for step in column.steps) for begin in (0, 60_000)]
    assert 0.2 < halves[0] / halves[1] < 5


def test_a_window_shows_every_record(long_file: Path) -> None:
    anchors = read_series(long_file).anchors
    window = read_window(long_file, anchors, 30_100, 30_900)
    assert list(window.column("loss").steps) == list(range(30_100, 30_901))
    assert not window.sampled
    at_the_end = read_window(long_file, anchors, 59_900, 61_000)
    assert list(at_the_end.column("loss").steps) == list(range(59_900, 60_001))
    at_the_start = read_window(long_file, anchors, 0, 50)
    assert list(at_the_start.column("loss").steps) == list(range(1, 51))


def test_a_wide_window_is_sampled_within_it(long_file: Path) -> None:
    window = read_window(long_file, read_series(long_file).anchors, 10_000, 50_000)
    steps = window.column("loss").steps
    assert window.sampled
    assert 10_000 <= steps[0] < 10_300
    assert 49_000 < steps[-1] <= 50_000
    assert len(steps) > 2000


def test_a_window_holds_what_a_resumed_attempt_made_of_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        for step in range(1, 20_001):
            file.write(record(step, loss=1.0))
        for step in range(9_001, 30_001):
            file.write(record(step, loss=2.0))
    window = read_window(path, read_series(path).anchors, 8_900, 9_100)
    kept = dict(zip(window.column("loss").steps, window.column("loss").values, strict=True))
    assert kept == {step: 1.0 if step <= 9000 else 2.0 for step in range(8_900, 9_101)}


def test_every_validation_of_a_long_run_is_found(long_file: Path) -> None:
    series = read_series(long_file)
    found = read_validations(long_file, series.size, lambda: True)["val_loss"]
    assert list(found.steps) == list(range(1000, 60_001, 1000))
    assert list(found.values) == [float(step) for step in found.steps]
    assert read_validations(long_file, series.size, lambda: False) == {}
