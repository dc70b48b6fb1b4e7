"""Reading a log of any size into the lines that may matter: bounded memory, and little work for lines that are alike.

A log of gigabytes is mostly the same few lines with other numbers. So each block is looked at without digits and the letters of
hexadecimal numbers: lines that then read the same are judged once. Lines that hold a text of a known failure, or look like an exception, are kept with their surroundings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import BinaryIO

from core.troubleshoot.literals import LEFT_OUT, by_common_part

BLOCK = 1 << 20
WHOLE = 4 << 20
"""A log up to this size is kept as it is."""
LONGEST = 4000
"""Bytes kept of one line, around the texts that made it interesting."""
BEFORE, AFTER = 40, 80
"""Lines kept around an interesting one."""
HEAD, TAIL = 50, 300
ALIKE = 30
"""Lines kept of those that differ in numbers only."""
MOST_LINES = 40_000
MOST_BYTES = 24 << 20
LATEST_LINES = 2_000
"""Kept of what is found beyond these: the newest."""
REMEMBERED = 32 << 20
"""Bytes of lines without digits that are remembered as dull or not."""
_SET_ENTRY = 120
PART, OVERLAP = 1000, 300
"""A longer line than LONGEST is looked at in parts."""
_LEFT_OUT = (LEFT_OUT + LEFT_OUT.upper()).encode()
_LOWER = bytes(range(256)).lower()


@dataclass
class Reading:
    """`lines` are (number from 1, text); numbers have gaps where nothing of interest stood."""

    lines: list[tuple[int, str]] = field(default_factory=list)
    total: int = 0


@dataclass(frozen=True)
class Wanted:
    """What makes a line worth keeping: texts as `literals.normalise` makes them."""

    texts: tuple[str, ...]
    progress: tuple[str, ...]
    """Texts of lines that tell that training goes on."""

    @cached_property
    def _groups(self) -> dict[str, tuple[str, ...]]:
        return by_common_part(self.texts)

    def interesting(self, shape: str) -> bool:
        for part, texts in self._groups.items():
            if part in shape:
                for text in texts:
                    if text in shape:
                        return True
        return False

    def tells_progress(self, shape: str) -> bool:
        return any(text in shape for text in self.progress)


def read_log(stream: BinaryIO, wanted: Wanted) -> Reading:
    """Read a log to its end."""
    first = stream.read(WHOLE)
    while len(first) < WHOLE and (more := stream.read(WHOLE - len(first))):
        first += more
    rest = stream.read(1)
    if rest:
        return _Sieve(wanted).read(_blocks(first + rest, stream))
    number, lines = 1, []
    for piece in _split(_redraws_apart(first)):
        text = piece if len(piece) <= LONGEST else _around(piece, wanted)
        lines.append((number, text.decode("utf-8", "replace")))
        number += not piece.endswith(b"\r")
    return Reading(lines, number - 1)


def _redraws_apart(block: bytes) -> bytes:
    """The redraws of a progress bar on lines of their own, which end in a carriage return."""
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\r\n") if b"\r" in block else block


def _split(block: bytes) -> list[bytes]:
    pieces = block.split(b"\n")
    return pieces if pieces[-1] else pieces[:-1]


def _blocks(first: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """Blocks of whole lines. A line longer than 4 blocks is cut."""
    held = first
    while True:
        data = stream.read(BLOCK)
        if not data:
            if held:
                yield held
            return
        end = data.rfind(b"\n") + 1
        if end:
            yield held + data[:end]
            held = data[end:]
        else:
            held += data
            if len(held) > 4 * BLOCK:
                yield held + b"\r"  # a part of a line, as a redraw is
                held = b""


def _around(line: bytes, wanted: Wanted) -> bytes:
    """The parts of a long line that hold wanted texts, and its beginning."""
    parts = [line[:PART]]
    for begin in range(PART - OVERLAP, len(line), PART - OVERLAP):
        part = line[begin : begin + PART]
        if wanted.interesting(_shape(part)):
            parts.append(part)
            if len(parts) * PART >= LONGEST:
                break
    return b" ".join(parts)


def _shape(data: bytes) -> str:
    """The form in which texts are looked for, a character a byte: Python searches strings three times as fast as bytes."""
    return data.translate(_LOWER, _LEFT_OUT).decode("latin-1")


class _Sieve:
    """One pass over a large log. A place is the number of a piece of text from 0, redraws of progress bars included."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.dull: set[str] = set()
        self.dull_long: set[int] = set()
        """Hashes of those that are too long to keep."""
        self.progress: set[str] = set()
        self.alike: dict[str, int] = {}
        """Of each interesting line without its digits, how many were kept."""
        self.remembered = 0
        self.kept: dict[int, tuple[int, bytes]] = {}
        self.kept_bytes = 0
        self.latest: deque[tuple[int, tuple[int, bytes]]] = deque(maxlen=LATEST_LINES)
        self.place = 0
        self.number = 1
        self.recent: list[tuple[int, tuple[int, bytes]]] = []
        """The end of the blocks before, as far as it may still be needed."""
        self.after = 0
        """How many of the next lines belong to what was found in the block before."""

    def read(self, blocks: Iterator[bytes]) -> Reading:
        for block in blocks:
            self._take(block)
        self.kept.update(self.recent)
        self.kept.update(self.latest)
        lines = [(number, line.decode("utf-8", "replace")) for _, (number, line) in sorted(self.kept.items())]
        return Reading(lines, self.number - 1)

    def _take(self, block: bytes) -> None:
        block = _redraws_apart(block)
        pieces = _split(block)
        shapes = _shape(block).split("\n")[: len(pieces)]
        interesting, steps = self._sort(set(shapes) - self.dull)
        numbers = self._numbers(block, pieces)
        wanted = self._windows(shapes, interesting)
        if steps:
            last = next(index for index in range(len(shapes) - 1, -1, -1) if shapes[index] in steps)
            wanted.append(range(last, last + 1))
        if not self.place:
            wanted.append(range(min(HEAD, len(pieces))))
        for window in wanted:
            for index in window:
                self._keep(self.place + index, numbers[index], pieces[index])
        ending = range(max(0, len(pieces) - TAIL), len(pieces))
        ended = [(self.place + index, (numbers[index], self._short(pieces[index]))) for index in ending]
        self.recent = [*self.recent, *ended][-TAIL:]
        self.place += len(pieces)

    def _numbers(self, block: bytes, pieces: list[bytes]) -> Sequence[int]:
        first = self.number
        if b"\r" not in block:
            self.number += len(pieces)
            return range(first, self.number)
        numbers = []
        for piece in pieces:
            numbers.append(self.number)
            self.number += not piece.endswith(b"\r")
        return numbers

    def _sort(self, shapes: set[str]) -> tuple[set[str], set[str]]:
        """What is interesting among new shapes of lines, and what tells of progress; the rest is remembered as dull."""
        interesting, steps = set(), set()
        for shape in shapes:
            if shape in self.progress:
                steps.add(shape)
            elif shape not in self.alike:
                if len(shape) > LONGEST and hash(shape) in self.dull_long:
                    continue
                tells = self.wanted.tells_progress(shape)
                if tells:
                    steps.add(shape)
                if self.wanted.interesting(shape):
                    interesting.add(shape)
                else:
                    self._remember(shape, self.progress if tells else self.dull)
                continue
            if self.alike.get(shape, ALIKE) < ALIKE:
                interesting.add(shape)
        return interesting, steps

    def _remember(self, shape: str, into: set[str] | None) -> bool:
        if self.remembered >= REMEMBERED:
            return False
        if len(shape) > LONGEST:
            if into is self.dull:
                self.dull_long.add(hash(shape))
                self.remembered += _SET_ENTRY
            return False
        self.remembered += len(shape) + _SET_ENTRY
        if into is not None:
            into.add(shape)
        return True

    def _windows(self, shapes: list[str], interesting: set[str]) -> list[range]:
        """Ranges of indices to keep; what lies before the block is kept at once, what lies behind it is noted."""
        windows = [range(min(self.after, len(shapes)))]
        self.after -= len(windows[0])
        if not interesting:
            return windows
        done = windows[0].stop
        for index, shape in enumerate(shapes):
            if shape not in interesting:
                continue
            count = self.alike.get(shape, 0)
            if count >= ALIKE:
                continue
            if count or self._remember(shape, None):
                self.alike[shape] = count + 1
                if self.wanted.tells_progress(shape):
                    self.progress.add(shape)
            begin = index - BEFORE
            if begin < 0:
                for place, (number, line) in self.recent[begin:]:
                    self._keep(place, number, line)
            window = range(max(done, begin), min(len(shapes), index + AFTER + 1))
            windows.append(window)
            done = window.stop
            self.after = max(self.after, index + AFTER + 1 - len(shapes))
        return windows

    def _keep(self, place: int, number: int, line: bytes) -> None:
        if place in self.kept:
            return
        line = self._short(line)
        if len(self.kept) < MOST_LINES and self.kept_bytes < MOST_BYTES:
            self.kept[place] = (number, line)
            self.kept_bytes += len(line)
        else:
            self.latest.append((place, (number, line)))

    def _short(self, line: bytes) -> bytes:
        return line if len(line) <= LONGEST else _around(line, self.wanted)
