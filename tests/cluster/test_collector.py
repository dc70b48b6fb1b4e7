"""The collector: what an agent does, or fails to do, is told and mended, and never holds up anything else."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import orjson
import psutil
import pytest
from scripted_runs import wait_for

from core.cluster import collector
from core.cluster.collector import Collector, Node, local_node, read_sample

from .conftest import FakeGpus, Recorded, Watch


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "FIRST_PAUSE_S", 0.1)


def agents() -> list[psutil.Process]:
    """The agents that this test started."""
    children = psutil.Process().children()
    return [
        child for child in children if child.status() != "zombie" and "llm-wizard-agent" in " ".join(child.cmdline())
    ]


def node(*argv: str, host: str = "n") -> Node:
    return Node(host, argv, dict(os.environ), {"period": 0.1, "run": None, "folder": "/", "parent": None})


def test_an_agent_that_is_killed_is_started_again_and_counted(watch: Watch) -> None:
    seen = watch()
    assert seen.wait(lambda sample: True)["restarts"] == 0
    agents()[0].kill()
    again = seen.wait(lambda sample: sample["restarts"] == 1)
    assert again["seq"] < 3
    assert seen.failures == [("killed by SIGKILL", 1, True)]


def test_an_agent_that_falls_silent_is_replaced(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "SILENCE_S", 1.0)
    seen = watch()
    seen.wait(lambda sample: True)
    (frozen,) = agents()
    frozen.send_signal(signal.SIGSTOP)
    seen.wait(lambda sample: sample["restarts"] == 1)
    assert seen.failures == [("nothing heard for 1 s", 1, True)]
    assert not psutil.pid_exists(frozen.pid)


def test_the_last_words_of_an_agent_that_cannot_start_are_told(watch: Watch) -> None:
    script = "import sys; print('n: \\x1b[31mPermission denied (publickey)'); sys.exit(255)"
    seen = watch(nodes=[node(sys.executable, "-c", script)])
    wait_for(lambda: len(seen.failures) >= 3)
    assert seen.failures[:3] == [
        ("exit code 255: n: Permission denied (publickey)", 1, True),
        ("exit code 255: n: Permission denied (publickey)", 2, False),
        ("exit code 255: n: Permission denied (publickey)", 3, False),
    ]


def test_pauses_between_starts_grow_up_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [collector.pause_after(failures) for failures in (1, 2, 3, 6, 7, 8, 10**6)] == [1, 2, 4, 32, 60, 60, 60]


def test_a_program_that_is_not_there_is_named(watch: Watch) -> None:
    seen = watch(nodes=[node("/nowhere/python3")])
    wait_for(lambda: len(seen.failures) >= 2)
    assert seen.failures[0][0] == "/nowhere/python3 could not be started: No such file or directory"


def test_a_banner_before_the_samples_is_not_taken_for_one(watch: Watch, tmp_path: Path) -> None:
    local = local_node(None, tmp_path, 0.1)
    banner = f"print('*** Welcome to n01 ***', flush=True); {local.argv[-1]}"
    seen = watch(nodes=[replace(local, argv=[*local.argv[:-1], banner])])
    seen.wait(lambda sample: sample["seq"] > 2)
    assert seen.failures == []


def test_a_line_without_end_is_ended(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "LONGEST_LINE", 1 << 16)
    seen = watch(nodes=[node(sys.executable, "-c", "import os\nwhile True: os.write(1, b'x' * 4096)")])
    wait_for(lambda: bool(seen.failures))
    assert seen.failures[0][0] == "it printed a line without end"


def test_one_node_that_hangs_does_not_hold_up_another(watch: Watch, tmp_path: Path) -> None:
    stuck = [node("sleep", "60", host=f"stuck{i}") for i in range(3)]
    seen = watch(nodes=[*stuck, local_node(None, tmp_path, 0.1)])
    assert seen.wait(lambda sample: sample["seq"] >= 5)["host"] == os.uname().nodename


def test_no_more_than_ten_are_starting_at_once(watch: Watch) -> None:
    seen = watch(nodes=[node("sleep", "60", host=f"n{i}") for i in range(25)])
    sleeping = lambda: sum(child.name() == "sleep" for child in psutil.Process().children())  # noqa: E731
    wait_for(lambda: sleeping() == 10)
    time.sleep(1.2)  # two more checks
    assert sleeping() == 10
    assert seen.failures == []


def test_stop_ends_every_agent_also_one_that_does_not_listen() -> None:
    sink = Recorded()
    both = Collector([node("sleep", "60"), local_node(None, Path("/"), 0.1)], sink)
    both.start()
    wait_for(lambda: bool(sink.samples))
    children = psutil.Process().children()
    assert len(children) == 2
    both.stop()
    assert sink.closed.is_set()
    assert [child for child in children if child.is_running()] == []


def test_each_node_has_gpus_of_its_own(watch: Watch, gpus: FakeGpus, tmp_path: Path) -> None:
    (tmp_path / "two").write_text("11 1 2 3 4 5 6 0 0 0 0\n12 1 2 3 4 5 6 0 0 0 0\n")
    local = local_node(None, tmp_path, 0.1)
    first = replace(local, host="n1", env={**local.env, **gpus.env})
    second = replace(local, host="n2", env={**first.env, "FAKE_NVML_FILE": str(tmp_path / "two")})
    seen = watch(nodes=[first, second])
    assert len(seen.wait(lambda sample: sample["host"] == "n1" and sample["gpus"])["gpus"]) == 8
    assert len(seen.wait(lambda sample: sample["host"] == "n2" and sample["gpus"])["gpus"]) == 2


GPU = {
    "index": 0,
    "name": "x",
    **dict.fromkeys(("util", "memory_used", "memory_total", "temperature", "power", "power_limit", "clock"), 1),
}
SAMPLE = {
    **{"time": 1.0, "host": "n", "seq": 0, "period": 2.0, "nvml": "ok", "nvml_blocked_s": 0.0, "gpus": [GPU]},
    **dict.fromkeys(("cpu", "cores", "load", "memory_used", "memory_total", "disk_free", "disk_total"), 1),
    **{"net_rx": 1, "net_tx": 1, "ib_rx": None, "ib_tx": None, "slow": None},
}


def test_a_whole_sample_is_taken() -> None:
    assert read_sample(orjson.dumps(SAMPLE)) == SAMPLE


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Last login: Tue",
        b"{",
        b"[]",
        b"7",
        b"null",
        b"{}",
        orjson.dumps({**SAMPLE, "time": "now"}),
        orjson.dumps({**SAMPLE, "period": 0}),
        orjson.dumps({**SAMPLE, "period": True}),
        orjson.dumps({**SAMPLE, "cpu": "much"}),
        orjson.dumps({**SAMPLE, "gpus": None}),
        orjson.dumps({**SAMPLE, "gpus": [{"index": 0}]}),
        orjson.dumps({**SAMPLE, "gpus": [{**GPU, "util": [1]}]}),
        orjson.dumps({**SAMPLE, "gpus": ["x"]}),
        orjson.dumps({**SAMPLE, "slow": 7}),
        orjson.dumps({**SAMPLE, "slow": {}}),
        orjson.dumps({**SAMPLE, "slow": {"processes": [7], "gpus": []}}),
        orjson.dumps({**SAMPLE, "slow": {"processes": [], "gpus": [{}]}}),
        orjson.dumps({name: value for name, value in SAMPLE.items() if name != "ib_rx"}),
    ],
)
def test_anything_else_is_not_a_sample(line: bytes) -> None:
    assert read_sample(line) is None
