"""What is written down about token files: counts, hashes, rejected lines, and the numbers that training is judged by."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.split import DocumentRanges, split_documents
from core.data.workers import Encoded
from core.text.readers import Rejected

COUNTED_AT_ONCE = 1 << 20
"""bincount makes 8 bytes of every id."""
LISTED = 1000
"""Rejected lines that are listed; all are counted."""


def manifest_path(prefix: Path) -> Path:
    """{prefix}.manifest.json."""
    return prefix.with_name(prefix.name + ".manifest.json")


def kind_of(reason: str) -> str:
    """A reason without its place, for counting: "invalid UTF-8 at byte 17" is "invalid UTF-8"."""
    return re.split(r" at (?:byte|character) |: ", reason, maxsplit=1)[0]


@dataclass
class FileCount:
    """One input file; rows = documents + rejected."""

    rows: int = 0
    documents: int = 0
    rejected: int = 0
    tokens: int = 0
    text_bytes: int = 0


@dataclass
class Tally:
    """Counts over all batches. Memory: 4 bytes a document."""

    vocab_size: int
    files: list[str]
    counts: dict[str, FileCount] = field(init=False)
    reasons: Counter[str] = field(default_factory=Counter)
    listed: list[Rejected] = field(default_factory=list)
    text_bytes: array[int] = field(default_factory=lambda: array("i"))
    histogram: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.histogram = np.zeros(self.vocab_size, np.int64)
        self.counts = {file: FileCount() for file in self.files}

    def add(self, encoded: Encoded) -> None:
        """Count one batch."""
        count = self.counts[encoded.file]
        count.rows += encoded.rows
        count.documents += len(encoded.sizes)
        count.rejected += len(encoded.rejected)
        count.tokens += len(encoded.tokens)
        count.text_bytes += sum(encoded.text_bytes)
        self.text_bytes.extend(encoded.text_bytes)
        for begin in range(0, len(encoded.tokens), COUNTED_AT_ONCE):
            some = encoded.tokens[begin : begin + COUNTED_AT_ONCE]
            self.histogram += np.bincount(some, minlength=self.vocab_size)
        self.reasons.update(kind_of(rejected.reason) for rejected in encoded.rejected)
        self.listed += encoded.rejected[: LISTED - len(self.listed)]

    @property
    def rows(self) -> int:
        return sum(count.rows for count in self.counts.values())

    @property
    def documents(self) -> int:
        return sum(count.documents for count in self.counts.values())

    @property
    def rejected(self) -> int:
        return sum(count.rejected for count in self.counts.values())


def unigram_entropy_nats(histogram: NDArray[np.int64]) -> float:
    """Entropy of the token distribution in nats per token: the loss of a model that knows only how frequent tokens are."""
    share = histogram[histogram > 0] / histogram.sum()
    return float(-(share * np.log(share)).sum())


def part(documents: range, document_offsets: NDArray[np.int64], text_bytes: int | float) -> dict[str, Any]:
    """The entry of one part of the split in the manifest."""
    start, end = int(document_offsets[documents.start]), int(document_offsets[documents.stop])
    return {
        "documents": len(documents),
        "tokens": end - start,
        "text_bytes": int(text_bytes),
        "document_start": documents.start,
        "document_end": documents.stop,
        "token_start": start,
        "token_end": end,
    }


def split_parts(
    split: str, document_offsets: NDArray[np.int64], text_bytes: Iterable[int]
) -> dict[str, dict[str, Any]]:
    """The three parts; `text_bytes` is of each document.

    Raises:
        InputError: fewer than two documents.
    """
    ranges: DocumentRanges = split_documents(len(document_offsets) - 1, split)
    ends = np.concatenate(([0], np.cumsum(np.fromiter(text_bytes, np.int64))))
    return {
        name: part(documents, document_offsets, ends[documents.stop] - ends[documents.start])
        for name, documents in zip(ranges._fields, ranges, strict=True)
    }
