"""Which documents are for training, validation and test: contiguous ranges in file order, as Megatron cuts them."""

from __future__ import annotations

from typing import NamedTuple

from core.errors import InputError


class DocumentRanges(NamedTuple):
    """Document numbers of each part; together they are 0 ... documents - 1, without a gap."""

    train: range
    valid: range
    test: range


def split_documents(documents: int, split: str) -> DocumentRanges:
    """Cut `documents` by shares such as "949,50,1" (`DataSection` has checked the text).

    The rule is that of Megatron-LM's `get_train_valid_test_split_`: every share is rounded on its own, and what the
    rounding left over moves all cuts. So both backends train and validate on the same documents. One thing is added:
    training and validation get at least one document each, because a run that never validates tells nothing.

    Raises:
        InputError: fewer than two documents.
    """
    if documents < 2:
        found = "there is no document" if documents == 0 else "there is only one document"
        raise InputError(
            f"{found}: training and validation need one each (data.split is {split})",
            "add text to corpus.files; in a .txt file a blank line ends a document",
        )
    cuts = megatron_cuts(documents, split)
    assert cuts is not None
    _, train_end, valid_end, _ = cuts
    train_end = min(max(train_end, 1), documents - 1)
    valid_end = min(max(valid_end, train_end + 1), documents)
    return DocumentRanges(range(0, train_end), range(train_end, valid_end), range(valid_end, documents))


def megatron_cuts(documents: int, split: str) -> list[int] | None:
    """Where Megatron's `get_train_valid_test_split_` begins and ends the three parts: four numbers. None where `split` is no such text."""
    try:
        shares = [float(part) for part in split.split("," if "," in split else "/")][:3]
    except ValueError:
        return None
    shares += [0.0] * (3 - len(shares))
    if sum(shares) <= 0:
        return None
    counts = [round(share / sum(shares) * documents) for share in shares]
    left_over = documents - sum(counts)
    return [0, counts[0] + left_over, counts[0] + counts[1] + left_over, documents]
