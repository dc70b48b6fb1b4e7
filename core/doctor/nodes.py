"""Which nodes are meant: a DeepSpeed hostfile, or names with ranges such as node[001-016]."""

from __future__ import annotations

import re
from pathlib import Path

from core.errors import InputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
SLOTS = re.compile(r"(\S+)\s+slots=(\d+)\s*")
RANGES = re.compile(r"([^\[\]]*)\[([0-9,-]+)\]([^\[\]]*)")
MOST = 4096


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
        name = checked(match[1])
        if name in slots:
            raise InputError(f"{path}:{number}: {name} stands there twice")
        slots[name] = int(match[2])
    if not slots:
        raise InputError(f"the hostfile {path} names no node", "each line is `name slots=8`")
    return slots


def expand(text: str) -> tuple[str, ...]:
    """node1,node[003-005] -> node1, node003, node004, node005. Raises InputError."""
    names: list[str] = []
    for part in re.split(r",(?![^\[]*\])", text):
        part = part.strip()
        match = RANGES.fullmatch(part)
        names += [checked(name) for name in _range(match[1], match[2], match[3], part)] if match else [checked(part)]
        if len(names) > MOST:
            raise InputError(f"{text!r} is more than {MOST} nodes")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{', '.join(doubled)} stands there twice")
    return tuple(names)


def _range(before: str, ranges: str, after: str, whole: str) -> list[str]:
    names = []
    for part in ranges.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InputError(f"{whole!r} is no range of nodes", "such as node[001-016]")
        end = int(last) if dash else int(first)
        if end - int(first) >= MOST or end < int(first):
            raise InputError(f"{whole!r} is no range of nodes", "such as node[001-016]")
        names += [f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), end + 1)]
    return names


def checked(name: str) -> str:
    """A name that ssh can take as a host and nothing else. Raises InputError."""
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no host name: letters, digits, '.', '_' and '-', a letter or digit first")
    return name
