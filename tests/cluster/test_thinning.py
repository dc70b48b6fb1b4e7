"""A node's history never grows over its limit, and what is old in it is coarser, not gone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import orjson
import pytest

from core.cluster import sample_files
from core.cluster.sample_files import SampleFiles
from core.cluster.samples import NodeSamples
from core.cluster.thinning import merge, thin
from core.runs.directory import RunDirectory

from .test_agent_sample import GPU, SAMPLE


def line(minute: int, **values: Any) -> dict[str, Any]:
    """The history's line of one minute."""
    return {**SAMPLE, "time": 60.0 * minute, "period": 60.0, "samples": 30, **values}


def write(path: Path, lines: list[dict[str, Any]]) -> int:
    path.write_bytes(b"".join(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in lines))
    return path.stat().st_size


def read(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(one) for one in path.read_bytes().splitlines()]


def test_a_history_stays_within_its_limit_and_reaches_back_to_its_first_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 40_000
    monkeypatch.setattr(sample_files, "HISTORY_BYTES", limit)
    run = RunDirectory(tmp_path)
    written = SampleFiles(run, lambda kind, **values: None)
    minutes = 1200  # eight times what there is room for
    largest = 0
    for minute in range(minutes):
        for second in (0, 30):
            written.sample("n", {**SAMPLE, "time": 60.0 * minute + second, "cpu": float(minute), "seq": 0})
        if (path := run.nodes / "n.history.jsonl").exists():
            largest = max(largest, path.stat().st_size)
    written.close()
    lines = read(path)
    assert limit / 2 < largest <= limit
    assert path.stat().st_mode & 0o777 == 0o600
    assert sum(one["samples"] for one in lines) == 2 * minutes, "no sample is in no line"
    assert lines[0]["time"] <= 64 * 60, "the first of it is not gone"
    periods = [one["period"] for one in lines]
    assert set(periods[-len(periods) // 2 :]) == {60.0}, "the younger half is as it was"
    assert max(periods) <= 64 * 60.0, "the beginning is still a curve"
    times = [one["time"] for one in lines]
    assert times == sorted(times)
    total = sum(one["cpu"] * one["samples"] for one in lines)
    assert total == pytest.approx(2 * sum(range(minutes)), rel=1e-4), "means of means are means"
    assert NodeSamples(run).history("n", 10 * minutes)[0]["time"] == lines[0]["time"], "readers find it all"


def test_histories_that_are_full_at_the_same_time_are_thinned_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_files, "HISTORY_BYTES", 40_000)
    run = RunDirectory(tmp_path)
    written = SampleFiles(run, lambda kind, **values: None)
    thinned: list[tuple[float, str]] = []
    now = 0.0
    monkeypatch.setattr(sample_files, "thin", lambda path, limit: (thinned.append((now, path.name)), thin(path, limit)))
    nodes = [f"n{number}" for number in range(20)]
    for second in range(0, 120 * 60, 30):
        for number, node in enumerate(nodes):
            now = second + number / 10
            written.sample(node, {**SAMPLE, "time": now})
    times = [at for at, _ in thinned]
    assert {name for _, name in thinned} == {f"{node}.history.jsonl" for node in nodes}
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= sample_files.THIN_EVERY_S


def test_two_minutes_become_one_line_with_their_weighted_means_and_the_higher_temperature() -> None:
    first = line(
        1, cpu=10.0, samples=10, ib_rx=None, nvml_blocked_s=7.0, gpus=[{**GPU, "util": 100, "temperature": 80}]
    )
    second = line(
        2, cpu=40.0, samples=30, ib_rx=5, gpus=[{**GPU, "util": 20, "temperature": 60}, {**GPU, "index": 1, "util": 7}]
    )
    both = merge(first, second)
    assert (both["time"], both["period"], both["samples"]) == (120.0, 120.0, 40)
    assert (both["cpu"], both["ib_rx"], both["nvml_blocked_s"]) == (32.5, 5, 7.0)
    assert [(gpu["index"], gpu["util"], gpu["temperature"]) for gpu in both["gpus"]] == [(0, 40, 80), (1, 7, 1)]


def test_minutes_before_and_after_a_pause_of_the_run_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "n.history.jsonl"
    size = write(path, [line(minute) for minute in (0, 100, 101, 102, 500, 501, 502, 503, 504, 505, 506, 507)])
    thin(path, 2 * size)
    assert [(one["time"] / 60, one["period"] / 60) for one in read(path)] == [
        *[(0, 1), (101, 2), (102, 1), (501, 2), (502, 1)],
        *[(503, 1), (504, 1), (505, 1), (506, 1), (507, 1)],
    ]


def test_where_nothing_can_be_put_together_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "n.history.jsonl"
    size = write(path, [line(100 * minute) for minute in range(40)])
    thin(path, size)
    assert path.stat().st_size <= size * 3 // 4
    assert [one["time"] / 6000 for one in read(path)] == list(range(11, 40))


def test_damage_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "n.history.jsonl"
    whole = [orjson.dumps(line(minute)) for minute in range(6)]
    whole[1:1] = [b"\x00\xff", b"[]", b'{"time": 3']
    path.write_bytes(b"\n".join(whole) + b"\n")
    thin(path, 10 * path.stat().st_size)
    assert sum(one["samples"] for one in read(path)) == 180


def test_a_full_disk_leaves_the_history_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "n.history.jsonl"
    write(path, [line(minute) for minute in range(9)])
    before = path.read_bytes()
    (tmp_path / "n.history.jsonl.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        thin(path, len(before))
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["n.history.jsonl"]
