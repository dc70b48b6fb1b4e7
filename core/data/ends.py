"""Where documents end, as the tokens show it: the end-of-document token stands there and, as a rule, nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.indexed import Index
from core.errors import InputError

CHUNK = 1 << 22
"""Tokens, or documents, looked at at once."""
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """For who doesn't want to know."""


def map_tokens(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The whole tokens of a .bin, memory-mapped; what is left of a token at its end is not among them."""
    count = path.stat().st_size // dtype.itemsize
    if count == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,))


def chunks(tokens: NDArray[Any], on_progress: Progress = no_progress) -> Iterator[NDArray[Any]]:
    """All tokens, a few million at a time."""
    for begin in range(0, len(tokens), CHUNK):
        yield np.asarray(tokens[begin : begin + CHUNK])
        on_progress(min(begin + CHUNK, len(tokens)), len(tokens))


def not_empty_ends(index: Index) -> NDArray[np.int64]:
    """For each document that has tokens, the offset behind its last one."""
    offsets = index.document_offsets()
    ends: NDArray[np.int64] = offsets[1:][np.diff(offsets) > 0]
    return ends


def ending_with(tokens: NDArray[Any], ends: NDArray[np.int64], eod: int) -> int:
    """How many of the documents that end at `ends` have `eod` as their last token."""
    return sum(
        int(np.count_nonzero(tokens[ends[begin : begin + CHUNK] - 1] == eod)) for begin in range(0, len(ends), CHUNK)
    )


def common_end(tokens: NDArray[Any], ends: NDArray[np.int64], eods: Sequence[int]) -> int | None:
    """The id with which all these documents end, if it shows that they end there; None if not.

    With `eods` it must be one of them. Without, it must end two documents or more and stand nowhere else: a token that ends every
    document and never comes up inside one is an end of document, whatever its id.
    """
    if len(ends) == 0:
        return None
    found = int(tokens[ends[0] - 1])
    if eods and found not in eods:
        return None
    if ending_with(tokens, ends, found) != len(ends):
        return None
    if eods:
        return found
    if len(ends) < 2:
        return None
    everywhere = sum(int(np.count_nonzero(some == found)) for some in chunks(tokens[: int(ends[-1])]))
    return found if everywhere == len(ends) else None


def with_end_counted(index: Index) -> Index:
    """The index that preprocess_data.py --append-eod should have written: one token more in the last sequence of each
    document that has any.
    """
    offsets = index.document_offsets()
    lasts = index.documents[1:][np.diff(offsets) > 0] - 1
    sizes = index.sizes.copy()
    sizes[lasts] += 1
    return index._replace(sizes=sizes)


def trimmed(index: Index, tokens: int) -> Index:
    """The index of the documents that are whole within the first `tokens` tokens."""
    documents = int(np.searchsorted(index.document_offsets(), tokens, side="right")) - 1
    boundaries = index.documents[: documents + 1]
    return Index(index.dtype, index.sizes[: int(boundaries[-1])], boundaries)


def index_by_ends(tokens: NDArray[Any], eod: int, on_progress: Progress = no_progress) -> Index:
    """The index of a .bin of which every document ends with `eod`; what stands behind the last one belongs to none.

    Documents without tokens cannot be seen. A text that holds the token itself becomes two documents.

    Raises:
        InputError: a document would be longer than an index can say.
    """
    begin, parts = 0, []
    for some in chunks(tokens, on_progress):
        parts.append(np.flatnonzero(some == eod) + (begin + 1))
        begin += len(some)
    ends = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    sizes = np.diff(ends, prepend=0)
    if len(sizes) and int(sizes.max()) > np.iinfo(np.int32).max:
        raise InputError(
            f"the end-of-document token (id {eod}) does not stand in {int(sizes.max()):,} tokens on end: no document is that long",
            "name the tokenizer that made the files",
        )
    return Index(tokens.dtype, sizes.astype(np.int32), np.arange(len(sizes) + 1, dtype=np.int64))
