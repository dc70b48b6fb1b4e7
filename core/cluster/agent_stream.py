"""One node's agent through all its restarts: what it prints, how it ends, and whether the node is heard of at all.

Two things go wrong and are told apart. The agent ended: its machine is there and says so. No contact: nothing comes from the node
any more, or the connection to it broke. Both are told once, and so is the end of it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from core.cluster.agent_sample import read_sample
from core.cluster.reach import piped_program
from core.text.plain import plain

QUIET_S = 4.5
"""Two periods and a late sample: a node not heard of for so long is without contact. With the check twice a second that is told
within 5 s of the last sample."""
SILENCE_S = 30.0
"""An agent that printed nothing for so long is ended and started again: its link may be dead without either end knowing."""
WORD_S = 5.0
"""How often an agent is told that somebody listens."""
UNHEARD_S = 60.0
"""An agent that is told nothing for so long ends by itself: where the link is cut, neither its stdin nor its stdout ever ends."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
STEADY_S = 60.0
"""A node that has been heard of for so long is well: the next pause is the first one again."""
LONGEST_LINE = 1 << 20
SSH_ITSELF = 255
"""ssh's exit code for its own failures; it then says why. Also for a remote command that was killed, without a word."""
TASK_ENDED = re.compile(r": tasks? \d")
"""In srun's words for the end of what it ran; other words of its are about the node or the job."""


@dataclass(frozen=True)
class Node:
    """Where an agent runs: `argv` is a Python there that takes agent.py from its stdin; `config` is the agent's line of JSON."""

    host: str
    """As the inventory calls it: the name of its files and in all that is told of it."""
    argv: Sequence[str]
    env: Mapping[str, str]
    config: Mapping[str, Any]
    way: str = "local"
    """local, ssh or slurm: whose exit code and last words the agent's are."""


@dataclass(frozen=True)
class Interruption:
    """No samples come from a node any more."""

    host: str
    kind: Literal["agent ended", "no contact"]
    words: str
    time: float
    """By this machine's clock."""
    restarts: int
    """How often its agent has been started again, or will have been."""
    is_news: bool
    """The node had been well, or never heard of; what follows until it is well again is not."""

    @property
    def text(self) -> str:
        if self.kind == "agent ended":
            return f"the agent of node {self.host} ended and is started again: {self.words}"
        return f"no contact with node {self.host}: {self.words}"


class Sink(Protocol):
    """Who gets the samples; called in the collector's thread."""

    def sample(self, host: str, sample: Mapping[str, Any]) -> None:
        """One sample; "time" is the arrival by this machine's clock, so that all nodes of a run are on one clock."""

    def interruption(self, what: Interruption) -> None:
        """Nothing comes from a node; told again for each restart of its agent."""

    def back(self, host: str, away_s: float) -> None:
        """A node of whose interruption was told has been heard of again."""

    def close(self) -> None:
        """Nothing follows."""


class AgentStream:
    """The agent of one node."""

    def __init__(self, node: Node, sink: Sink, selector: selectors.BaseSelector) -> None:
        self.host = node.host
        self.due_at = 0.0
        """When the agent is to be started (monotonic), where it does not run."""
        self._node = node
        self._sink = sink
        self._selector = selector
        self._process: subprocess.Popen[bytes] | None = None
        self._to_send = b""
        self._said_at = 0.0
        self._held = b""
        self._words = ""
        self._heard = False
        """This process of the agent has been heard of."""
        self._last_at = 0.0
        """The last sample, or the start where none has come yet (monotonic)."""
        self._well_since = 0.0
        self._failures = 0
        self._restarts = 0
        self._told = 0
        """Interruptions since the node was last well for STEADY_S."""
        self._away_since: float | None = None
        """The last sign of life before the interruption that has been told and is not over."""
        self._is_quiet = False

    @property
    def is_starting(self) -> bool:
        return self._process is not None and not self._heard

    def is_due(self, now: float) -> bool:
        return self._process is None and now >= self.due_at

    def open(self, now: float) -> None:
        """Start the agent; what it needs to be told is sent as its pipe takes it."""
        self._held, self._words, self._heard, self._is_quiet, self._last_at = b"", "", False, False, now
        try:
            self._to_send = piped_program(Path(__file__).with_name("agent.py"), self._node.config)
            self._process = process = subprocess.Popen(
                list(self._node.argv),
                env=dict(self._node.env),
                cwd="/",  # a file system that is busy with us could not be unmounted
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for us, not for the agent
            )
        except OSError as error:
            self._failed("agent ended", f"{self._node.argv[0]} could not be started: {error.strerror or error}")
            return
        assert process.stdin is not None
        assert process.stdout is not None
        for pipe, event, call in (
            (process.stdin, selectors.EVENT_WRITE, self._send),
            (process.stdout, selectors.EVENT_READ, self._receive),
        ):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe.fileno(), event, call)

    def check(self, now: float) -> None:
        """Look how long the agent has been silent at `now`; tell it that it is heard."""
        if self._process is None:
            return
        silent = now - self._last_at
        if silent > SILENCE_S:
            self._failed("no contact", f"nothing heard for {silent:.0f} s")
            return
        if self._heard and silent > QUIET_S and not self._is_quiet:
            self._is_quiet = True
            self._tell("no contact", f"nothing heard for {silent:.1f} s")
        if now - self._said_at >= WORD_S and not self._to_send:
            self._said_at = now
            # A pipe that is full, or broken, shows at the other one.
            with contextlib.suppress(OSError):
                assert self._process.stdin is not None
                os.write(self._process.stdin.fileno(), b"\n")

    def let_go(self) -> None:
        """Close the pipes: the end of its stdin tells the agent to end."""
        for pipe in self._pipes():
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(pipe.fileno())
            with contextlib.suppress(OSError):
                pipe.close()

    def end(self, deadline: float) -> None:
        """After `let_go`: wait for the agent's end, from `deadline` (monotonic) on with SIGKILL."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it; it is not ours to wait for
                process.wait(0.1)

    def _pipes(self) -> list[IO[bytes]]:
        process = self._process
        return [pipe for pipe in (process.stdin, process.stdout) if pipe is not None] if process else []

    def _send(self) -> None:
        if self._process is None or self._process.stdin is None:
            return  # ended by what was read an instant ago
        descriptor = self._process.stdin.fileno()
        try:
            self._to_send = self._to_send[os.write(descriptor, self._to_send) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # its end is read from the other pipe
            self._to_send = b""
        if not self._to_send:
            self._selector.unregister(descriptor)

    def _receive(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        try:
            data = os.read(self._process.stdout.fileno(), 1 << 18)
        except BlockingIOError:
            return
        if not data:
            self._failed(*self._how_it_ended())
            return
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._held) > LONGEST_LINE:
            self._failed("agent ended", "it printed a line without end")

    def _line(self, line: bytes) -> None:
        sample = read_sample(line)
        if sample is None:
            self._words = plain(line.decode("utf-8", "replace")).strip()[:300] or self._words
            return
        received = round(time.time(), 3)
        sample["clock_ahead"] = round(sample["time"] - received, 3)
        sample |= {"time": received, "host": self.host, "restarts": self._restarts}
        self._sink.sample(self.host, sample)
        self._is_heard(time.monotonic())

    def _is_heard(self, now: float) -> None:
        if self._is_quiet or not self._heard:
            self._well_since = now
        self._heard, self._is_quiet, self._words, self._last_at = True, False, "", now
        well_for = now - self._well_since
        # One that comes and goes is believed later each time: it must not fill the run's events.
        if self._away_since is not None and well_for >= pause_after(self._told) - FIRST_PAUSE_S:
            self._sink.back(self.host, now - self._away_since)
            self._away_since = None
        if well_for > STEADY_S:
            self._failures = self._told = 0

    def _how_it_ended(self) -> tuple[Literal["agent ended", "no contact"], str]:
        assert self._process is not None
        try:
            code = self._process.wait(0.1)
        except subprocess.TimeoutExpired:
            return "agent ended", self._words or "it closed its output"
        if self._words and (
            (self._node.way == "ssh" and code == SSH_ITSELF)
            or (self._node.way == "slurm" and self._words.startswith("srun: ") and not TASK_ENDED.search(self._words))
        ):
            return "no contact", self._words
        if self._node.way == "ssh" and code == SSH_ITSELF:
            return "agent ended", "killed by a signal"
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        return "agent ended", f"{how}: {self._words}" if self._words else how

    def _failed(self, kind: Literal["agent ended", "no contact"], words: str) -> None:
        self.let_go()
        self.end(0.0)
        self._failures += 1
        self._restarts += 1
        self.due_at = time.monotonic() + pause_after(self._failures) * random.uniform(0.7, 1.3)
        self._tell(kind, words)

    def _tell(self, kind: Literal["agent ended", "no contact"], words: str) -> None:
        is_news = self._away_since is None
        if is_news:
            self._away_since = self._last_at
            self._told += 1
        at = round(time.time(), 3)
        self._sink.interruption(Interruption(self.host, kind, words, at, self._restarts, is_news))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def pause_after(failures: int) -> float:
    """Seconds until an agent is started again, which has ended so often in a row."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(max(failures - 1, 0), 10))
