"""Watches the nodes of a run: starts an agent on each, takes what they print, and starts one again that ended.

It works in one thread of its own with non-blocking pipes, so that neither a node nor a slow disk ever delays the supervisor, and
an error here ends the watching, not the run. An agent lives no longer than this process: its stdin ends with it, and where that
end cannot reach it, it ends after a minute in which it was told nothing.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from core.cluster.agent_stream import UNHEARD_S, AgentStream, Node, Sink
from core.cluster.reach import LocalReach, Reach, client_environment, piped_python
from core.cluster.sample_files import SampleFiles
from core.runs.directory import RunDirectory

PERIOD_S = 2.0
MOST_STARTING = 10
"""Agents that have been started and not yet heard of; above ten connections at once, an sshd refuses some."""
CHECK_S = 0.5
LET_GO_S = 1.0
"""For the agents to end by themselves at a stop; also over ssh, which has to ask the other end."""
STOP_S = 2.0


def local_node(run: RunDirectory | None, folder: Path, period: float = PERIOD_S) -> Node:
    """This machine by its own name."""
    return remote_node(os.uname().nodename, LocalReach(), sys.executable, run, folder, period)


def remote_node(
    name: str, reach: Reach, python: str, run: RunDirectory | None, folder: Path, period: float = PERIOD_S
) -> Node:
    """A node of the inventory. The agent gets no secret, and not the run's mark: it must survive what ends the run's processes.

    Args:
        python: Any Python from 3.8 on; on another node at this place over there.
        run: Whose processes are listed.
        folder: Whose disk is looked at.
    """
    return Node(
        host=name,
        argv=reach.argv(name, piped_python(python, "llm-wizard-agent")),
        env=client_environment(),
        config={
            "period": period,
            "run": None if run is None else str(run.root),
            "folder": str(folder),
            # Over ssh or srun the agent's parent is not ours.
            "parent": os.getpid() if reach.kind == "local" else None,
            "silence": UNHEARD_S,
        },
        way=reach.kind,
    )


def nodes_to_watch(
    names: Sequence[str], reach: Reach, python: str, run: RunDirectory | None, folder: Path
) -> list[Node]:
    """The named nodes, this machine as itself where it is one of them."""
    own = os.uname().nodename
    return [
        remote_node(name, LocalReach(), sys.executable, run, folder)
        if name in (own, own.partition(".")[0])
        else remote_node(name, reach, python, run, folder)
        for name in names
    ]


def collector_of(
    run: RunDirectory,
    event: Callable[..., None],
    names: Sequence[str] = (),
    reach: Reach | None = None,
    python: str = sys.executable,
) -> Collector:
    """What watches a run's nodes, and this machine, where the stages without nodes run.

    Args:
        event: Gets kind "agent" with `node`, `state` ("agent ended", "no contact" or "back") and `text`.
        names: The nodes of the inventory, to be reached by `reach`.
        python: The training Python over there.
    """
    nodes = nodes_to_watch(names, reach or LocalReach(), python, run, run.root)
    if not any(node.way == "local" for node in nodes):
        nodes.insert(0, local_node(run, run.root))
    return Collector(nodes, SampleFiles(run, event))


class Collector:
    """The agents of all nodes of one run."""

    def __init__(self, nodes: Sequence[Node], sink: Sink) -> None:
        self._sink = sink
        self._selector = selectors.DefaultSelector()
        self._streams: list[AgentStream] = []
        self._new: SimpleQueue[Node] = SimpleQueue()
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        self._thread = threading.Thread(target=self._collect, name="node samples", daemon=True)
        self.watch(nodes)

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads for this user: the run matters more
            print(f"the nodes are not watched: {error}", file=sys.stderr, flush=True)

    def watch(self, nodes: Sequence[Node]) -> None:
        """Watch these nodes too; one that is watched already is left as it is. May be called at any time."""
        for node in nodes:
            self._new.put(node)

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

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _collect(self) -> None:
        try:
            next_check = 0.0
            while not self._stopping:
                asked_at = time.monotonic()
                for key, _ in self._selector.select(max(0.0, next_check - asked_at)):
                    key.data()
                if asked_at >= next_check:
                    # By the time before the pipes were asked: where a disk has held us up since, a node was not silent.
                    self._check(asked_at)
                    next_check = asked_at + CHECK_S
        except Exception:
            traceback.print_exc()
        finally:
            for stream in self._streams:
                stream.let_go()
            deadline = time.monotonic() + LET_GO_S
            for stream in self._streams:
                stream.end(deadline)
            with contextlib.suppress(Exception):
                self._sink.close()
            self._selector.close()
            os.close(self._wake_read)

    def _check(self, now: float) -> None:
        with contextlib.suppress(Empty):
            while True:
                node = self._new.get_nowait()
                if all(stream.host != node.host for stream in self._streams):
                    self._streams.append(AgentStream(node, self._sink, self._selector))
        for stream in self._streams:
            stream.check(now)
        starting = sum(stream.is_starting for stream in self._streams)
        for stream in sorted(self._streams, key=lambda stream: stream.due_at):
            if starting < MOST_STARTING and stream.is_due(now):
                stream.open(now)
                starting += stream.is_starting
