"""Which signatures each line of a log speaks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from core.troubleshoot.entries import PROGRESS_TEXTS, Entry
from core.troubleshoot.literals import normalise
from core.troubleshoot.reading import Wanted
from core.troubleshoot.signature import Signature

LOOK_BACK = 200
"""Lines before a match among which its `after` condition is looked for."""

GENERAL = (
    "traceback (most recent call last)",
    "error:",
    "error ",
    "exception",
    "another exception occurred",
    "direct cause of the following",
    "fatal error",
    "fatal python error",
    "exits with return code",
    "exitcode",
    "segmentation fault",
    "core dumped",
    "--- attempt ",
    "root cause (first observed failure)",
    "keyboardinterrupt",
)
"""Looked for besides the texts of the signatures: the marks of a failure that nobody has described yet."""


@dataclass(frozen=True)
class Hit:
    """One line that speaks for one signature. `firm`: it names the failure; else it only points to it."""

    signature: Signature
    entry: Entry
    index: int
    """Among all entries."""
    firm: bool
    in_stack: bool = False


class Matcher:
    """The signatures with an index of the texts that their lines hold."""

    def __init__(self, signatures: Sequence[Signature]) -> None:
        self.signatures = signatures
        self.by_text: dict[str, list[Signature]] = {}
        for signature in signatures:
            for text in signature.literals:
                self.by_text.setdefault(text, []).append(signature)
        self._alike: dict[str, tuple[Signature, ...]] = {}

    @property
    def wanted(self) -> Wanted:
        """What reading a large log must keep."""
        texts = {*self.by_text, *map(normalise, GENERAL)}
        return Wanted(
            texts=tuple(sorted(texts)),
            progress=tuple(map(normalise, PROGRESS_TEXTS)),
        )

    def hits(self, entries: Sequence[Entry]) -> list[Hit]:
        """All matches, in the order of the lines."""
        return [hit for index, entry in enumerate(entries) for hit in self._of_line(entry, index, entries)]

    def _candidates(self, text: str) -> tuple[Signature, ...]:
        shape = normalise(text)
        found = self._alike.get(shape)
        if found is None:
            unique = {s.id: s for literal, group in self.by_text.items() if literal in shape for s in group}
            found = self._alike[shape] = tuple(unique.values())
        return found

    def _of_line(self, entry: Entry, index: int, entries: Sequence[Entry]) -> Iterable[Hit]:
        if entry.kind in ("header", "source"):
            return
        for signature in self._candidates(entry.text):
            if entry.kind == "frame":
                if any(pattern.search(entry.text) for pattern in signature.places):
                    yield Hit(signature, entry, index, firm=True, in_stack=True)
                continue
            firm = any(pattern.search(entry.text) for pattern in signature.strong)
            if not firm and not any(pattern.search(entry.text) for pattern in signature.weak):
                continue
            after = signature.match_when.after
            if after and not _stands_before(after, index, entries):
                continue
            yield Hit(signature, entry, index, firm)


def _stands_before(pattern: str, index: int, entries: Sequence[Entry]) -> bool:
    compiled = _compiled(pattern)
    own = entries[index].file
    return any(
        entry.file == own and compiled.search(entry.text)
        for entry in entries[max(0, index - LOOK_BACK) : index + 1]
        if entry.kind != "source"
    )


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
