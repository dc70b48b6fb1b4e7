"""Looking at many nodes at once over the system's ssh, and judging them together.

The probe is piped to each node's training Python. At most ten connections are open at once; a node that does not answer
becomes `unknown` with its reason, and the others are judged without it. The user's ~/.ssh is read by ssh and never written: no
key is learnt, no question asked. Where the user has had one made (`--fix ssh.config`), ssh uses a configuration of our own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.cluster import reach
from core.cluster.reach import SSH_OPTIONS
from core.doctor.check import Check, compare, judge
from core.doctor.checks.ssh import is_unknown
from core.doctor.examine import PROBE, masked, observe, parse_line, probe_timeout, wanted_of
from core.doctor.finding import Finding, Observation
from core.doctor.fix import Fix
from core.doctor.host_keys import offered_keys
from core.doctor.needs import Needs
from core.doctor.probe import own_addresses

AT_ONCE = 10
SILENT_S = 10.0
"""A node that has said nothing for so long, not even that it is there, is given up; ssh's own time-out is half of it."""
MEET_S = 30
"""How long the ranks of the doctor's own all-reduce wait for each other."""
# $0 is the training Python, $1 what the probe is asked, $2 the same for a Python that stands in for a broken one.
REMOTE = (
    'PATH="$(dirname -- "$0"):$PATH"; export PATH; '
    'if said=$("$0" -c "" 2>&1 </dev/null); then exec "$0" - "$1"; else exec python3 - "$2" "$said"; fi'
)


def ssh_argv(node: str, needs: Needs, wanted: Mapping[str, Any]) -> list[str]:
    """The command that pipes the probe to a node; every word is quoted for the shell over there."""
    instead = json.dumps({**wanted, "instead_of": needs.python})
    return reach.ssh_argv(node, ["sh", "-c", REMOTE, needs.python, json.dumps(wanted), instead], SSH_OPTIONS)


@dataclass
class Connection:
    """One node's probe on its way. `deadline` moves on once the node has said something."""

    node: str
    process: subprocess.Popen[bytes]
    started: float
    deadline: float
    held: bytes = b""
    first_after: float | None = None
    words: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def take(self, chunk: bytes) -> Iterator[Observation]:
        """The observations in what came."""
        now = time.time()
        *lines, self.held = (self.held + chunk).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace")
            observation = parse_line(text, self.node)
            if observation is None:
                self.words.append(masked(text.strip()))
                continue
            if self.first_after is None:
                self.first_after = now - self.started
            self.seen.add(observation.id)
            if observation.id == "ssh.batch":
                continue  # a node cannot say how it was reached: `end` does
            if observation.id == "clock.skew" and observation.value is not None:
                value = {"offset": offset_of(float(observation.value["time"]), self.started, now)}
                observation = Observation(observation.id, self.node, value)
            yield observation

    def end(self, late: bool, asked: Iterable[str]) -> Iterator[Observation]:
        """How the connection itself went, and what the node did not get to; its process is gone afterwards."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        words = [word for word in self.words if word]
        said = words[-1] if words else ""
        waited = time.time() - self.started
        if late and not self.seen:
            reason = Observation("", self.node, error="timeout", detail=f"no answer within {waited:.0f} s")
        elif not self.seen and code == 255:
            reason = Observation("", self.node, error="ssh", detail=said or "no connection")
        else:
            reason = Observation("", self.node, error="timeout" if late else "missing", detail=said)
        connected = bool(self.seen) or (code != 255 and not late)
        value = {
            "asked": True,
            "connected": connected,
            "seconds": self.first_after if self.first_after is not None else waited,
            "words": "\n".join(words[-5:]),
            "node": self.node,
            "offered": None,
        }
        if late and not self.seen:
            yield Observation("ssh.batch", self.node, error=reason.error, detail=reason.detail)
        else:
            yield Observation("ssh.batch", self.node, value)
        for name in asked:
            if name not in self.seen and name != "ssh.batch":
                yield Observation(name, self.node, error=reason.error, detail=reason.detail)


def offset_of(there: float, sent: float, arrived: float) -> float:
    """How far a clock is off at least, seconds: it was read somewhere between sending and arrival, which proves no more."""
    return max(there - arrived, 0.0) if there > sent else there - sent


def look_at_nodes(
    needs: Needs, wanted: Mapping[str, Mapping[str, Any]], limit: float, at_once: int = AT_ONCE
) -> Iterator[Observation]:
    """What the probes of all nodes see, as it comes; `wanted` by node. Every observation asked for comes once a node."""
    waiting = list(wanted)
    running: dict[int, Connection] = {}
    try:
        with selectors.DefaultSelector() as selector:
            while waiting or running:
                while waiting and len(running) < at_once:
                    node = waiting.pop(0)
                    connection = _connect(node, needs, wanted[node])
                    assert connection.process.stdout is not None
                    running[connection.process.stdout.fileno()] = connection
                    selector.register(connection.process.stdout, selectors.EVENT_READ)
                until = max(0.0, min(one.deadline for one in running.values()) - time.monotonic())
                for key, _ in selector.select(until):
                    connection = running[key.fd]
                    chunk = os.read(key.fd, 1 << 16)
                    yield from connection.take(chunk)
                    if connection.seen and connection.deadline <= time.monotonic() + SILENT_S:
                        connection.deadline = time.monotonic() + limit
                    if not chunk:
                        yield from _end(connection, running, selector, False, wanted)
                for connection in [one for one in running.values() if one.deadline <= time.monotonic()]:
                    yield from _end(connection, running, selector, True, wanted)
    finally:
        for connection in running.values():
            with contextlib.suppress(OSError):
                os.killpg(connection.process.pid, signal.SIGKILL)
            connection.process.wait()


def _connect(node: str, needs: Needs, wanted: Mapping[str, Any]) -> Connection:
    with PROBE.open("rb") as source:
        process = subprocess.Popen(
            ssh_argv(node, needs, wanted),
            stdin=source,  # a file: no pipe of ours can fill up while a node hangs
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Connection(node, process, time.time(), time.monotonic() + SILENT_S)


def _end(
    connection: Connection,
    running: dict[int, Connection],
    selector: selectors.BaseSelector,
    late: bool,
    wanted: Mapping[str, Mapping[str, Any]],
) -> Iterator[Observation]:
    assert connection.process.stdout is not None
    selector.unregister(connection.process.stdout)
    del running[connection.process.stdout.fileno()]
    if connection.held:
        yield from connection.take(b"\n")
    yield from connection.end(late, wanted[connection.node]["observations"])


def examine_fleet(needs: Needs, checks: list[Check], imports: bool = False) -> Iterator[Finding]:
    """The findings of these checks on `needs.nodes`: those of one node as they come, comparisons once all have answered."""
    here = socket.gethostname()
    from_here = {check.id for check in checks if check.scope in ("pair", "fleet")}
    for finding in _examine_nodes(needs, checks, here, imports):
        # The way to a node, and what all nodes share, is mended at this end.
        yield finding if finding.node == here or finding.id in from_here else _by_hand(finding)


def _by_hand(finding: Finding) -> Finding:
    """`doctor --fix` mends the machine it is called on: what mends another is typed there."""
    fix = finding.fix
    if fix is None or not fix.runnable:
        return finding
    return replace(finding, verdict=replace(finding.verdict, fix=Fix(fix.id, fix.risk, advice=fix.preview)))


def _examine_nodes(needs: Needs, checks: list[Check], here: str, imports: bool) -> Iterator[Finding]:
    head = [check for check in checks if check.scope == "head"]
    for observation in observe(needs.python, wanted_of(needs, head, imports), here) if head else ():
        for check in head:
            if check.observation == observation.id:
                yield judge(check, observation, here, needs)
    others = [check for check in checks if check.scope != "head"]
    seen: dict[str, dict[str, Observation]] = {node: {} for node in needs.nodes}
    with Surroundings(needs) as surroundings:
        base = wanted_of(needs, [check for check in others if check.id not in ("net.gloo", "net.nccl")], imports)
        strangers = []
        for observation in look_at_nodes(needs, surroundings.wanted(base), probe_timeout() + 60):
            seen[observation.node][observation.id] = observation
            if _is_stranger(observation):
                strangers.append(observation)
            else:
                yield from _judge_one(others, observation, needs)
    keys = offered_keys(observation.node for observation in strangers)
    for observation in strangers:
        value = {**(observation.value or {}), "offered": keys.get(observation.node)}
        yield from _judge_one(others, replace(observation, value=value), needs)
    for name in ("net.gloo", "net.nccl"):
        if any(check.id == name for check in others):
            for observation in _all_reduce(needs, name, seen):
                seen[observation.node][observation.id] = observation
    for check in others:
        if check.compare is not None:
            yield from compare(check, {node: seen[node].get(check.observation) for node in needs.nodes}, needs)


def _judge_one(checks: list[Check], observation: Observation, needs: Needs) -> Iterator[Finding]:
    for check in checks:
        if check.compare is None and check.observation == observation.id:
            yield judge(check, observation, observation.node, needs)


def _is_stranger(observation: Observation) -> bool:
    value = observation.value if observation.id == "ssh.batch" else None
    return value is not None and is_unknown(str(value["words"]))


def _all_reduce(needs: Needs, name: str, seen: Mapping[str, Mapping[str, Observation]]) -> Iterator[Observation]:
    """One collective over the nodes that answered. Where it fails, in pairs, so that it is known who is at fault."""
    ways = {node: observations.get("ssh.batch") for node, observations in seen.items()}
    nodes = [node for node, way in ways.items() if way and way.value and way.value["connected"]]
    if len(nodes) < 2:
        return
    together = _meet(needs, name, [nodes])
    yield from (
        together if all(map(_is_right, together.values())) else _who_fails(needs, name, nodes, together)
    ).values()


def _who_fails(
    needs: Needs, name: str, nodes: list[str], together: Mapping[str, Observation]
) -> Mapping[str, Observation]:
    """First neighbours, then each of a pair that failed with one that did not; what failed together where that shows nobody."""
    pairs = [nodes[at : at + 2] for at in range(0, len(nodes) - 1, 2)]
    found = _meet(needs, name, pairs)
    good = [node for pair in pairs for node in pair if all(_is_right(found[other]) for other in pair)]
    suspects = [node for node in nodes if node not in good]
    if not good or not suspects:
        return together
    again = [[good[at % len(good)], node] for at, node in enumerate(suspects)]
    alone = _meet(needs, name, again)
    return {node: (found if node in good else alone)[node] for node in nodes}


def _meet(needs: Needs, name: str, groups: list[list[str]]) -> dict[str, Observation]:
    """What each node saw of its group's collective, all groups at once; of a node in several groups, its last."""
    results: dict[str, Observation] = {}
    # A node may be in one group only at a time: its ranks would be asked under one name.
    for batch in _disjoint(groups):
        wanted = {}
        for group in batch:
            # Not the port of a training; two doctors at once rarely meet.
            ranks = {
                "address": group[0],
                "port": random.randrange(20_000, 29_000),
                "world": len(group),
                "limit": MEET_S,
            }
            for rank, node in enumerate(group):
                # python.env answers at once: a node that is silent is told from one that waits for the others.
                asked = {"observations": ["python.env", name], "timeout": probe_timeout()}
                wanted[node] = {**asked, "ranks": {**ranks, "rank": rank}}
        # They wait for each other: all must be there at once.
        for one in look_at_nodes(needs, wanted, probe_timeout() + MEET_S + 30, at_once=len(wanted)):
            if one.id == name:
                results[one.node] = one
    return results


def _disjoint(groups: list[list[str]]) -> list[list[list[str]]]:
    """The groups in as few batches as it takes for no node to be twice in one."""
    batches: list[list[list[str]]] = []
    for group in groups:
        for batch in batches:
            if not any(node in other for other in batch for node in group):
                batch.append(group)
                break
        else:
            batches.append([group])
    return batches


def _is_right(observation: Observation) -> bool:
    return bool(observation.value and observation.value["ok"])


class Surroundings:
    """What the nodes are to find: an open port of this machine, and a file of its own in the folder that must be shared."""

    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._nonce = uuid.uuid4().hex
        folder = Path(needs.folder)
        # Path.is_dir raises where a folder may not be looked into.
        self._folder = folder if os.path.isdir(folder) else None  # noqa: PTH112
        self._listener = socket.socket()

    def __enter__(self) -> Surroundings:
        self._listener.bind(("", 0))
        self._listener.listen(128)  # connections need no more than the kernel's own answer
        if self._folder:
            try:
                self._note.write_text(self._nonce)
            except OSError:  # read-only here: fs.space says so
                self._folder = None
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        if self._folder:
            self._note.unlink(missing_ok=True)

    @property
    def _note(self) -> Path:
        assert self._folder is not None
        return self._folder / f".llm-wizard-{self._nonce}"

    def wanted(self, base: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What each node is asked."""
        shared = {str(self._folder): self._nonce} if self._folder else {}
        told = {**base, "shared": shared, "listener": self._listener.getsockname()[1], "head": own_addresses()}
        return dict.fromkeys(self._needs.nodes, told)
