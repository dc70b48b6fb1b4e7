"""Which nodes are meant: names with ranges such as node[001-016], a DeepSpeed hostfile, or a Slurm allocation."""

from __future__ import annotations

import configparser
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from core.cluster.reach import checked_node
from core.errors import InputError, StageError

SLOTS = re.compile(r"(\S+)\s+slots=(\d{1,4})\s*")
OPERATOR = re.compile(r"[,!&^](?![^\[]*\])")
"""What stands between the operands of a node set: and, without, in both, in one of both."""
OPERAND = re.compile(r"[A-Za-z0-9._-]*(?:\[[0-9,/-]+\][A-Za-z0-9._-]*)+")
BRACKETS = re.compile(r"\[([^\]]*)\]")
MOST = 4096
SCONTROL_S = 10.0


@dataclass(frozen=True)
class Inventory:
    """The nodes of a run in the order of their ranks. `slots` are the processes of each as a hostfile states them; empty where nothing does."""

    nodes: tuple[str, ...]
    slots: Mapping[str, int] = field(default_factory=dict)
    source: str = "cluster.nodes"
    """What named them, in words."""


def inventory_of(nodes: str, hostfile: Path | None, launcher: str, environ: Mapping[str, str]) -> Inventory | None:
    """The nodes that the preset's `cluster` section means; None for this machine alone.

    `launcher` is the section's: inside a Slurm job "auto" and "slurm" take the job's nodes where none are named, and only those.
    "slurm" outside of a job gives None too: which nodes it will be is known once the job has started.

    Raises:
        InputError: what names them is wrong, a named node is not the job's, or the launcher has no nodes to go to.
    """
    if launcher == "local":
        return None
    job = slurm_nodes(environ)
    found: Inventory | None = None
    if hostfile is not None:
        slots = read_hostfile(hostfile)
        found = Inventory(tuple(slots), slots, f"the hostfile {hostfile}")
    elif nodes:
        found = Inventory(expand(nodes))
    elif job:
        found = Inventory(job, source=f"Slurm job {environ.get('SLURM_JOB_ID', '')}".rstrip())
    if found is None and launcher in ("ssh", "deepspeed"):
        raise InputError(
            f"cluster.launcher is {launcher}, and no nodes are named",
            "cluster.nodes=node[001-016], or cluster.hostfile=FILE; for a Slurm job, also one to come: cluster.launcher=slurm",
        )
    foreign = (
        [node for node in found.nodes if node not in job] if found and job and launcher in ("auto", "slurm") else []
    )
    if foreign:
        raise InputError(
            f"not in this Slurm job: {', '.join(foreign[:5])}; the job has {', '.join(job[:5])}"
            + (f" and {len(job) - 5} more" if len(job) > 5 else ""),
            "leave cluster.nodes and cluster.hostfile empty to take the job's nodes, or use cluster.launcher=ssh",
        )
    return found


def nodes_given(launcher: str, planned: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The nodes that a stage planned for `planned` runs on: those, or in a Slurm job as many of the job's own, which no plan can know before.

    Raises:
        StageError: the job has fewer.
    """
    if launcher != "slurm":
        return list(planned)
    given = slurm_nodes(environ)
    if len(given) < len(planned):
        raise StageError(f"the Slurm job has {len(given)} nodes ({', '.join(given)}), the plan needs {len(planned)}")
    return list(given[: len(planned)])


def slurm_nodes(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The nodes of the Slurm job that this process belongs to, in Slurm's order; empty outside of a job. Raises InputError."""
    listed = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST") or ""
    if not listed:
        return ()
    expand(listed)  # so that it is no option, whatever the environment says
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", listed],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SCONTROL_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return expand(listed)  # inside a container there often is no Slurm
    return _distinct(map(checked_node, done.stdout.split()))


def read_hostfile(path: Path) -> dict[str, int]:
    """Nodes and their slots in the file's order: DeepSpeed's grammar, `name slots=8`, `#` for comments.

    Raises:
        InputError: it cannot be read, has no node, names one twice, or has a line that is neither.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the hostfile {path} cannot be read: {error}") from None
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = SLOTS.fullmatch(line)
        if match is None:
            raise InputError(f"{path}:{number}: {line!r} is no node", "each line is `name slots=8`")
        try:
            name = checked_node(match[1])
        except InputError as error:
            raise InputError(f"{path}:{number}: {error.message}", "each line is `name slots=8`") from None
        if name in slots:
            raise InputError(f"{path}:{number}: {name} stands there twice")
        if not int(match[2]):
            raise InputError(f"{path}:{number}: {name} has no slots", "leave the line out, or give it a # in front")
        slots[name] = int(match[2])
    if not slots:
        raise InputError(f"the hostfile {path} names no node", "each line is `name slots=8`")
    return slots


def expand(text: str) -> tuple[str, ...]:
    """node1,node[003-005] -> node1, node003, node004, node005: the grammar of ClusterShell's NodeSet, without its groups.

    Operands between commas stay in the order in which they stand, each with its ranges sorted; where there are other operators,
    such as node[001-016]!node007, all are sorted.

    Raises:
        InputError: it is no such list, a name stands there twice, or they are more than MOST.
    """
    if "@" in text:
        raise InputError(f"{text!r}: groups of nodes (@) are not read", "name the nodes, such as node[001-016]")
    operands = [operand.strip() for operand in OPERATOR.split(text)]
    if sum(map(_size, operands)) > MOST:
        raise InputError(f"{text!r} is more than {MOST} nodes")
    if {operator[0] for operator in OPERATOR.finditer(text)} <= {","}:
        names = [name for operand in operands for name in (_nodes_in(operand) if "[" in operand else [operand])]
    else:
        names = _nodes_in(text)
    if not names:
        raise InputError(f"{text!r} leaves no node")
    return _distinct(map(checked_node, names))


def _size(operand: str) -> int:
    """How many nodes an operand names, before anything is expanded: a range can have more than there is memory for."""
    if "[" not in operand and "]" not in operand:
        checked_node(operand)
        return 1
    if not OPERAND.fullmatch(operand):
        raise _no_range(operand)
    return prod(sum(_width(part, operand) for part in ranges.split(",")) for ranges in BRACKETS.findall(operand))


def _width(part: str, operand: str) -> int:
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9})(?:/\d{1,9})?)?", part)
    if match is None:
        raise _no_range(operand)
    width = int(match[2] or match[1]) - int(match[1]) + 1
    if width < 1:
        raise _no_range(operand)
    return width


def _nodes_in(text: str) -> list[str]:
    try:
        from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetParseError
    except (configparser.Error, ValueError) as error:  # it reads its defaults.conf when it is imported
        raise InputError(
            f"ClusterShell's own settings are wrong: {error}", "mend or remove its defaults.conf"
        ) from None

    try:
        return list(NodeSet(text, resolver=RESOLVER_NOGROUP))
    except (NodeSetParseError, ValueError) as error:
        raise InputError(f"{text!r} is no range of nodes: {error}", "such as node[001-016]") from None


def _no_range(operand: str) -> InputError:
    return InputError(f"{operand!r} is no range of nodes", "such as node[001-016]")


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    found = tuple(names)
    if doubled := [name for name, times in Counter(found).items() if times > 1]:
        raise InputError(f"{', '.join(doubled[:5])} stands there twice")
    return found
