"""The collector: what an agent does, or fails to do, is told and mended, and never holds up anything else."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from scripted_runs import wait_for

from conftest import MakeRun
from core.cluster import agent_stream
from core.cluster.agent_stream import AgentStream, Node, pause_after
from core.cluster.collector import Collector, local_node, nodes_to_watch, remote_node
from core.cluster.reach import SshReach

from .conftest import FakeGpus, Recorded, Watch


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_stream, "FIRST_PAUSE_S", 0.1)


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
    monkeypatch.setattr(agent_stream, "SILENCE_S", 1.0)
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


@pytest.mark.parametrize(
    ("way", "code", "words", "kind"),
    [
        ("ssh", 255, "Connection to 10.0.0.2 closed by remote host.", "no contact"),
        ("ssh", 255, "ssh: connect to host n port 22: Connection refused", "no contact"),
        ("ssh", 255, "", "agent ended"),  # what it ran was killed
        ("ssh", 127, "bash: line 1: /opt/python: No such file or directory", "agent ended"),
        ("slurm", 1, "srun: error: Unable to create step for job 7: Required node not available", "no contact"),
        ("slurm", 137, "srun: error: n: task 0: Killed", "agent ended"),
        ("local", 255, "whatever", "agent ended"),
    ],
)
def test_an_agent_that_ended_and_a_connection_that_broke_are_told_apart(
    watch: Watch, way: str, code: int, words: str, kind: str
) -> None:
    seen = watch(
        nodes=[replace(node(sys.executable, "-c", f"import sys; print({words!r}); sys.exit({code})"), way=way)]
    )
    wait_for(lambda: bool(seen.kinds))
    assert seen.kinds[0] == kind
    assert words in seen.failures[0][0]


def test_a_node_that_falls_silent_is_told_before_anything_is_done_and_so_is_its_return(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_stream, "QUIET_S", 1.0)
    seen = watch()
    seen.wait(lambda sample: True)
    (frozen,) = agents()
    frozen.send_signal(signal.SIGSTOP)
    wait_for(lambda: bool(seen.failures))
    frozen.send_signal(signal.SIGCONT)
    assert seen.wait(lambda sample: True)["restarts"] == 0
    wait_for(lambda: seen.backs == [os.uname().nodename])
    ((words, restarts, is_news),) = seen.failures
    assert (words.rpartition(" 1.")[0], restarts, is_news) == ("nothing heard for", 0, True)
    assert seen.kinds == ["no contact"]
    assert agents() == [frozen]


def test_one_that_comes_and_goes_is_believed_later_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    sink = Recorded()
    with selectors.DefaultSelector() as selector:
        stream = AgentStream(node("unused"), sink, selector)
        for _ in range(4):
            stream._tell("no contact", "")
            stream._is_quiet = True
            stream._is_heard(0.0)
            stream._is_heard(2.5)
    assert [is_news for _, _, is_news in sink.failures] == [True, True, True, False]
    assert len(sink.backs) == 2, "at once, then after 1 s; not after 2.5 s, for it has gone three times"


def test_an_agent_that_is_heard_is_told_so(watch: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(agent_stream, "WORD_S", 0.4)
    local = local_node(None, tmp_path, 0.1)
    seen = watch(nodes=[replace(local, config={**local.config, "silence": 1.5})])
    assert seen.wait(lambda sample: sample["seq"] > 30)["restarts"] == 0


def test_a_disk_that_holds_up_the_collector_makes_no_node_silent(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_stream, "QUIET_S", 0.5)
    monkeypatch.setattr(agent_stream, "SILENCE_S", 1.0)
    seen = watch()
    seen.wait(lambda sample: True)
    take = seen.sample
    monkeypatch.setattr(seen, "sample", lambda *arguments: (time.sleep(1.5), take(*arguments)))
    seen.wait(lambda sample: True)
    monkeypatch.setattr(seen, "sample", take)
    seen.wait(lambda sample: sample["seq"] > 20)
    assert seen.failures == []


def test_a_node_that_comes_later_is_watched_too_and_only_once(tmp_path: Path) -> None:
    sink = Recorded()
    local = local_node(None, tmp_path, 0.1)
    watching = Collector([replace(local, host="first")], sink)
    watching.start()
    sink.wait(lambda sample: True)
    watching.watch([replace(local, host="spare"), replace(local, host="first")])
    sink.wait(lambda sample: sample["host"] == "spare")
    assert len(agents()) == 2
    watching.stop()


def test_over_ssh_no_word_of_the_run_stands_in_a_command_line(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    run = make_run({"corpus": {"script": "none.py"}})
    there = remote_node("n1", SshReach(), "/opt/py thon", run, run.root)
    assert str(run.root) not in " ".join(there.argv)
    assert there.argv[-2] == "n1"
    assert "'/opt/py thon' -I -S -c" in there.argv[-1]
    assert "HF_TOKEN" not in there.env
    assert (there.config["run"], there.config["parent"], there.way) == (str(run.root), None, "ssh")


def test_this_machine_among_the_nodes_needs_no_connection(make_run: MakeRun) -> None:
    run = make_run({"corpus": {"script": "none.py"}})
    own = os.uname().nodename
    watched = nodes_to_watch(["n1", own, "n2"], SshReach(), "python3", run, run.root)
    assert [(one.host, one.way) for one in watched] == [("n1", "ssh"), (own, "local"), ("n2", "ssh")]


def test_pauses_between_starts_grow_up_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [pause_after(failures) for failures in (1, 2, 3, 6, 7, 8, 10**6)] == [1, 2, 4, 32, 60, 60, 60]


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
    monkeypatch.setattr(agent_stream, "LONGEST_LINE", 1 << 16)
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
