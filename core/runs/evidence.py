"""The line of a log that says why a stage failed."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

from core.text.plain import plain

TAIL_BYTES = 1 << 20

_ERROR = re.compile(r"(?:[\w.-]+\.py: )?error: .*")
"""Our own, or argparse's."""
_LAST_OF_DEEPSPEED = re.compile(r"\[[^\]]*\] \[\w+\] \[launch\.py:\d+:sigkill_handler\] .*")
"""What its launcher says when a rank has failed: a page of the rank's command line, and its exit code."""
_EXCEPTION = re.compile(r"(?:\[rank\d+\]: ?)?[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning|Stopped)\b.*")


def failure_line(
    log: Path, start: int = 0, nodes: Collection[str] = (), blamed: str | None = None
) -> dict[str, Any] | None:
    """The line that names the failure among those from byte `start` on: {"file", "line", "text", "hint"}, or None.

    `nodes` are those whose names stand before their lines (`node1: ...`); the lines of the node that is `blamed` come first.

    In this order: our own `error:` line or argparse's; the last exception of the first traceback that ended the process; the last
    line that says anything. Line numbers count from 1 over the whole file.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            start = max(start, size - TAIL_BYTES)
            file.seek(0)
            first_line = 1 + lines_before(file, start)
            lines = plain(file.read().decode("utf-8", "replace")).split("\n")
    except FileNotFoundError:
        return None
    origins, lines = _without_nodes(lines, nodes)
    of_blamed = [line if origin == blamed else "" for origin, line in zip(origins, lines, strict=True)]
    chosen = _choose(of_blamed) if blamed else None
    chosen = _choose(lines) if chosen is None else chosen
    if chosen is None:
        return None
    text = lines[chosen].strip()
    hint = ""
    if text.startswith("error: ") and chosen + 1 < len(lines) and lines[chosen + 1].lstrip().startswith("->"):
        hint = lines[chosen + 1].strip().removeprefix("->").strip()
    return {"file": str(log), "line": first_line + chosen, "text": text.removeprefix("error: ")[:2000], "hint": hint}


def _without_nodes(lines: list[str], nodes: Collection[str]) -> tuple[list[str | None], list[str]]:
    """Whose line each is, and the lines without the names before them."""
    origins: list[str | None] = []
    bare = []
    for line in lines:
        name, colon, rest = line.partition(": ")
        origins.append(name if colon and name in nodes else None)
        bare.append(rest if colon and name in nodes else line)
    return origins, bare


def lines_before(file: BinaryIO, place: int) -> int:
    """Read a file from its beginning up to byte `place`; returns how many lines end there."""
    lines = 0
    while place and (block := file.read(min(place, 1 << 20))):
        lines += block.count(b"\n")
        place -= len(block)
    return lines


def _choose(lines: list[str]) -> int | None:
    for number, line in enumerate(lines):
        if _ERROR.fullmatch(line):
            return number
    traceback = next((n for n, line in enumerate(lines) if line.endswith("Traceback (most recent call last):")), None)
    if traceback is not None:
        for number in range(traceback + 1, len(lines)):
            if _EXCEPTION.fullmatch(lines[number]):
                return number
    with_words = [number for number, line in enumerate(lines) if line.strip()]
    own = [number for number in with_words if not _LAST_OF_DEEPSPEED.fullmatch(lines[number])]
    return max(own or with_words, default=None)
