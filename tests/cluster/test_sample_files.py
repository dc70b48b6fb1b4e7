"""Samples on disk: bounded, private, averaged for weeks, and harmless when the disk is full or a host's name is hostile."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from core.cluster import sample_files
from core.cluster.agent_stream import Interruption
from core.cluster.sample_files import SampleFiles, append_line, file_stem
from core.runs.directory import RunDirectory

from .test_agent_sample import GPU, SAMPLE


def sample(time: float, **values: Any) -> dict[str, Any]:
    return {**SAMPLE, "time": time, **values}


def files(run: RunDirectory) -> SampleFiles:
    return SampleFiles(run, lambda kind, **values: None)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


HOSTILE = [
    "../../x",
    "/etc/x",
    "-rf",
    ".",
    "..",
    ".hidden",
    "a b",
    "$(touch X)",
    "a\nb",
    "",
    "あ",
    "n" * 300,
    "\udcff",
    "a;b",
]


@pytest.mark.parametrize("host", [*HOSTILE, "10.0.0.1", "a.history"], ids=repr)
def test_no_name_of_a_host_leaves_the_folder_or_meets_another_hosts_files(run: RunDirectory, host: str) -> None:
    written = files(run)
    written.sample("10.0.0", sample(1))
    written.sample("a", sample(1))
    before = {path.name: path.read_bytes() for path in run.nodes.iterdir()}
    written.sample(host, sample(2))
    written.close()
    assert [path for path in run.root.rglob("*") if path.is_file() and path.parent != run.nodes] == []
    for name, content in before.items():
        assert (run.nodes / name).read_bytes() == content
    assert (run.nodes / f"{file_stem(host)}.jsonl").read_bytes().count(b"\n") == 1


def test_different_hosts_have_different_files() -> None:
    hosts = [*HOSTILE, "a_b", "a-b", "_", "10.0.0.1", "10.0.0", "n" * 100]
    assert len({file_stem(host) for host in hosts}) == len(hosts)
    assert file_stem("node-01.cluster_a.example") == "node-01.cluster_a.example"


def test_the_ring_holds_the_newest_and_stays_within_two_files(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_files, "RING_BYTES", 5000)
    written = files(run)
    for number in range(200):
        written.sample("n", sample(number / 1000, seq=number))
    names = sorted(path.name for path in run.nodes.iterdir())
    assert names == ["n.1.jsonl", "n.jsonl"]
    lines = [orjson.loads(line) for name in names for line in (run.nodes / name).read_bytes().splitlines()]
    assert [line["seq"] for line in lines] == list(range(lines[0]["seq"], 200))
    assert all(path.stat().st_size <= 5000 for path in run.nodes.iterdir())
    assert (run.nodes / "n.1.jsonl").stat().st_size > 4000


def test_a_line_a_minute_holds_the_means_and_the_highest_temperature(run: RunDirectory) -> None:
    written = files(run)
    for number in range(61):  # two minutes and one sample
        gpu = {**GPU, "util": number % 2 * 100, "temperature": 50 + number % 30, "power": None}
        gpus = [gpu] if number != 5 else []
        written.sample(
            "n", sample(1000 + 2 * number, seq=number, gpus=gpus, cpu=float(number), ib_rx=None, slow={"x": 1})
        )
    first, second = map(orjson.loads, (run.nodes / "n.history.jsonl").read_bytes().splitlines())
    assert (first["time"], first["samples"], first["period"], first["slow"]) == (1058, 30, 60.0, None)
    assert first["cpu"] == sum(range(30)) / 30
    assert first["ib_rx"] is None
    assert first["gpus"][0]["temperature"] == 79
    assert first["gpus"][0]["power"] is None
    assert second["gpus"][0]["util"] == 50
    assert set(first) == {*SAMPLE, "samples"}, "the same names as in a sample"
    written.close()
    assert (run.nodes / "n.history.jsonl").read_bytes().count(b"\n") == 3, "the last minute is not lost"


def test_a_clock_that_jumps_back_ends_the_minute(run: RunDirectory) -> None:
    written = files(run)
    for time in (1000, 1002, 100, 102):
        written.sample("n", sample(time))
    assert orjson.loads((run.nodes / "n.history.jsonl").read_bytes())["samples"] == 2


def test_a_line_cut_by_a_full_disk_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    append_line(path, b'{"a": 1}\n')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (13, hard))  # the kernel writes what fits and no more
    try:
        append_line(path, b'{"b": 2}\n')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b'{"a": 1}\n{"b"'
    append_line(path, b'{"c": 3}\n')
    assert path.read_bytes() == b'{"a": 1}\n{"b"\n{"c": 3}\n'


def test_a_full_disk_is_said_once_and_so_is_its_end(run: RunDirectory, capfd: pytest.CaptureFixture[str]) -> None:
    run.nodes.mkdir()
    ring = run.nodes / "n.jsonl"
    ring.symlink_to("/dev/full")
    written = files(run)
    for number in range(3):
        written.sample("n", sample(number))
    ring.unlink()
    for number in range(3):
        written.sample("n", sample(number))
    assert capfd.readouterr().err.splitlines() == [
        "samples of the nodes are not written: [Errno 28] No space left on device",
        "samples of the nodes are written again",
    ]
    assert ring.read_bytes().count(b"\n") == 3


def test_an_interruption_is_an_event_once_and_so_is_its_end(run: RunDirectory) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    written = SampleFiles(run, lambda kind, **values: events.append((kind, values)))
    ended = Interruption("n", "agent ended", "exit code 1", time=1.0, restarts=1, is_news=True)
    written.interruption(ended)
    written.interruption(replace(ended, time=2.0, restarts=2, is_news=False))
    written.back("n", 3.2)
    written.interruption(Interruption("n", "no contact", "nothing heard for 4.6 s", time=9.0, restarts=2, is_news=True))
    assert events == [
        ("agent", {"node": "n", "state": "agent ended", "text": ended.text}),
        ("agent", {"node": "n", "state": "back", "text": "node n is heard of again after 3 s"}),
        ("agent", {"node": "n", "state": "no contact", "text": "no contact with node n: nothing heard for 4.6 s"}),
    ]
    assert ended.text == "the agent of node n ended and is started again: exit code 1"
    lines = [orjson.loads(line) for line in (run.nodes / "n.jsonl").open()]
    assert [(line["restarts"], line["error"]) for line in lines] == [
        (1, "agent ended: exit code 1"),
        (2, "agent ended: exit code 1"),
        (2, "no contact: nothing heard for 4.6 s"),
    ]
    assert os.stat(run.nodes / "n.jsonl").st_mode & 0o777 == 0o600
