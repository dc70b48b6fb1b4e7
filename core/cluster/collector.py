"""Starts the node agents, takes what they print, and starts an agent again that ended.

It works in one thread of its own with non-blocking pipes, so that neither a node nor a slow disk ever delays the supervisor, and
an error here ends the watching, not the run. An agent lives no longer than this process: its stdin ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import orjson

from core.cluster.sample_files import SampleFiles
from core.runs.directory import RunDirectory
from core.runs.masking import secret_names
from core.runs.process import MARK
from core.text.plain import plain

PERIOD_S = 2.0
SILENCE_S = 30.0
"""An agent that printed nothing for so long is ended and started again: its link may be dead without either end knowing."""
MOST_STARTING = 10
"""Agents that have been started and not yet heard of; above ten connections at once, an sshd refuses some."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
STEADY_S = 60.0
"""An agent that has been heard of for so long is well: the next pause is the first one again."""
STOP_S = 2.0
LONGEST_LINE = 1 << 20

READ_AGENT = "import sys;r=sys.stdin.buffer;exec(compile(r.read(int(r.readline())),'llm-wizard-agent','exec'))"
"""Reads the agent's text from stdin, its length first, and leaves stdin open. Nothing of a run stands in a command line."""
PYTHON_OPTIONS = ("-I", "-S")
"""No PYTHON* variable, no working folder, no site-packages: the agent needs only the standard library."""

_NUMBERS = ("cpu", "cores", "load", "memory_used", "memory_total", "disk_free", "disk_total")
_RATES = ("net_rx", "net_tx", "ib_rx", "ib_tx")
_GPU_NUMBERS = ("util", "memory_used", "memory_total", "temperature", "power", "power_limit", "clock")
_PROCESS_NUMBERS = ("pid", "rank", "local_rank", "gpu", "cpu", "rss", "gpu_memory")


@dataclass(frozen=True)
class Node:
    """Where an agent runs: `argv` starts a Python there with READ_AGENT; `config` is the agent's line of JSON."""

    host: str
    argv: Sequence[str]
    env: Mapping[str, str]
    config: Mapping[str, Any]


class Sink(Protocol):
    """Who gets the samples; called in the collector's thread."""

    def sample(self, host: str, sample: Mapping[str, Any]) -> None:
        """One sample; "time" is the arrival by this machine's clock, so that all nodes of a run are on one clock."""

    def failure(self, host: str, time: float, text: str, restarts: int, is_news: bool) -> None:
        """An agent ended; `is_news` when it had been well before, `restarts` counts all of them."""

    def close(self) -> None:
        """Nothing follows."""


def local_node(run: RunDirectory | None, folder: Path, period: float = PERIOD_S) -> Node:
    """This machine. The agent gets no secret, and not the run's mark: it must survive what ends the run's processes."""
    hidden = {MARK, *secret_names(os.environ)}
    return Node(
        host=os.uname().nodename,
        argv=[sys.executable, *PYTHON_OPTIONS, "-c", READ_AGENT],
        env={name: value for name, value in os.environ.items() if name not in hidden},
        config={
            "period": period,
            "run": None if run is None else str(run.root),
            "folder": str(folder),
            "parent": os.getpid(),
        },
    )


def collector_of(run: RunDirectory, warn: Callable[[str], None]) -> Collector:
    """What watches this machine for a run; `warn` gets a sentence when an agent ended."""
    return Collector([local_node(run, run.root)], SampleFiles(run, warn))


class Collector:
    """The agents of all nodes of one run."""

    def __init__(self, nodes: Sequence[Node], sink: Sink) -> None:
        self._sink = sink
        self._selector = selectors.DefaultSelector()
        self._streams = [AgentStream(node, sink, self._selector) for node in nodes]
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ, lambda: None)
        self._thread = threading.Thread(target=self._collect, name="node samples", daemon=True)

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads for this user: the run matters more
            print(f"the nodes are not watched: {error}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """End all agents; returns within STOP_S even when a disk or a node does not answer."""
        if self._stopping:
            return
        self._stopping = True
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b".")
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        os.close(self._wake_write)

    def _collect(self) -> None:
        try:
            next_check = 0.0
            while not self._stopping:
                now = time.monotonic()
                if now >= next_check:
                    self._check(now)
                    next_check = now + 0.5
                for key, _ in self._selector.select(max(0.0, next_check - now)):
                    key.data()
        except Exception:
            traceback.print_exc()
        finally:
            for stream in self._streams:
                stream.let_go()
            deadline = time.monotonic() + 0.3
            for stream in self._streams:
                stream.end(deadline)
            with contextlib.suppress(Exception):
                self._sink.close()
            self._selector.close()
            os.close(self._wake_read)

    def _check(self, now: float) -> None:
        starting = sum(stream.is_starting for stream in self._streams)
        for stream in self._streams:
            stream.check(now)
            if stream.is_due(now) and starting < MOST_STARTING:
                stream.open(now)
                starting += stream.is_starting


class AgentStream:
    """The agent of one node, through all its restarts."""

    def __init__(self, node: Node, sink: Sink, selector: selectors.BaseSelector) -> None:
        self._node = node
        self._sink = sink
        self._selector = selector
        self._process: subprocess.Popen[bytes] | None = None
        self._to_send = b""
        self._held = b""
        self._words = ""
        self._first_at: float | None = None
        self._last_at = 0.0
        self._due_at = 0.0
        self._failures = 0
        self._restarts = 0

    @property
    def is_starting(self) -> bool:
        return self._process is not None and self._first_at is None

    def is_due(self, now: float) -> bool:
        return self._process is None and now >= self._due_at

    def open(self, now: float) -> None:
        """Start the agent; what it needs to be told is sent as its pipe takes it."""
        self._held, self._words, self._first_at, self._last_at = b"", "", None, now
        try:
            code = Path(__file__).with_name("agent.py").read_bytes()
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
            self._failed(f"{self._node.argv[0]} could not be started: {error.strerror or error}")
            return
        assert process.stdin is not None
        assert process.stdout is not None
        self._to_send = b"%d\n%b%b\n" % (len(code), code, json.dumps(dict(self._node.config)).encode())
        for pipe, event, call in (
            (process.stdin, selectors.EVENT_WRITE, self._send),
            (process.stdout, selectors.EVENT_READ, self._receive),
        ):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe.fileno(), event, call)

    def check(self, now: float) -> None:
        """End an agent that has gone silent; it is then started again like any other."""
        if self._process is not None and now - self._last_at > SILENCE_S:
            self._failed(f"nothing heard for {SILENCE_S:.0f} s")

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
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # broken: its end is read from the other pipe
            self._to_send = self._to_send[os.write(descriptor, self._to_send) :]
            if self._to_send:
                return
        self._selector.unregister(descriptor)

    def _receive(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        try:
            data = os.read(self._process.stdout.fileno(), 1 << 18)
        except BlockingIOError:
            return
        if not data:
            self._failed(self._last_words())
            return
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._held) > LONGEST_LINE:
            self._failed("it printed a line without end")

    def _line(self, line: bytes) -> None:
        sample = read_sample(line)
        if sample is None:
            self._words = plain(line.decode("utf-8", "replace")).strip()[:300] or self._words
            return
        now = time.monotonic()
        self._first_at = now if self._first_at is None else self._first_at
        self._last_at = now
        if now - self._first_at > STEADY_S:
            self._failures = 0
        received = round(time.time(), 3)
        sample["clock_ahead"] = round(sample["time"] - received, 3)
        sample |= {"time": received, "host": self._node.host, "restarts": self._restarts}
        self._sink.sample(self._node.host, sample)

    def _last_words(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(0.1)
        except subprocess.TimeoutExpired:
            return self._words or "it closed its output"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{how}: {self._words}" if self._words else how

    def _failed(self, text: str) -> None:
        was_well = self._failures == 0
        self.let_go()
        self.end(0.0)
        self._failures += 1
        self._restarts += 1
        self._due_at = time.monotonic() + pause_after(self._failures) * random.uniform(0.7, 1.3)
        self._sink.failure(self._node.host, round(time.time(), 3), text, self._restarts, was_well)


def pause_after(failures: int) -> float:
    """Seconds until an agent is started again, which has ended so often in a row."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))


def read_sample(line: bytes) -> dict[str, Any] | None:
    """The sample in a line of an agent, its fields of the right types; None for anything else (a banner, an error).

    What a node sends is not trusted: a sample is averaged, written and drawn.
    """
    try:
        sample = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(sample, dict) or not _is_number(sample.get("time")) or not _is_number(sample.get("period")):
        return None
    good = (
        isinstance(sample.get("seq"), int)
        and sample["period"] > 0
        and isinstance(sample.get("nvml"), str)
        and _is_number(sample.get("nvml_blocked_s"))
        and _has_numbers(sample, (*_NUMBERS, *_RATES))
        and _are_gpus(sample.get("gpus"), _GPU_NUMBERS)
        and _is_slow_part(sample.get("slow", "missing"))
    )
    return sample if good else None


def _is_slow_part(slow: object) -> bool:
    if not isinstance(slow, dict):
        return slow is None
    processes = slow.get("processes")
    return (
        isinstance(processes, list)
        and all(isinstance(process, dict) and _has_numbers(process, _PROCESS_NUMBERS) for process in processes)
        and _are_gpus(slow.get("gpus"), ("ecc",))
    )


def _are_gpus(gpus: object, numbers: Sequence[str]) -> bool:
    return isinstance(gpus, list) and all(
        isinstance(gpu, dict) and isinstance(gpu.get("index"), int) and _has_numbers(gpu, numbers) for gpu in gpus
    )


def _has_numbers(document: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether each is there, as a number or None."""
    return all(name in document and (document[name] is None or _is_number(document[name])) for name in names)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
