"""Which damage explains that a .bin and an .idx do not belong together: tried one by one against where documents end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.data.ends import (
    Progress,
    chunks,
    common_end,
    index_by_ends,
    map_tokens,
    not_empty_ends,
    trimmed,
    with_end_counted,
)
from core.data.indexed import Index
from core.language import tr

Status = Literal["pass", "warn", "fail"]
ISSUE = "NVIDIA/Megatron-LM issue 431"
USUAL_TYPES: tuple[np.dtype[Any], ...] = (np.dtype("<u2"), np.dtype("<i4"))
"""What Megatron stores ids in."""


@dataclass(frozen=True)
class Found:
    """One finding; `why` where it is a problem, `hint` what to type where this cannot be mended."""

    id: str
    status: Status
    summary: str
    why: str = ""
    hint: str = ""

    def document(self) -> dict[str, str]:
        return {"id": self.id, "status": self.status, "summary": self.summary, "why": self.why, "hint": self.hint}


Explanation = tuple[list[Found], Index]


def sizes_differ(path: Path, size: int, index: Index) -> Found:
    expected = index.tokens * index.dtype.itemsize
    summary = tr(
        "{file} has {found} bytes; its index says {tokens} tokens of {item} bytes, that is {expected}",
        file=path,
        found=f"{size:,}",
        tokens=f"{index.tokens:,}",
        item=index.dtype.itemsize,
        expected=f"{expected:,}",
    )
    return Found("bin.cut-off" if size < expected else "bin.longer", "fail", summary)


def _forgotten(path: Path, documents: int) -> Found:
    summary = tr(
        "{file} holds {documents} tokens that its index does not count, one a document",
        file=path,
        documents=f"{documents:,}",
    )
    why = tr(
        "preprocess_data.py --append-eod writes the end-of-document token but leaves it out of the .idx ({issue}): "
        "document n is read n tokens too early",
        issue=ISSUE,
    )
    return Found("idx.eod-not-counted", "fail", summary, why)


def _cut_off(path: Path, whole: Index, index: Index, why: str = "") -> Found:
    summary = tr(
        "{file} is cut off: {whole} of {documents} documents are whole in it",
        file=path,
        whole=f"{len(whole.documents) - 1:,}",
        documents=f"{len(index.documents) - 1:,}",
    )
    return Found("bin.cut-off", "fail", summary, why)


def other_type(path: Path, said: np.dtype[Any], found: np.dtype[Any], why: str = "") -> Found:
    summary = tr("the index says {said}, the ids in {file} are {found}", said=said.name, file=path, found=found.name)
    return Found("dtype.other", "fail", summary, why)


def usual_damage(path: Path, size: int, index: Index, eods: Sequence[int]) -> list[Explanation]:
    """Every damage that makes .bin and .idx agree and lets all documents end with the end-of-document token."""
    possible: list[Explanation] = []
    forgotten = with_end_counted(index)
    documents = len(not_empty_ends(forgotten))
    for dtype in dict.fromkeys((index.dtype, *USUAL_TYPES)):
        tokens = map_tokens(path, dtype)
        for candidate in (index, forgotten):
            if candidate.tokens * dtype.itemsize != size or common_end(tokens, not_empty_ends(candidate), eods) is None:
                continue
            found = [] if dtype == index.dtype else [other_type(path, index.dtype, dtype)]
            found += [_forgotten(path, documents)] if candidate is forgotten else []
            possible.append((found, candidate._replace(dtype=dtype)))
    tokens = map_tokens(path, index.dtype)
    for candidate in (index, forgotten):
        if size >= candidate.tokens * index.dtype.itemsize:
            continue
        whole = trimmed(candidate, len(tokens))
        if common_end(tokens, not_empty_ends(whole), eods) is None:
            continue
        found = [_cut_off(path, whole, index)]
        found += [_forgotten(path, len(not_empty_ends(whole)))] if candidate is forgotten else []
        possible.append((found, whole))
    return possible


def unusual_damage(
    path: Path, size: int, index: Index, eods: Sequence[int], on_progress: Progress
) -> list[Explanation]:
    """A .bin that goes on behind its index; one that is cut off and has no end-of-document tokens."""
    tokens, possible = map_tokens(path, index.dtype), list[Explanation]()
    said = sizes_differ(path, size, index)
    for candidate in (index, with_end_counted(index)):
        if size > candidate.tokens * index.dtype.itemsize:
            ends = not_empty_ends(candidate)
            if (eod := common_end(tokens, ends, eods)) is not None:
                why = tr("its first documents are those of the index; the others are not in it")
                found = [replace(said, why=why)]
                found += [_forgotten(path, len(ends))] if candidate is not index else []
                possible.append((found, index_by_ends(tokens, eod, on_progress)))
    whole = trimmed(index, len(tokens))
    if said.id == "bin.cut-off" and eods and len(whole.sizes) and not any(_stands_in(tokens, eod) for eod in eods):
        # Made without --append-eod: there is nothing to compare with, and nothing that contradicts.
        why = tr("no document ends with an end-of-document token, so that their ends cannot be verified")
        possible.append(([_cut_off(path, whole, index, why)], whole))
    return possible


def _stands_in(tokens: NDArray[Any], eod: int) -> bool:
    return any((some == eod).any() for some in chunks(tokens))
