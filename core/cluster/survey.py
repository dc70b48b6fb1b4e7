"""Asking all nodes of a run what they are, and whether they fit together, before anything is started on them.

The node survey is piped to each node's training Python. At most ten connections are opening at once; one node that is down or hangs
costs its own time, and its error names it. What a node answers is not trusted: it is checked, and goes into environments and texts.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson

from core.cluster import node_survey
from core.cluster.inventory import Inventory
from core.cluster.reach import Reach, client_environment, piped_program, piped_python
from core.errors import StageError
from core.facts import Gpu
from core.runs.masking import Masker
from core.text.plain import one_line

OPENING = 10
"""Connections that have been started and not yet heard of; above ten at once, an sshd refuses some."""
HERE_S = 15.0
"""From the start to the first word: an ssh that connects, a login, a Python."""
DONE_S = node_survey.DRIVER_S + 5
"""From there to the answer; the node limits each of its looks itself."""
CLOSE_S = 1.0
"""For the connection to close after the answer."""
LONGEST = 1 << 20
SHOWN = 5
INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,14}")
VERSION = re.compile(r"\d{1,2}\.\d{1,3}\.\d{1,3}")
MOST_GPUS = 256


@dataclass(frozen=True)
class NodeFacts:
    """What one node said. The `no_*` and `not_shared` are reasons in words, empty where all is well."""

    name: str
    """As the inventory calls it."""
    host: str
    """As it calls itself."""
    machine: str
    """The same for two names of one machine; empty where it is unknown."""
    python: str
    python_version: str
    """Such as 3.11.4."""
    cores: int
    """Those that a process started there may use."""
    memory: int
    """Bytes; the limit of its control group where that is less than the machine has."""
    gpus: tuple[Gpu, ...]
    address: str
    """IPv4, by which the other nodes reach it."""
    interface: str
    """The interface that has this address; empty for a single node."""
    port: int
    """A TCP port that was free."""
    no_gpus: str = ""
    no_route: str = ""
    not_shared: str = ""


@dataclass(frozen=True)
class Answers:
    """By node, in the order asked: the facts of each that answered, and in words why another did not."""

    facts: dict[str, NodeFacts] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def survey(nodes: Sequence[str], reach: Reach, python: str, folder: Path, interface: str = "") -> Answers:
    """Ask all nodes at once. A node that answers with something missing is among the facts: `check_nodes` judges.

    Args:
        python: The training Python, at the same place on every node.
        folder: What must be shared; where it is not there yet, the nearest folder above it that is.
        interface: The network interface that the ranks are to use; found by the route to the other nodes when empty.

    Raises:
        StageError: the folder cannot be written from here.
    """
    answers = Answers()
    with _noted(folder) as told:
        _ask_all(nodes, reach, python, {**told, "interface": interface}, answers)
    return Answers(
        {node: answers.facts[node] for node in nodes if node in answers.facts},
        {node: answers.errors[node] for node in nodes if node in answers.errors},
    )


def interface_variables(interface: str) -> dict[str, str]:
    """What makes NCCL and Gloo talk over an interface; nothing for "". `=` asks NCCL for this name and not all that begin so."""
    return {"NCCL_SOCKET_IFNAME": f"={interface}", "GLOO_SOCKET_IFNAME": interface} if interface else {}


def node_here(facts: Mapping[str, NodeFacts]) -> str | None:
    """Which of the nodes this process runs on; names cannot tell, a machine has many."""
    own = node_survey.machine_identity()
    return next((node for node, one in facts.items() if own and one.machine == own), None)


def check_nodes(
    inventory: Inventory, facts: Mapping[str, NodeFacts], processes: int | None, errors: Mapping[str, str] | None = None
) -> None:
    """Whether a training can start on these nodes.

    Args:
        processes: Training processes of each node, one a GPU; None where they train on the CPU.
        errors: Why nodes are missing in `facts`.

    Raises:
        StageError: a node did not answer, two are one machine, a Python or the folder is not the same everywhere, a node has no
            way to the others, or fewer GPUs than processes or the hostfile's slots. The first of these, with all nodes concerned.
    """
    missing = [
        f"{node} ({(errors or {}).get(node) or 'it was not asked'})" for node in inventory.nodes if node not in facts
    ]
    if missing:
        raise StageError(
            f"no answer from {_some(missing)}",
            "llm-wizard doctor --nodes ... says more; leave a node out of cluster.nodes",
        )
    found = [facts[node] for node in inventory.nodes]
    _check_machines(found, inventory.source)
    _check_pythons(found)
    if apart := [f"{one.name} ({one.not_shared})" for one in found if one.not_shared]:
        raise StageError(
            f"the runs folder is not shared with {_some(apart)}",
            "--runs-dir DIR, a folder on a file system that all nodes have at the same place",
        )
    if lost := [f"{one.name} ({one.no_route})" for one in found if one.no_route]:
        raise StageError(
            f"no network interface to the other nodes on {_some(lost)}",
            "cluster.interface=NAME says which; llm-wizard doctor --only network --nodes ...",
        )
    if processes is not None:
        _check_gpus(found, inventory, processes)


def check_even(inventory: Inventory, facts: Mapping[str, NodeFacts]) -> None:
    """Where nobody states the processes of a node: whether the hostfile, or else the GPUs, say the same number for all.

    Raises:
        StageError: they do not, and every node must have equally many.
    """
    what = "slots in the hostfile" if inventory.slots else "GPUs"
    counts = {node: inventory.slots.get(node) or len(facts[node].gpus) for node in inventory.nodes}
    usual = Counter(counts.values()).most_common(1)[0][0]
    if odd := [f"{node} has {count}" for node, count in counts.items() if count != usual]:
        raise StageError(
            f"nodes differ in {what}: {_some(odd)}, the others {usual}",
            f"cluster.processes={min(counts.values()) or 1} takes so many on each node; or leave the odd ones out",
        )


def _check_machines(found: Sequence[NodeFacts], source: str) -> None:
    by_machine: dict[str, list[NodeFacts]] = {}
    for one in found:
        if one.machine:
            by_machine.setdefault(one.machine, []).append(one)
    if doubled := [
        f"{' and '.join(one.name for one in same)} are one machine, {same[0].host}"
        for same in by_machine.values()
        if len(same) > 1
    ]:
        raise StageError(_some(doubled), f"{source} must name each machine once")


def _check_pythons(found: Sequence[NodeFacts]) -> None:
    """What one Python pickles another minor version may not read, and its packages are others."""
    minor = {one.name: one.python_version.rpartition(".")[0] for one in found}
    usual = Counter(minor.values()).most_common(1)[0][0]
    if other := [f"{one.name} has {one.python_version}" for one in found if minor[one.name] != usual]:
        raise StageError(
            f"{found[0].python} is another Python on some nodes: {_some(other)}, the others {usual}",
            "cluster.python=FILE, one environment on a shared file system or built alike on all nodes",
        )


def _check_gpus(found: Sequence[NodeFacts], inventory: Inventory, processes: int) -> None:
    if broken := [f"{one.name}: {one.no_gpus}" for one in found if one.no_gpus]:
        raise StageError(_some(broken), "llm-wizard doctor --only gpu,cuda --nodes ... says more")
    slots = inventory.slots
    if wrong := [
        f"{one.name} has {len(one.gpus)}, not {slots[one.name]}"
        for one in found
        if len(one.gpus) < slots.get(one.name, 0)
    ]:
        raise StageError(f"fewer GPUs than slots in {inventory.source}: {_some(wrong)}", "state what is there")
    if few := [f"{one.name} has {slots[one.name]}" for one in found if slots.get(one.name, processes) < processes]:
        raise StageError(
            f"{processes} processes on each node are more than the slots in {inventory.source}: {_some(few)}",
            "lower cluster.processes, or state more slots",
        )
    if few := [f"{one.name} has {len(one.gpus)}" for one in found if len(one.gpus) < processes]:
        raise StageError(
            f"{processes} processes on each node need as many GPUs: {_some(few)}",
            "lower cluster.processes, or leave these nodes out; CUDA_VISIBLE_DEVICES set on a node hides GPUs",
        )


def _some(things: Sequence[str]) -> str:
    more = f" and {len(things) - SHOWN} more" if len(things) > SHOWN else ""
    return "; ".join(things[:SHOWN]) + more


# --- asking


@contextlib.contextmanager
def _noted(folder: Path) -> Iterator[dict[str, str]]:
    """A note in the folder while the nodes look for it."""
    # Path.is_dir raises where a folder may not be looked into.
    there = next(one for one in (folder, *folder.parents) if os.path.isdir(one))  # noqa: PTH112
    nonce = uuid.uuid4().hex
    note = there / f".llm-wizard-{nonce}"
    try:
        note.write_text(nonce)
    except OSError as error:
        raise StageError(f"{there} cannot be written: {error.strerror or error}", "--runs-dir DIR") from None
    try:
        yield {"folder": str(there), "note": note.name, "nonce": nonce}
    finally:
        for left in (note, *there.glob(f"{note.name}.*")):  # of a node that died in between
            with contextlib.suppress(OSError):
                left.unlink()


@dataclass
class _Asked:
    """One node's survey on its way. `deadline` moves on once the node has said something."""

    node: str
    process: subprocess.Popen[bytes]
    deadline: float
    here: bool = False
    facts: NodeFacts | None = None
    held: bytes = b""
    taken: int = 0
    words: bytes = b""
    """The last line that was no answer: an ssh's, a shell's or a Python's error."""

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def take(self, chunk: bytes) -> None:
        self.taken += len(chunk)
        *lines, self.held = (self.held + chunk).split(b"\n")
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        try:
            said = orjson.loads(line)
        except orjson.JSONDecodeError:
            said = None
        step = said.get("survey") if isinstance(said, dict) else None
        if step == "here" and not self.here:
            self.here, self.deadline = True, time.monotonic() + DONE_S
        elif step == "done" and self.facts is None:
            self.facts = read_facts(self.node, said)
            self.words = b"" if self.facts else b"its answer is not one"
            self.deadline = min(self.deadline, time.monotonic() + CLOSE_S)
        elif line.strip():
            self.words = line

    def end(self, late: bool, by_ssh: bool) -> str:
        """Its process is gone afterwards. Why there is no answer, in words; "" where there is one."""
        if self.held:
            self.take(b"\n")
        if not late:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(CLOSE_S)
        _kill(self.process)
        code = self.process.wait()
        self.output.close()
        words = one_line(Masker().mask(self.words).decode("utf-8", "replace")).strip()[:300]
        if self.facts is not None:
            return ""
        if self.taken > LONGEST:
            return "it prints without end"
        if late:
            reason = f"reached, but silent for {DONE_S:.0f} s" if self.here else f"no answer within {HERE_S:.0f} s"
        elif code == 255 and by_ssh and not self.here:
            return words or "ssh made no connection"
        elif code == 0:
            reason = "it ended without an answer"
        else:
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{reason}: {words}" if words else reason


def _ask_all(nodes: Sequence[str], reach: Reach, python: str, told: Mapping[str, Any], answers: Answers) -> None:
    agent = Path(node_survey.__file__).with_name("agent.py").read_text(encoding="utf-8")
    waiting = list(nodes)
    running: dict[int, _Asked] = {}
    by_ssh = reach.kind == "ssh"

    def close(asked: _Asked, late: bool) -> None:
        selector.unregister(asked.output)
        del running[asked.output.fileno()]
        error = asked.end(late, by_ssh)
        if asked.facts is not None:
            answers.facts[asked.node] = asked.facts
        else:
            answers.errors[asked.node] = error

    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and sum(not one.here for one in running.values()) < OPENING:
                    node = waiting.pop(0)
                    # Where all ranks meet is the first node; what it talks to is the second.
                    peers = [other for other in nodes if other != node]
                    config = {**told, "agent": agent, "peers": peers[: node_survey.MOST_PEERS]}
                    argv = reach.argv(node, piped_python(python, "llm-wizard-survey"))
                    try:
                        process = _start(argv, config)
                    except OSError as error:
                        answers.errors[node] = f"{argv[0]} could not be started: {error.strerror or error}"
                        continue
                    asked = _Asked(node, process, time.monotonic() + HERE_S)
                    running[asked.output.fileno()] = asked
                    selector.register(asked.output, selectors.EVENT_READ)
                if not running:
                    continue
                until = min(one.deadline for one in running.values()) - time.monotonic()
                for key, _ in selector.select(max(0.0, until)):
                    asked = running[key.fd]
                    chunk = os.read(key.fd, 1 << 16)
                    asked.take(chunk)
                    if not chunk or asked.taken > LONGEST:
                        close(asked, late=bool(chunk))
                for asked in [one for one in running.values() if one.deadline <= time.monotonic()]:
                    close(asked, late=True)
        finally:
            for asked in running.values():
                _kill(asked.process)
                asked.process.wait()


def _start(argv: Sequence[str], config: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    with tempfile.TemporaryFile() as source:  # no pipe of ours can fill up while a node hangs
        source.write(piped_program(Path(node_survey.__file__), config))
        source.seek(0)
        return subprocess.Popen(
            list(argv),
            env=client_environment(),
            cwd="/",
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal is for us
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


# --- what a node answers is not trusted


def read_facts(node: str, said: Mapping[str, Any]) -> NodeFacts | None:
    """The facts in a node's answer; None where a field is missing or not what it should be."""
    gpus = said.get("gpus")
    if not isinstance(gpus, list) or len(gpus) > MOST_GPUS or not all(map(_is_gpu, gpus)):
        return None
    words = {name: said.get(name) for name in ("host", "machine", "python", "no_gpus", "no_route", "not_shared")}
    if not all(isinstance(text, str) and len(text) < 4096 for text in words.values()):
        return None
    if not _is_network(said.get("address"), said.get("interface"), bool(words["no_route"])):
        return None
    good = (
        isinstance(said.get("python_version"), str)
        and VERSION.fullmatch(said["python_version"])
        and _is_whole(said.get("cores"), 1, 1 << 16)
        and _is_whole(said.get("memory"), 0, 1 << 60)
        and _is_whole(said.get("port"), 1, 65535)
    )
    if not good:
        return None
    return NodeFacts(
        name=node,
        python_version=said["python_version"],
        cores=said["cores"],
        memory=said["memory"],
        gpus=tuple(Gpu(one_line(gpu["name"])[:96], gpu["memory"]) for gpu in gpus),
        address=said["address"],
        interface=said["interface"],
        port=said["port"],
        **{name: one_line(str(text))[:300] for name, text in words.items()},
    )


def _is_gpu(gpu: object) -> bool:
    return isinstance(gpu, dict) and isinstance(gpu.get("name"), str) and _is_whole(gpu.get("memory"), 1, 1 << 60)


def _is_network(address: object, interface: object, without: bool) -> bool:
    if not isinstance(address, str) or not isinstance(interface, str):
        return False
    if interface and not INTERFACE.fullmatch(interface):
        return False
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        return without and not address
    return True


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
