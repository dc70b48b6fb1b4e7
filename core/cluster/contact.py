"""The head's end of the streams to the starters: it hears what they say, and answers every beat.

It works in a thread of its own: a supervisor that waits half a minute for a shared file system must not look dead to its nodes.
Contact is a lease (core/cluster/starter.py): a starter that gets no answer ends its node's part of the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Limits:
    """Times in seconds, made smaller by tests.

    TCP sends what was not acknowledged again after 0.2, 0.6, 1.4, 3, 6.2, 12.6 and 25 s: a link that is away for up to 12 s is
    heard again at most 14.6 s after it went, with the beat before that 15.6 s. The head never has anything on its way then: it
    only answers.
    """

    beat: float = 1.0
    silent: float = 3.5
    """A node not heard for so long is in trouble; with the look at what is wrong (1 s) it is named within 5 s."""
    back_within: float = 16.0
    """A link that comes back within 12 s is heard by then and the run goes on; then the node is given up."""
    silence: float = 17.0
    """A starter whose beats were not answered for so long ends its part; after the head, which then knows why."""
    lost_grace: float = 5.0
    """Between its SIGTERM and SIGKILL."""
    safe_again: float = 25.0
    """After the last contact nothing of the run is alive on a node by itself: silence + lost_grace, and 3 s to end what is slow to go."""
    settle: float = 1.0
    """Signs of trouble that come within so long are judged together: a node that dies also ends the ranks of others, at once."""
    fail_grace: float = 4.0
    """The ranks of other nodes get this between SIGTERM and SIGKILL: they wait in a collective and will not save."""
    sweep: float = 6.0
    """At least for a sweep to get to a node that was given up: ssh itself gives up after 5 s."""
    start: float = 30.0
    """For a node's first word: a busy login, and a Python on a shared file system."""


SAFE_AGAIN_S = Limits.safe_again


@dataclass(frozen=True)
class Message:
    """What a node said: `what` and `values` of a starter's line, "words" (any other line) or "closed" (nothing follows)."""

    node: str
    at: float
    what: str
    values: Mapping[str, Any]

    def number(self, name: str) -> int | None:
        """A field that should be a whole number, of 32 bits; None where it is not: what a node sends is not trusted."""
        value = self.values.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31 else None


@dataclass
class _Stream:
    node: str
    process: subprocess.Popen[bytes]
    to_send: bytes
    held: bytes = b""


class Contact:
    """All streams of one start of a stage; every method may be called while the thread works."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        """When each node was last heard (monotonic)."""
        self._streams: dict[str, _Stream] = {}
        self._selector = selectors.DefaultSelector()
        self._news: SimpleQueue[Message] = SimpleQueue()
        self._to_do: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.news_descriptor, self._news_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        self._closing = False
        self._thread = threading.Thread(target=self._listen, name="contact with nodes", daemon=True)
        self._thread.start()

    def add(self, node: str, process: subprocess.Popen[bytes], first: bytes) -> None:
        """Begin to listen to `process.stderr`; `first` goes to its stdin."""
        self._do(lambda: self._add(_Stream(node, process, first)))

    def say(self, node: str, word: str) -> None:
        """Send "start", "term", "kill" or "stacks" to a starter that has been heard."""
        self._do(lambda: self._say(node, word.encode() + b"\n"))

    def drop(self, node: str) -> None:
        """Hear and answer a node no more; its stdin ends."""
        self._do(lambda: self._drop(node))

    def news(self) -> list[Message]:
        """What has been said since the last call; `news_descriptor` is readable when there is something."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.news_descriptor, 4096):
                pass
        messages = []
        with contextlib.suppress(Empty):
            while True:
                messages.append(self._news.get_nowait())
        return messages

    def tell(self, node: str, what: str, values: Mapping[str, Any] | None = None) -> None:
        """Put a message among the news, from any thread."""
        self._news.put(Message(node, time.monotonic(), what, values or {}))
        with contextlib.suppress(OSError):  # full: it is readable, or closed: nobody reads
            os.write(self._news_write, b".")

    def close(self) -> None:
        """Drop all nodes and end the thread."""
        self._closing = True
        self._do(lambda: None)
        self._thread.join(2.0)
        for descriptor in (self.news_descriptor, self._news_write, self._wake_write):
            os.close(descriptor)

    def _do(self, action: Callable[[], None]) -> None:
        self._to_do.put(action)
        with contextlib.suppress(OSError):  # full: it will wake up anyway; broken: it has ended
            os.write(self._wake_write, b".")

    # --- In the thread

    def _listen(self) -> None:
        try:
            while not self._closing:
                for key, _ in self._selector.select():
                    key.data()
        except Exception as error:
            traceback.print_exc()
            self.tell("", "broken", {"text": repr(error)})
        finally:
            for node in list(self._streams):
                self._drop(node)
            self._selector.close()
            os.close(self._wake_read)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        with contextlib.suppress(Empty):
            while True:
                self._to_do.get_nowait()()

    def _add(self, stream: _Stream) -> None:
        assert stream.process.stdin is not None
        assert stream.process.stderr is not None
        self._streams[stream.node] = stream
        for pipe in (stream.process.stdin, stream.process.stderr):
            os.set_blocking(pipe.fileno(), False)
        self._selector.register(stream.process.stderr.fileno(), selectors.EVENT_READ, lambda: self._receive(stream))
        self._send(stream)

    def _say(self, node: str, line: bytes) -> None:
        stream = self._streams.get(node)
        if stream is not None:
            stream.to_send += line
            self._send(stream)

    def _send(self, stream: _Stream) -> None:
        stdin = stream.process.stdin
        if stdin is None or stdin.closed:
            return
        with contextlib.suppress(BlockingIOError):
            try:
                while stream.to_send:
                    stream.to_send = stream.to_send[os.write(stdin.fileno(), stream.to_send) :]
            except OSError:  # broken: its end is read from the other pipe
                stream.to_send = b""
        registered = stdin.fileno() in self._selector.get_map()
        if stream.to_send and not registered:
            self._selector.register(stdin.fileno(), selectors.EVENT_WRITE, lambda: self._send(stream))
        elif registered and not stream.to_send:
            self._selector.unregister(stdin.fileno())

    def _receive(self, stream: _Stream) -> None:
        if self._streams.get(stream.node) is not stream or stream.process.stderr is None:
            return
        try:
            data = os.read(stream.process.stderr.fileno(), 1 << 16)
        except BlockingIOError:
            return
        *lines, stream.held = (stream.held + data).split(b"\n")
        if len(stream.held) > LONGEST_LINE or (not data and stream.held):
            lines.append(stream.held)
            stream.held = b""
        for line in lines:
            self._line(stream, line)
        if not data:
            self._drop(stream.node)
            self.tell(stream.node, "closed")

    def _line(self, stream: _Stream, line: bytes) -> None:
        document = parsed(line)
        if document is None:
            if text := line.decode("utf-8", "replace").strip():
                self.tell(stream.node, "words", {"text": text})
            return
        self.last[stream.node] = time.monotonic()
        if document["lw"] == "alive":
            # No second answer behind one that the link does not take: it would be old when it arrives.
            if not stream.to_send and isinstance(document.get("n"), int):
                stream.to_send = b"alive %d\n" % document["n"]
            self._send(stream)
        self.tell(stream.node, document["lw"], document)

    def _drop(self, node: str) -> None:
        stream = self._streams.pop(node, None)
        if stream is None:
            return
        for pipe in (stream.process.stdin, stream.process.stderr):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(pipe.fileno())
                with contextlib.suppress(OSError):
                    pipe.close()


def parsed(line: bytes) -> dict[str, Any] | None:
    """A starter's line; None for any other."""
    if not line.startswith(b'{"lw":'):
        return None
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) and isinstance(document.get("lw"), str) else None


def end_client(process: subprocess.Popen[bytes]) -> int:
    """End our side of a connection, where it has not ended by itself; its exit code."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()
