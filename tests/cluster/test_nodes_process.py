"""A stage on several nodes: what fails is named, the rest is ended with it, and nothing is left anywhere."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from scripted_runs import wait_for

from core.cluster.contact import Limits
from core.cluster.nodes_process import NodesProcess, NodeStart, sweep
from core.cluster.reach import LocalReach, Reach
from core.runs.process import MARK, Processes, run_processes

from .machines import Machines, machines

__all__ = ["machines"]

FAKE_TORCHRUN = str(Path(__file__).with_name("fake_torchrun.py"))
QUICK = Limits(
    beat=0.1,
    silent=0.5,
    back_within=2.0,
    silence=2.2,
    lost_grace=0.5,
    safe_again=4.0,
    settle=0.3,
    fail_grace=1.0,
    start=10.0,
)
WAIT = "time.sleep(60)"
DEAF = "signal.signal(15, signal.SIG_IGN); " + WAIT


class Stage:
    """A stage of two ranks a node under way."""

    def __init__(self, reach: Reach, folder: Path, scripts: dict[str, str], limits: Limits = QUICK, **env: str) -> None:
        self.folder = folder
        self.log = folder / "stage.log"
        self.known: dict[str, list[object]] = {}
        """The ranks that the starter of each node has seen."""
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._file = self.log.open("ab", buffering=0)
        starts = [
            NodeStart(node, [sys.executable, FAKE_TORCHRUN, str(folder), str(2 * at), "2", script], env)
            for at, (node, script) in enumerate(scripts.items())
        ]
        self.process = NodesProcess(
            reach, starts, str(folder), str(folder), 5, self._file, self._event, python=sys.executable, limits=limits
        )
        contact = self.process._contact
        tell = contact.tell

        def note(node: str, what: str, values: Mapping[str, Any] | None = None) -> None:
            if what == "alive" and values:
                self.known[node] = values["ranks"]
            tell(node, what, values)

        contact.tell = note  # type: ignore[method-assign]

    def _event(self, kind: str, **values: Any) -> None:
        self.events.append((kind, values))

    def pump_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, (self.events, self.log.read_text())
            assert self.process.pump(0.05) is None, (self.events, self.log.read_text())

    def pid(self, name: str) -> int:
        """Of "rank-0" or "launcher-2", once it is there; as its own machine numbers it."""
        path = self.folder / f"{name}.pid"
        self.pump_until(path.exists)
        return int(path.read_text())

    def all_run(self) -> None:
        """Wait for all ranks to be there, and to be known to their starters."""
        for rank in range(2 * len(self.process.proof)):
            self.pid(f"rank-{rank}")
        self.pump_until(lambda: sum(map(len, self.known.values())) == 2 * len(self.process.proof))

    def end(self) -> int:
        """Its exit code, once there is one."""
        deadline = time.monotonic() + 30
        while (code := self.process.pump(0.05)) is None:
            assert time.monotonic() < deadline, (self.events, self.log.read_text())
        assert self.process.pump(0.05) == code
        return code

    def kinds(self) -> list[str]:
        return [values["trouble"] if kind == "trouble" else kind for kind, values in self.events]

    def close(self) -> None:
        self.process.kill_all()
        self.end()
        self._file.close()


Begin = Callable[..., Stage]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """`begin(reach, a=script, b=script)`: a stage whose ranks carry out these scripts; nothing of it may be left at the end."""
    stages = []

    def make(reach: Reach, limits: Limits = QUICK, env: dict[str, str] | None = None, **scripts: str) -> Stage:
        stage = Stage(reach, tmp_path, scripts, limits, **(env or {}))
        stages.append(stage)
        return stage

    yield make
    for stage in stages:
        stage.close()
    wait_for(lambda: run_processes(tmp_path) == [], 5)
    assert [thread.name for thread in threading.enumerate() if "contact" in thread.name] == []
    clients = [child for child in psutil.Process().children() if "llm-wizard" in " ".join(child.cmdline())]
    assert clients == []


def test_it_is_what_the_supervisor_expects(begin: Begin) -> None:
    process: Processes = begin(LocalReach(), a="").process
    assert process.troubles == []


def test_the_output_of_all_nodes_comes_in_whole_lines_with_their_names(begin: Begin, machines: Machines) -> None:
    script = (
        "print('x' * 50_000, flush=True)\nfor i in range(20): print('step', i, flush=True)\nprint('last words', end='')"
    )
    stage = begin(machines, a=script, b=script)
    assert stage.end() == 0
    assert stage.process.proof == {"a": 0, "b": 0}
    lines = stage.log.read_text().splitlines()
    for node in "ab":
        mine = [line[3:] for line in lines if line.startswith(f"{node}: ")]
        # The last words of a rank are no line: under load the other one goes on behind them.
        whole = [line.removeprefix("last words") for line in mine if "step " in line]
        assert len(mine) >= 43
        assert sorted(whole) == sorted(f"step {i}" for i in range(20) for _ in range(2))
        assert any("last words" in line for line in mine)
    assert all(line[:3] in ("a: ", "b: ") for line in lines)
    assert stage.events == []


def test_a_secret_is_masked_and_no_argv_has_it(
    begin: Begin, machines: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = "correct-horse-battery"
    monkeypatch.setenv("SOME_TOKEN", secret)
    script = f"print('got', os.environ['SOME_TOKEN'], flush=True); {WAIT}"
    stage = begin(machines, env={"SOME_TOKEN": secret}, a=script)
    stage.pump_until(lambda: stage.log.read_text().count("got") == 2)
    assert secret not in stage.log.read_text()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            assert secret not in line
            if "llm-wizard-starter" in line:
                assert str(tmp_path) not in line.replace(FAKE_TORCHRUN, "")
                assert "SOME_TOKEN" not in process.environ()


def test_hostile_names_and_values_are_only_text(machines: Machines, tmp_path: Path) -> None:
    evil = f"-rf $(touch {tmp_path}/X); touch {tmp_path}/X; `touch {tmp_path}/X` '\" \n "
    folder = tmp_path / evil.replace("/", "_")
    folder.mkdir()
    script = f"os._exit(0 if os.environ['EVIL'] == {evil!r} and os.getcwd() == {str(folder)!r} else 1)"
    stage = Stage(machines, folder, {"a": script}, EVIL=evil)
    try:
        assert stage.end() == 0
    finally:
        stage.close()
    assert sweep(machines, ["a"], str(folder), 0, python=sys.executable) == {"a": 0}
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("rank", [0, 3])
def test_a_killed_rank_is_named_and_the_others_are_ended(begin: Begin, machines: Machines, rank: int) -> None:
    stage = begin(machines, a=DEAF, b=DEAF)
    stage.all_run()
    node = "ab"[rank // 2]
    machines.run(node, "kill", "-9", str(stage.pid(f"rank-{rank}")))
    assert stage.end() == -9
    (trouble,) = stage.process.troubles
    assert (trouble.kind, trouble.node, trouble.rank) == ("rank", node, rank)
    assert trouble.text == f"rank {rank} on {node} was killed by SIGKILL (out of memory?)"
    assert stage.kinds() == ["rank"]
    assert None not in stage.process.proof.values()
    assert machines.processes("a", str(stage.folder)) == machines.processes("b", str(stage.folder)) == []


def test_the_exit_code_is_that_of_the_rank_that_failed_first(begin: Begin, machines: Machines) -> None:
    stage = begin(machines, a=WAIT, b="time.sleep(1 if rank == 2 else 60); sys.exit(64)")
    assert stage.end() == 64
    assert [(trouble.kind, trouble.node, trouble.rank) for trouble in stage.process.troubles] == [("rank", "b", 2)]
    # The others were asked first.
    assert (stage.folder / "saved-0").exists()


def test_a_killed_launcher_is_named(begin: Begin, machines: Machines) -> None:
    stage = begin(machines, a=WAIT, b=WAIT)
    stage.all_run()
    machines.run("b", "kill", "-9", str(stage.pid("launcher-2")))
    assert stage.end() == -9
    assert [(trouble.kind, trouble.node) for trouble in stage.process.troubles] == [("launcher", "b")]


def test_a_node_that_dies_is_named_and_not_the_ranks_that_it_takes_along(begin: Begin, machines: Machines) -> None:
    # As a collective that loses a peer.
    stage = begin(machines, a="\nwhile not (folder / 'fail').exists(): time.sleep(0.05)\nsys.exit(1)", b=WAIT)
    stage.all_run()
    (stage.folder / "fail").touch()
    machines.kill("b")
    assert stage.end() == 2
    assert [(trouble.kind, trouble.node) for trouble in stage.process.troubles] == [("node", "b")]
    assert stage.process.proof == {"a": 0, "b": None}
    assert stage.kinds() == ["node", "warning"]
    assert "could not be reached to end what runs there" in stage.events[-1][1]["text"]
    assert machines.processes("a", str(stage.folder)) == []


def test_a_starter_that_is_killed_leaves_nothing(begin: Begin, machines: Machines) -> None:
    stage = begin(machines, a=WAIT, b=DEAF)
    stage.all_run()
    machines.run("b", "pkill", "-9", "-f", "llm-wizard-starter")
    assert stage.end() == 2
    assert [(trouble.kind, trouble.node) for trouble in stage.process.troubles] == [("node", "b")]
    assert stage.process.proof["b"] is not None
    assert machines.processes("b", str(stage.folder)) == []


def test_a_connection_that_ends_here_is_a_link_and_its_node_is_swept(begin: Begin, machines: Machines) -> None:
    stage = begin(machines, a=WAIT, b=DEAF)
    stage.all_run()
    machines.link("b", signal.SIGKILL)
    assert stage.end() == 2
    assert [(trouble.kind, trouble.node) for trouble in stage.process.troubles] == [("link", "b")]
    assert "ssh on this machine was killed by SIGKILL" in stage.process.troubles[0].text
    assert stage.process.proof["b"] is not None
    assert machines.processes("b", str(stage.folder)) == []


def test_a_link_that_comes_back_in_time_goes_on(begin: Begin, machines: Machines) -> None:
    stage = begin(machines, a="time.sleep(3)", b="time.sleep(3)")
    stage.all_run()
    machines.link("b", signal.SIGSTOP)
    stage.pump_until(lambda: stage.process.troubles)
    (trouble,) = stage.process.troubles
    assert (trouble.kind, trouble.node) == ("link", "b")
    machines.link("b", signal.SIGCONT)
    assert stage.end() == 0
    assert stage.process.troubles == []
    assert stage.kinds() == ["link", "link-back"]
    assert stage.process.proof == {"a": 0, "b": 0}


def test_a_link_that_stays_away_ends_the_stage_on_both_sides(begin: Begin, machines: Machines) -> None:
    stage = begin(machines, a=DEAF, b=DEAF)
    stage.all_run()
    machines.link("b", signal.SIGSTOP)
    stage.pump_until(lambda: stage.process.troubles)
    begin_at = stage.process.last_contact["b"]
    # The new connection of the sweep is silent too.
    stopper = threading.Event()

    def stop_new_ones() -> None:
        while not stopper.wait(0.02):
            machines.link("b", signal.SIGSTOP)

    thread = threading.Thread(target=stop_new_ones)
    thread.start()
    try:
        wait_for(lambda: stage.process.pump(0.05) is not None or time.monotonic() > begin_at + QUICK.safe_again)
        assert machines.processes("b", str(stage.folder)) == []
    finally:
        stopper.set()
        thread.join()
    machines.link("b", signal.SIGCONT)
    assert stage.end() == 2
    assert [(trouble.kind, trouble.node) for trouble in stage.process.troubles] == [("link", "b")]
    assert machines.processes("a", str(stage.folder)) == []


def test_a_silent_link_is_the_cause_of_a_rank_that_fails_meanwhile(begin: Begin, machines: Machines) -> None:
    stage = begin(machines, a="\nwhile not (folder / 'fail').exists(): time.sleep(0.05)\nsys.exit(1)", b=WAIT)
    stage.all_run()
    machines.link("b", signal.SIGSTOP)
    stage.pump_until(lambda: stage.process.troubles)
    (stage.folder / "fail").touch()
    assert stage.end() == 2
    assert [(trouble.kind, trouble.node) for trouble in stage.process.troubles] == [("link", "b")]


def test_a_supervisor_that_waits_for_a_disk_is_not_taken_for_dead(begin: Begin, machines: Machines) -> None:
    stage = begin(machines, a="time.sleep(3)", b="time.sleep(3)")
    stage.all_run()
    time.sleep(QUICK.silence + 0.5)  # nobody pumps
    assert stage.end() == 0
    assert stage.events == []


def test_stop_lets_all_ranks_save_and_is_no_trouble(begin: Begin, machines: Machines) -> None:
    stage = begin(machines, a=WAIT, b=WAIT)
    stage.all_run()
    stage.process.terminate()
    assert stage.end() == 1
    assert all((stage.folder / f"saved-{rank}").exists() for rank in range(4))
    assert stage.events == []
    assert stage.process.troubles == []


def test_kill_ends_what_does_not_stop(begin: Begin, machines: Machines) -> None:
    stage = begin(machines, a=DEAF, b=DEAF)
    stage.all_run()
    stage.process.terminate()
    settled = time.monotonic() + 0.5
    stage.pump_until(lambda: time.monotonic() > settled)
    stage.process.kill_all()
    stage.process.kill_all()
    assert stage.end() == -9
    assert stage.process.troubles == []
    assert None not in stage.process.proof.values()


def test_a_stop_before_all_nodes_are_there_starts_nothing(begin: Begin, machines: Machines) -> None:
    stage = begin(machines, a=WAIT, b=WAIT)
    stage.process.terminate()
    assert stage.end() == 2
    assert not (stage.folder / "launcher-0.pid").exists()


def test_a_node_that_cannot_be_reached_keeps_the_others_from_starting(begin: Begin, machines: Machines) -> None:
    machines.kill("b")
    stage = begin(machines, a=WAIT, b=WAIT)
    assert stage.end() == 2
    (trouble,) = stage.process.troubles
    assert (trouble.kind, trouble.node) == ("node", "b")
    assert trouble.text == "b: ssh ended with exit code 255: b: Connection refused"
    assert stage.process.proof == {"a": 0, "b": 0}
    assert not (stage.folder / "launcher-0.pid").exists()


def test_a_node_without_the_python_is_told_in_its_shells_words(tmp_path: Path, machines: Machines) -> None:
    with (tmp_path / "log").open("ab", buffering=0) as log:
        starts = [NodeStart("a", ["true"], {})]
        process = NodesProcess(
            machines, starts, "/", str(tmp_path), 1, log, lambda *_, **__: None, python="/nowhere/python", limits=QUICK
        )
        wait_for(lambda: process.pump(0.05) is not None)
    (trouble,) = process.troubles
    assert trouble.kind == "start"
    assert "/nowhere/python" in trouble.text
    assert "No such file" in trouble.text


def test_what_cannot_be_started_on_a_node_is_told(begin: Begin, tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab", buffering=0) as log:
        starts = [NodeStart("a", ["/nowhere/torchrun"], {})]
        process = NodesProcess(
            LocalReach(), starts, "/", str(tmp_path), 1, log, lambda *_, **__: None, python=sys.executable, limits=QUICK
        )
        wait_for(lambda: process.pump(0.05) is not None)
    assert process.pump(0) == 2
    (trouble,) = process.troubles
    assert trouble.kind == "start"
    assert trouble.text == "a: the stage could not be started there: /nowhere/torchrun: No such file or directory"


def test_stacks_are_asked_of_every_rank(begin: Begin, machines: Machines) -> None:
    script = "faulthandler.register(signal.SIGUSR1, open(folder / f'stacks-{rank}', 'w')); " + WAIT
    stage = begin(machines, a=script, b=script)
    stage.all_run()
    stage.process.ask_for_stacks()
    paths = [stage.folder / f"stacks-{rank}" for rank in range(4)]
    stage.pump_until(lambda: all(path.exists() and path.stat().st_size for path in paths))


def test_a_neighbour_run_and_its_like_stay_alive(begin: Begin, machines: Machines) -> None:
    other = machines.argv("a", ["env", f"{MARK}={machines}2", "sleep", "60"])
    with subprocess.Popen(other) as neighbour:
        stage = begin(machines, a=DEAF, b=DEAF)
        stage.all_run()
        machines.run("a", "kill", "-9", str(stage.pid("rank-0")))
        stage.end()
        assert sweep(machines, ["a", "b"], str(stage.folder), 0, python=sys.executable) == {"a": 0, "b": 0}
        assert neighbour.poll() is None
        assert len(machines.processes("a", f"{machines}2")) == 1
        machines.run("a", "pkill", "sleep", "-f")
        neighbour.kill()


HEAD = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from core.cluster.contact import Limits
from core.cluster.nodes_process import NodesProcess, NodeStart
from core.cluster.reach import LocalReach
folder = Path({folder!r})
log = (folder / 'log').open('ab', buffering=0)
argv = [sys.executable, {torchrun!r}, str(folder), '0', '2', {script!r}]
process = NodesProcess(
    LocalReach(), [NodeStart('a', argv, {{}})], str(folder), str(folder), 5, log, lambda *_, **__: None,
    python=sys.executable, limits={limits!r},
)
while process.pump(0.1) is None:
    pass
"""


@pytest.mark.parametrize("script", [WAIT, DEAF])
def test_a_head_that_is_killed_leaves_nothing(tmp_path: Path, script: str) -> None:
    root = str(Path(__file__).parents[2])
    text = HEAD.format(path=[root], folder=str(tmp_path), torchrun=FAKE_TORCHRUN, script=script, limits=QUICK)
    with subprocess.Popen([sys.executable, "-c", text]) as head:
        wait_for(lambda: (tmp_path / "rank-0.pid").exists() and (tmp_path / "rank-1.pid").exists())
        head.kill()
    wait_for(lambda: run_processes(tmp_path) == [], QUICK.silence + QUICK.lost_grace + 3)
    assert (tmp_path / "saved-0").exists() == (script == WAIT)
    wait_for(lambda: not _starters_of(tmp_path))


def _starters_of(folder: Path) -> list[str]:
    """The starters that are left of the head of a test, which all begin in `/` and are nobody's child any more."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "llm-wizard-starter" in process.cmdline() and process.ppid() == 1:
                found.append(str(process))
    return found


def test_a_head_that_is_frozen_is_taken_for_dead(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    text = HEAD.format(path=[root], folder=str(tmp_path), torchrun=FAKE_TORCHRUN, script=WAIT, limits=QUICK)
    with subprocess.Popen([sys.executable, "-c", text]) as head:
        wait_for((tmp_path / "rank-1.pid").exists)
        os.kill(head.pid, signal.SIGSTOP)
        wait_for(lambda: run_processes(tmp_path) == [])
        head.kill()
    assert (tmp_path / "saved-0").exists()


def test_a_sweep_says_none_for_a_node_that_it_cannot_reach(machines: Machines, tmp_path: Path) -> None:
    machines.kill("b")
    assert sweep(machines, ["a", "b"], str(tmp_path), 0, python=sys.executable) == {"a": 0, "b": None}
    assert sweep(LocalReach(), ["a"], str(tmp_path), 0, python="/nowhere/python") == {"a": None}
