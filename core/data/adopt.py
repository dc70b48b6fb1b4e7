"""Token files that exist already: checked against the tokenizer, linked into the run, described by a manifest of its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.indexed import IndexedDataset, files_of
from core.data.manifest import part
from core.data.split import split_documents
from core.errors import InputError
from core.files import sha256, sync
from core.tokenizer.model_file import ModelFile, PieceType

CHUNK = 1 << 22
"""Tokens looked at at once."""


class AdoptedData:
    """Everything that can be known of token files without their text."""

    def __init__(
        self,
        prefix: Path,
        model: ModelFile,
        eod: int,
        split: str,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Read every token once.

        Raises:
            InputError: the files are damaged, or hold ids that the tokenizer does not have.
        """
        self.data = IndexedDataset(prefix)
        self.sizes = np.diff(self.data.document_offsets)
        if self.data.documents == 0:
            raise InputError(f"{prefix}.idx has no document", "make the token files again")
        ranges = split_documents(self.data.documents, split)
        self.histogram = np.zeros(len(model.pieces), np.int64)
        self.splits: dict[str, dict[str, Any]] = {}
        digest, total = hashlib.sha256(), len(self.data.tokens)
        lengths = piece_bytes(model, eod)
        for name, documents in zip(ranges._fields, ranges, strict=True):
            entry = part(documents, self.data.document_offsets, 0)
            counts = np.zeros_like(self.histogram)
            for chunk in _chunks(self.data.tokens, entry["token_start"], entry["token_end"]):
                _check_ids(prefix, chunk, len(model.pieces))
                counts += np.bincount(chunk, minlength=len(counts))
                digest.update(chunk.tobytes())
                on_progress(min(int(counts.sum() + self.histogram.sum()), total - 1), total)
            not_empty = int(np.count_nonzero(self.sizes[documents.start : documents.stop]))
            spaces = not_empty if model.add_dummy_prefix else 0
            entry["text_bytes"] = max(0, int(counts @ lengths) - spaces)
            self.histogram += counts
            self.splits[name] = entry
        self.bin_sha256 = digest.hexdigest()
        self.idx_sha256 = sha256(files_of(prefix)[1])
        self.ending_with_eod = self._ending_with(eod)

    def _ending_with(self, eod: int) -> int:
        """How many documents end with the end-of-document token."""
        lasts = self.data.document_offsets[1:][self.sizes > 0] - 1
        return sum(
            int(np.count_nonzero(self.data.tokens[some] == eod))
            for some in np.array_split(lasts, len(lasts) // CHUNK + 1)
        )


def piece_bytes(model: ModelFile, eod: int) -> NDArray[np.int64]:
    """UTF-8 bytes of text behind each id; the end-of-document token and control pieces stand for none."""

    def size(number: int) -> int:
        piece = model.pieces[number]
        if number == eod or piece.type in (PieceType.CONTROL, PieceType.UNKNOWN):
            return 0
        if piece.type == PieceType.BYTE:
            return 1
        return len(piece.text.replace("\u2581", " ").encode())

    return np.array([size(number) for number in range(len(model.pieces))], np.int64)


def _chunks(tokens: NDArray[Any], start: int, end: int) -> Iterator[NDArray[Any]]:
    for begin in range(start, end, CHUNK):
        yield np.asarray(tokens[begin : min(begin + CHUNK, end)])


def _check_ids(prefix: Path, chunk: NDArray[Any], vocab_size: int) -> None:
    lowest, highest = int(chunk.min()), int(chunk.max())
    if lowest < 0 or highest >= vocab_size:
        raise InputError(
            f"{prefix}.bin holds the id {highest if lowest >= 0 else lowest}; the tokenizer has the ids 0 to {vocab_size - 1}",
            "the files were made with another tokenizer; name that one with --set tokenizer.model=PATH",
        )


def link(source: Path, target: Path) -> None:
    """Make both token files appear under `target`: a hard link where the file systems allow it, else a symbolic one.

    Token files can have terabytes, so they are not copied.
    """
    for old, new in zip(files_of(source), files_of(target), strict=True):
        temporary = new.with_name(f".{new.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            temporary.hardlink_to(old.resolve())
        except OSError:
            temporary.symlink_to(old.resolve())
        temporary.replace(new)
    sync(target.parent)
