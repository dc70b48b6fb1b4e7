"""The starter: it runs one node's part, tells what happens there, and ends it when it is asked to or the head is gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from scripted_runs import wait_for

from core.cluster.reach import piped_program, piped_python
from core.cluster.sweep import STARTER
from core.runs.process import MARK, run_processes

FAKE_TORCHRUN = str(Path(__file__).with_name("fake_torchrun.py"))
BEAT, SILENCE, GRACE = 0.1, 1.5, 0.5


class Head:
    """What the head does with one starter, by hand."""

    def __init__(self, config: dict[str, Any], python: str = sys.executable, **env: str) -> None:
        self.process = subprocess.Popen(
            piped_python(python, "llm-wizard-starter"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
        )
        assert self.process.stdin
        assert self.process.stderr
        assert self.process.stdout
        self._down, self._up, self.output = self.process.stdin, self.process.stderr, self.process.stdout
        self._down.write(piped_program(STARTER, config))
        self._down.flush()
        self.heard: list[dict[str, Any]] = []
        self.answers = True

    def say(self, word: str) -> None:
        self._down.write(word.encode() + b"\n")
        self._down.flush()

    def hang_up(self) -> None:
        self._down.close()

    def hear(self, what: str) -> dict[str, Any]:
        """The next message of a kind; beats before it are answered."""
        for line in self._up:
            try:
                message = json.loads(line)
            except ValueError:
                raise AssertionError(line + self._up.read()) from None
            self.heard.append(message)
            if message["lw"] == "alive" and self.answers and not self._down.closed:
                self.say(f"alive {message['n']}")
            if message["lw"] == what:
                return message
        raise AssertionError(f"no {what!r} in {self.heard}")

    def begin(self) -> int:
        """Let it start; the pid of what it started."""
        self.hear("alive")
        self.say("start")
        return int(self.hear("started")["pid"])

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Answer beats until something is true."""
        while not condition():
            self.hear("alive")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self._down, self._up, self.output):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def kinds(self) -> list[str]:
        return [message["lw"] for message in self.heard if message["lw"] != "alive"]


Start = Callable[..., Head]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(*argv)`: a starter that is to run argv as a part of the run in tmp_path."""
    heads = []

    def make(*argv: str, env: dict[str, str] | None = None, python: str = sys.executable, **config: Any) -> Head:
        document = {
            "argv": argv,
            "env": env or {},
            "pass_env": ["HOME", "LANG"],
            "cwd": str(tmp_path),
            "mark": str(tmp_path),
            "beat": BEAT,
            "silence": SILENCE,
            "grace": GRACE,
        }
        head = Head({**document, **config}, python)
        heads.append(head)
        return head

    yield make
    for head in heads:
        head.close()
    wait_for(lambda: run_processes(tmp_path) == [], 5)


def torchrun(folder: Path, script: str, count: int = 2) -> list[str]:
    return [sys.executable, FAKE_TORCHRUN, str(folder), "0", str(count), script]


def rank_pid(folder: Path, rank: int) -> int:
    path = folder / f"rank-{rank}.pid"
    wait_for(path.exists)
    return int(path.read_text())


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


WAIT = "time.sleep(60)"


@pytest.mark.parametrize(
    "python", [*sorted(map(str, Path.home().glob(".pyenv/versions/3.8.*/bin/python"))), sys.executable]
)
def test_it_tells_of_a_stage_from_start_to_end(start: Start, tmp_path: Path, python: str) -> None:
    head = start(*torchrun(tmp_path, "print('step 1', flush=True); time.sleep(0.5)"), python=python)
    pid = head.begin()
    assert head.hear("ended")["code"] == 0
    assert head.hear("clean")["killed"] == 0
    assert head.process.wait(5) == 0
    assert head.output.read() == b"step 1\n" * 2
    assert head.kinds() == ["started", "rank-ended", "rank-ended", "ended", "clean"]
    ranks = max((message["ranks"] for message in head.heard if message["lw"] == "alive"), key=len)
    assert [rank for rank, _ in ranks] == [0, 1]
    assert pid not in [pid for _, pid in ranks]


def test_nothing_is_started_before_the_head_says_so(start: Start, tmp_path: Path) -> None:
    head = start("touch", str(tmp_path / "started"))
    for _ in range(5):
        head.hear("alive")
    head.hang_up()
    head.hear("clean")
    assert not (tmp_path / "started").exists()


def test_the_environment_is_the_heads_and_of_the_login_only_what_is_named(start: Start, tmp_path: Path) -> None:
    evil = "$(touch X); `touch X` \"'\n-rf \udcff"
    head = start(
        sys.executable,
        "-c",
        "import os; print(ascii(dict(os.environ)))",
        env={"VALUE": evil},
        pass_env=["HOME", "NONE"],
    )
    head.begin()
    head.hear("clean")
    seen = eval(head.output.read())
    # Of Python's own (PEP 538).
    seen.pop("LC_CTYPE", None)
    assert seen == {"VALUE": evil, "HOME": os.environ["HOME"], MARK: str(tmp_path)}
    assert list(tmp_path.iterdir()) == []


def test_a_hostile_folder_is_only_a_folder(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "-$(touch X);'\"\n`touch X`"
    folder.mkdir()
    head = start(sys.executable, "-c", "import os; print(ascii(os.getcwd()))", cwd=str(folder), mark=str(folder))
    head.begin()
    head.hear("clean")
    assert eval(head.output.read()) == str(folder)
    assert list(folder.iterdir()) == []


def test_what_cannot_be_started_is_told(start: Start, tmp_path: Path) -> None:
    head = start("/nowhere/python")
    head.hear("alive")
    head.say("start")
    assert head.hear("failed")["text"] == "/nowhere/python: No such file or directory"
    assert head.hear("clean")["killed"] == 0
    head = start("true", cwd=str(tmp_path / "gone"))
    head.hear("alive")
    head.say("start")
    assert head.hear("failed")["text"] == f"{tmp_path / 'gone'}: No such file or directory"


@pytest.mark.parametrize("victim", [0, 1])
def test_the_rank_that_was_killed_is_told_before_those_it_takes_along(
    start: Start, tmp_path: Path, victim: int
) -> None:
    head = start(*torchrun(tmp_path, WAIT, count=4))
    head.begin()
    pid = rank_pid(tmp_path, victim)
    head.wait_until(lambda: len(head.heard[-1].get("ranks", [])) == 4)
    os.kill(pid, signal.SIGKILL)
    assert head.hear("rank-ended") == {"lw": "rank-ended", "rank": victim, "pid": pid, "code": -9}
    assert head.hear("ended")["code"] == 1


def test_a_rank_that_fails_is_told_with_its_exit_code(start: Start, tmp_path: Path) -> None:
    head = start(*torchrun(tmp_path, "time.sleep(60 if rank else 0.7); sys.exit(64)"))
    head.begin()
    ended = head.hear("rank-ended")
    assert (ended["rank"], ended["code"]) == (0, 64)
    head.hear("clean")


def test_a_launcher_that_was_killed_is_told_before_its_ranks(start: Start, tmp_path: Path) -> None:
    head = start(*torchrun(tmp_path, WAIT))
    pid = head.begin()
    head.wait_until(lambda: len(head.heard[-1].get("ranks", [])) == 2)
    os.kill(pid, signal.SIGKILL)
    head.hear("clean")
    assert head.kinds()[:2] == ["started", "ended"]
    assert next(message for message in head.heard if message["lw"] == "ended")["code"] == -9


def test_a_ranks_loader_is_no_rank(start: Start, tmp_path: Path) -> None:
    loader = "subprocess.Popen(['sleep', '60']); time.sleep(60)"
    head = start(*torchrun(tmp_path, loader, count=1))
    head.begin()
    pid = rank_pid(tmp_path, 0)
    head.wait_until(lambda: [0, pid] in head.heard[-1].get("ranks", []))
    os.kill(pid, signal.SIGKILL)
    assert head.hear("clean")["killed"] == 1
    assert sum(len(message.get("ranks", [])) > 1 for message in head.heard) == 0


def test_term_reaches_the_ranks_and_lets_them_save(start: Start, tmp_path: Path) -> None:
    head = start(*torchrun(tmp_path, WAIT))
    head.begin()
    rank_pid(tmp_path, 0), rank_pid(tmp_path, 1)
    head.say("term")
    head.hear("clean")
    assert (tmp_path / "saved-0").exists()
    assert (tmp_path / "saved-1").exists()


def test_kill_ends_what_does_not_listen(start: Start, tmp_path: Path) -> None:
    head = start(*torchrun(tmp_path, "signal.signal(15, signal.SIG_IGN); " + WAIT))
    head.begin()
    rank_pid(tmp_path, 0), rank_pid(tmp_path, 1)
    head.say("term")
    head.hear("alive")
    assert len(run_processes(tmp_path)) == 3
    head.say("kill")
    head.hear("clean")
    assert run_processes(tmp_path) == []


def test_the_end_of_its_stdin_ends_the_stage_and_lets_it_save(start: Start, tmp_path: Path) -> None:
    head = start(*torchrun(tmp_path, WAIT))
    head.begin()
    rank_pid(tmp_path, 0), rank_pid(tmp_path, 1)
    head.hang_up()
    head.hear("clean")
    assert (tmp_path / "saved-0").exists()


def test_silence_ends_the_stage_with_a_short_grace(start: Start, tmp_path: Path) -> None:
    head = start(*torchrun(tmp_path, "signal.signal(15, signal.SIG_IGN); " + WAIT))
    head.begin()
    rank_pid(tmp_path, 0), rank_pid(tmp_path, 1)
    head.answers = False
    head.hear("clean")
    assert run_processes(tmp_path) == []


def test_an_answer_that_comes_late_does_not_prolong_the_lease(start: Start, tmp_path: Path) -> None:
    head = start(*torchrun(tmp_path, WAIT))
    head.begin()
    first = head.hear("alive")["n"]
    head.answers = False
    # As packets that wait in a broken link's queues would do.
    while head.hear("alive") and (tmp_path / "saved-0").exists() is False:
        head.say(f"alive {first}")
    head.hear("clean")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_hangup_does_not_end_it(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    head = start(*torchrun(tmp_path, WAIT))
    head.begin()
    rank_pid(tmp_path, 1)
    head.process.send_signal(number)
    for _ in range(5):
        head.hear("alive")
    assert len(run_processes(tmp_path)) == 3
    head.say("kill")
    head.hear("clean")


def test_a_starter_that_is_killed_takes_the_stage_along(start: Start, tmp_path: Path) -> None:
    head = start(*torchrun(tmp_path, WAIT))
    head.begin()
    rank_pid(tmp_path, 0), rank_pid(tmp_path, 1)
    head.process.kill()
    wait_for(lambda: run_processes(tmp_path) == [])


def test_stacks_go_to_the_ranks_that_can_answer_and_end_none(start: Start, tmp_path: Path) -> None:
    script = "rank and faulthandler.register(signal.SIGUSR1, open(folder / 'stacks', 'w')); " + WAIT
    head = start(*torchrun(tmp_path, script))
    head.begin()
    rank_pid(tmp_path, 0), rank_pid(tmp_path, 1)
    head.wait_until(lambda: len(head.heard[-1].get("ranks", [])) == 2)
    time.sleep(0.2)  # until rank 1 has its handler
    head.say("stacks")
    head.wait_until(lambda: (tmp_path / "stacks").exists() and (tmp_path / "stacks").stat().st_size > 0)
    assert len(run_processes(tmp_path)) == 3
    head.say("kill")
    head.hear("clean")


def test_what_leaves_its_session_is_ended_too(start: Start, tmp_path: Path) -> None:
    script = "subprocess.Popen(['sleep', '60'], start_new_session=True); time.sleep(0.3)"
    head = start(sys.executable, "-c", "import subprocess, time; " + script)
    head.begin()
    assert head.hear("clean")["killed"] == 1


def neighbours(mark: Path) -> list[subprocess.Popen[bytes]]:
    """Processes of other runs whose marks are like this one's, of none, and one that names the mark elsewhere."""
    marks = [f"{mark}2", str(mark.parent), f"{mark}/", "", str(mark).upper()]
    return [
        *(subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: other}) for other in marks),
        subprocess.Popen(["sleep", "60"], env={**os.environ, "OTHER": f"{MARK}={mark}"}),
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", f"{MARK}={mark}"]),
    ]


def test_a_sweep_ends_a_run_and_no_neighbour(start: Start, tmp_path: Path) -> None:
    others = neighbours(tmp_path)
    try:
        mine = subprocess.Popen(torchrun(tmp_path, WAIT), env={**os.environ, MARK: str(tmp_path)})
        rank_pid(tmp_path, 0), rank_pid(tmp_path, 1)
        head = start(sweep=True, mark=str(tmp_path), grace=5)
        assert head.hear("clean")["killed"] == 3
        assert (tmp_path / "saved-0").exists()
        mine.wait(5)
        assert all(other.poll() is None for other in others)
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_the_end_of_a_stage_leaves_neighbours_alone(start: Start, tmp_path: Path) -> None:
    others = neighbours(tmp_path)
    try:
        head = start(*torchrun(tmp_path, WAIT))
        head.begin()
        rank_pid(tmp_path, 0), rank_pid(tmp_path, 1)
        head.say("kill")
        head.hear("clean")
        assert all(other.poll() is None for other in others)
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_a_pid_that_another_process_has_taken_is_not_signalled() -> None:
    starter: dict[str, Any] = {"__name__": "starter"}
    exec(compile(STARTER.read_text(), "starter", "exec"), starter)
    with subprocess.Popen(["sleep", "60"]) as process:
        now = starter["start_of"](process.pid)
        starter["send"](starter["Process"](process.pid, now - 1, 1, None), signal.SIGKILL)
        time.sleep(0.1)
        assert process.poll() is None
        starter["send"](starter["Process"](process.pid, now, 1, None), signal.SIGKILL)
        assert process.wait(5) == -9


def test_it_says_nothing_to_a_full_pipe_and_goes_on(start: Start, tmp_path: Path) -> None:
    head = start(sys.executable, "-c", "import time; time.sleep(1.2)", beat=0.00005, silence=60)
    head.begin()
    time.sleep(1)  # nobody reads: beats fill the pipe
    head.answers = False
    assert head.hear("ended")["code"] == 0
    assert head.hear("clean")["killed"] == 0
