"""Reads a log of any size for the screen: its growing end, older and newer parts, and a search through all of it.

What the screen gets is plain text with the byte where each line begins; the file stays the truth, and memory does not
depend on its size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from core.text.plain import plain

LINES = 2000
READ_AT_ONCE = 1 << 20
READ_AT_ONCE_FILTERED = 1 << 18
"""With a filter every line has to be looked at, so less of a flood is."""
OLDER_AT_ONCE = 1 << 18
LONGEST = 4000
"""Characters of a line that are shown."""

Wanted = Callable[[str], bool]


class LogLine(NamedTuple):
    """One line as it is shown; `byte` is where it begins in the file."""

    byte: int
    text: str


class LogTail:
    """The last lines of a file that may grow by tens of thousands of lines a second."""

    def __init__(self, path: Path, wanted: Wanted | None = None) -> None:
        self.path = path
        self.lines: deque[LogLine] = deque(maxlen=LINES)
        self.skipped = 0
        """Lines that came faster than they could be looked at; they are in the file."""
        self.first_byte = 0
        """Where what was read begins: what lies before has not been looked at."""
        self._wanted = wanted
        self._position: int | None = None
        self._line_bytes = 100.0

    def read(self) -> bool:
        """Take in what is new; True if there was something. Of a flood only the end is read, and the rest counted."""
        limit = READ_AT_ONCE_FILTERED if self._wanted else READ_AT_ONCE
        try:
            with self.path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if self._position is None or size < self._position:  # opened, or a new file under the old name
                    self.lines.clear()
                    self.first_byte = self._position = whole_line(file, max(0, size - limit))
                if size == self._position:
                    return False
                if size - self._position > limit:
                    start = whole_line(file, size - limit)
                    self.skipped += round((start - self._position) / self._line_bytes)
                    self._position = self.first_byte = start
                    self.lines.clear()
                data = os.pread(file.fileno(), size - self._position, self._position)
        except FileNotFoundError:
            return False
        whole = data.rfind(b"\n") + 1
        if not whole:
            return False
        count = data.count(b"\n", 0, whole)
        self._line_bytes = whole / count
        self.lines.extend(split(data[:whole], self._position, self._wanted, None if self._wanted else LINES))
        self._position += whole
        return True


def split(data: bytes, begin: int, wanted: Wanted | None = None, last: int | None = None) -> list[LogLine]:
    """The whole lines of `data`, which begins at byte `begin` of the file; only the `last` ones where that is given."""
    pieces = data[:-1].split(b"\n")
    byte = begin
    if last is not None and len(pieces) > last:
        dropped = len(pieces) - last
        byte += sum(map(len, pieces[:dropped])) + dropped
        pieces = pieces[dropped:]
    lines = []
    for piece in pieces:
        text = shown(piece)
        if wanted is None or wanted(text):
            lines.append(LogLine(byte, text))
        byte += len(piece) + 1
    return lines


def shown(line: bytes) -> str:
    """The text of a line: control sequences dropped, tabs as spaces, no longer than a screen can use."""
    cut = line[: 4 * LONGEST]
    text = cut.decode("utf-8", "replace")
    if not text.isprintable():  # most lines are: this test is many times faster than looking for what to drop
        text = plain(text.rstrip("\r")).expandtabs(8)
    return text if len(text) <= LONGEST and len(cut) == len(line) else text[:LONGEST] + "…"


def older(path: Path, before: int, wanted: Wanted | None = None) -> list[LogLine]:
    """Lines that end before byte `before`, about as many as a few screens hold; [] at the start of the file."""
    lines: list[LogLine] = []
    read = 0
    with path.open("rb", buffering=0) as file:
        while before > 0 and not lines and read < 64 * OLDER_AT_ONCE:
            begin = max(0, before - OLDER_AT_ONCE)
            start = whole_line(file, begin) if begin else 0
            if start >= before:  # one line that is longer than what is read at once
                start = _line_start(file, begin)
            data = os.pread(file.fileno(), min(before - start, 8 * OLDER_AT_ONCE), start)
            lines = split(data, start, wanted)
            read += before - start
            before = start
    return lines


def newer(path: Path, after: int, wanted: Wanted | None = None) -> list[LogLine]:
    """Lines behind the one that begins at byte `after`."""
    lines: list[LogLine] = []
    read = 0
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        position = whole_line(file, after + 1)
        while position < size and not lines and read < 64 * OLDER_AT_ONCE:
            data = os.pread(file.fileno(), OLDER_AT_ONCE, position)
            whole = data.rfind(b"\n") + 1
            if not whole:
                position = whole_line(file, position + len(data)) if len(data) == OLDER_AT_ONCE else size
                continue
            lines = split(data[:whole], position, wanted)
            position += whole
            read += whole
    return lines


def around(path: Path, byte: int, wanted: Wanted | None = None) -> list[LogLine]:
    """The lines before and behind byte `byte`, where a line begins, and that line."""
    return [*older(path, byte, wanted), *newer(path, byte - 1, wanted)]


def search(
    path: Path, needle: str, start: int, backwards: bool, go_on: Callable[[], bool], wanted: Wanted | None = None
) -> int | None:
    """The byte where the next line begins that holds `needle` (letter case does not count), from byte `start` on.

    Backwards, the line has to begin before `start`; forwards, behind it. None where there is none, or `go_on` turned false.
    """
    sought = needle.lower().encode()
    if not sought:
        return None

    def holds(line: bytes) -> bool:
        text = shown(line)
        return needle.lower() in text.lower() and (wanted is None or wanted(text))

    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        position = whole_line(file, start) if backwards else whole_line(file, start + 1)
        while go_on() and (position > 0 if backwards else position < size):
            begin = max(0, position - READ_AT_ONCE) if backwards else position
            if backwards and begin:
                begin = _line_start(file, begin)
            end = position if backwards else min(size, position + READ_AT_ONCE)
            data = os.pread(file.fileno(), end - begin, begin)
            whole = len(data) if backwards or end == size else data.rfind(b"\n") + 1
            if not whole:
                position = whole_line(file, end)
                continue
            if (place := _find(data[:whole], sought, backwards, holds)) is not None:
                return begin + place
            position = begin if backwards else begin + whole
    return None


def _find(data: bytes, sought: bytes, backwards: bool, holds: Callable[[bytes], bool]) -> int | None:
    """The offset of the last, or first, line of `data` that holds what is sought."""
    low = data.lower()
    place = low.rfind(sought) if backwards else low.find(sought)
    while place >= 0:
        begin = data.rfind(b"\n", 0, place) + 1
        end = data.find(b"\n", place)
        end = len(data) if end < 0 else end
        if holds(data[begin:end]):  # not within what is dropped before a line is shown
            return begin
        place = low.rfind(sought, 0, begin) if backwards else low.find(sought, end)
    return None


def whole_line(file: FileIO, place: int) -> int:
    """The first byte from `place` on where a line begins; the end of the file where none does."""
    if place <= 0:
        return 0
    position = place - 1
    while data := os.pread(file.fileno(), 1 << 16, position):
        if (end := data.find(b"\n")) >= 0:
            return position + end + 1
        position += len(data)
    return position


def _line_start(file: FileIO, place: int) -> int:
    """Where the line begins that byte `place` belongs to; looked for in the last MiB before it."""
    begin = max(0, place - READ_AT_ONCE)
    data = os.pread(file.fileno(), place - begin, begin)
    end = data.rfind(b"\n")
    return begin + end + 1 if end >= 0 else begin


def of_rank(rank: str, sample: Sequence[LogLine]) -> Wanted:
    """Whether a line carries the mark of this rank; `sample` are lines of the log, from which its words for hosts are learnt."""
    from core.troubleshoot.prefixes import Prefixes

    prefixes = Prefixes(line.text for line in sample)

    def wanted(text: str) -> bool:
        return rank in text[:120] and prefixes.split(text)[1].rank == rank

    return wanted
