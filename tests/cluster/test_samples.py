"""Reading samples back: what each node is like now, how old that is, and how it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from core.cluster import sample_files, samples
from core.cluster.agent_stream import Interruption
from core.cluster.sample_files import SampleFiles, append_line, file_stem
from core.cluster.samples import NodeSamples
from core.runs.directory import RunDirectory

from .test_sample_files import sample

SLOW: dict[str, Any] = {"processes": [], "gpus": []}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


@pytest.fixture
def written(run: RunDirectory) -> SampleFiles:
    return SampleFiles(run, lambda kind, **values: None)


def test_a_run_without_samples_has_no_nodes(run: RunDirectory) -> None:
    assert NodeSamples(run).look(0) == []
    assert NodeSamples(run).history("n", 60) == []


@pytest.mark.parametrize(
    ("age", "status"),
    [(0, "ok"), (-5, "ok"), (6, "ok"), (6.1, "stale"), (30, "stale"), (30.1, "lost"), (86400, "lost")],
)
def test_a_node_is_stale_at_three_periods_and_lost_at_30_s(
    run: RunDirectory, written: SampleFiles, age: float, status: str
) -> None:
    written.sample("n", sample(1000.0))
    (view,) = NodeSamples(run).look(1000.0 + age)
    assert view.status == status
    assert view.age_s == pytest.approx(max(0, age))


def test_a_look_sees_what_was_written_since(run: RunDirectory, written: SampleFiles) -> None:
    reader = NodeSamples(run)
    written.sample("n2", sample(1.0, host="n2", slow=SLOW))
    written.sample("n1", sample(1.0, host="n1"))
    assert [view.host for view in reader.look(1.0)] == ["n1", "n2"]
    for number in range(2, 9):
        written.sample("n2", sample(float(number), host="n2"))
        first, second = reader.look(float(number))
        assert first.sample
        assert second.sample
        assert (first.sample["time"], second.sample["time"]) == (1.0, float(number))
        assert second.slow == SLOW, "the last one that was seen"
        assert first.slow is None


def test_only_what_is_new_is_read(run: RunDirectory, written: SampleFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    pread = samples.os.pread

    def counted(descriptor: int, count: int, offset: int) -> bytes:
        reads.append(count)
        return pread(descriptor, count, offset)

    for number in range(1000):
        written.sample("n", sample(float(number)))
    monkeypatch.setattr(samples.os, "pread", counted)
    reader = NodeSamples(run)
    reader.look(1000.0)
    assert reads == [samples.TAIL_BYTES]
    reader.look(1000.0)
    assert len(reads) == 1
    line = orjson.dumps(sample(1000.0), option=orjson.OPT_APPEND_NEWLINE)
    append_line(run.nodes / "n.jsonl", line)
    reads.clear()  # of append_line
    reader.look(1000.0)
    assert reads == [len(line)]


def test_a_line_that_is_being_written_is_taken_when_it_is_whole(run: RunDirectory, written: SampleFiles) -> None:
    written.sample("n", sample(1.0))
    reader = NodeSamples(run)
    line = orjson.dumps(sample(2.0), option=orjson.OPT_APPEND_NEWLINE)
    with (run.nodes / "n.jsonl").open("ab", buffering=0) as file:
        for byte in line[:-1]:
            file.write(bytes([byte]))
            (view,) = reader.look(2.0)
            assert view.sample
            assert view.sample["time"] == 1.0
        file.write(b"\n")
    (view,) = reader.look(2.0)
    assert view.sample
    assert view.sample["time"] == 2.0


def test_a_damaged_line_hides_nothing_else(run: RunDirectory, written: SampleFiles) -> None:
    written.sample("n", sample(1.0))
    for damage in (b"\x00\xff\n", b'{"time": 3, \n', b"[]\n", b"\n", b'{"time":2,"slow":{\n'):
        append_line(run.nodes / "n.jsonl", damage)
    (view,) = NodeSamples(run).look(1.0)
    assert view.sample
    assert view.sample["time"] == 1.0
    assert len(NodeSamples(run).history("n", 1)) == 1


def test_the_ring_is_followed_when_it_turns(
    run: RunDirectory, written: SampleFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_files, "RING_BYTES", 3000)
    reader = NodeSamples(run)
    for number in range(100):
        written.sample("n", sample(float(number), slow=SLOW if number == 0 else None))
        (view,) = reader.look(float(number))
        assert view.sample
        assert view.sample["time"] == number
        assert view.slow == SLOW


def test_how_an_agent_ended_is_told_until_it_is_back(run: RunDirectory, written: SampleFiles) -> None:
    reader = NodeSamples(run)
    written.interruption(Interruption("n", "no contact", "Permission denied", 1.0, 1, True))
    (view,) = reader.look(2.0)
    assert (view.host, view.sample, view.error, view.status) == ("n", None, "no contact: Permission denied", "stale")
    assert reader.look(40.0)[0].status == "lost"
    written.sample("n", sample(41.0))
    written.interruption(Interruption("n", "agent ended", "killed by SIGKILL", 42.0, 2, True))
    (view,) = reader.look(43.0)
    assert view.sample
    assert (view.sample["time"], view.error, view.status) == (41.0, "agent ended: killed by SIGKILL", "ok")
    written.sample("n", sample(44.0))
    assert reader.look(44.0)[0].error == ""


def test_a_hostile_host_is_read_back_by_its_own_name(run: RunDirectory, written: SampleFiles) -> None:
    for host in ("10.0.0.1", "10.0.0", "../x", "a.history"):
        written.sample(host, sample(1.0, host=host))
    reader = NodeSamples(run)
    assert [view.host for view in reader.look(1.0)] == ["../x", "10.0.0", "10.0.0.1", "a.history"]
    assert [one["host"] for one in reader.history("10.0.0.1", 5)] == ["10.0.0.1"]
    assert NodeSamples(run).history("../x", 5)[0]["host"] == "../x"


def test_history_is_every_sample_of_half_an_hour_and_a_mean_a_minute_before(
    run: RunDirectory, written: SampleFiles
) -> None:
    for number in range(0, 3 * 3600, 10):
        written.sample("n", sample(float(number), slow=SLOW if number % 30 == 0 else None))
    written.interruption(Interruption("n", "agent ended", "killed", 10801.0, 1, True))
    reader = NodeSamples(run)
    last = 3 * 3600 - 10
    assert [one["time"] for one in reader.history("n", 5)] == list(range(last - 300, last + 1, 10))
    two_hours = reader.history("n", 120)
    times = [one["time"] for one in two_hours]
    assert times == sorted(times)
    assert times[0] >= last - 7200
    recent = [one for one in two_hours if one["time"] >= last - 1800]
    older = [one for one in two_hours if one["time"] < last - 1800]
    assert {one["period"] for one in recent} == {2.0}
    assert len(recent) == 181
    assert {one["period"] for one in older} == {60.0}
    assert len(older) == 90


def test_history_goes_back_over_the_turn_of_the_ring(
    run: RunDirectory, written: SampleFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_files, "RING_BYTES", 20_000)
    for number in range(60):
        written.sample("n", sample(float(number)))
    ring = (run.nodes / "n.jsonl").read_bytes().count(b"\n")
    assert 0 < ring < 60
    times = [one["time"] for one in NodeSamples(run).history("n", 10)]
    assert times == list(range(int(times[0]), 60))
    assert len(times) > ring


def test_blocks_are_put_together_where_a_line_lies_across_two(run: RunDirectory, written: SampleFiles) -> None:
    for number in range(50):
        written.sample("n", sample(float(number)))
    path = run.nodes / f"{file_stem('n')}.jsonl"
    for block in (1, 7, 100, 999, 1 << 20):
        assert [one["time"] for one in samples._samples_backwards(path, block)] == list(range(49, -1, -1))
