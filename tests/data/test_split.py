"""The split: Megatron's document ranges, with something to train and something to validate on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.split import split_documents
from core.errors import InputError


def megatron(documents: int, split: str) -> list[int]:
    """The bounds as Megatron-LM computes them (megatron/data/dataset_utils.py, get_train_valid_test_split_), restated."""
    shares = [float(part) for part in split.split(",")]
    shares = [share / sum(shares) for share in shares]
    bounds = [0]
    for share in shares:
        bounds.append(bounds[-1] + round(share * float(documents)))
    too_many = bounds[-1] - documents
    return [0] + [bound - too_many for bound in bounds[1:]]


def test_a_real_log_of_megatron_has_these_counts() -> None:
    assert [len(part) for part in split_documents(13953, "949,50,1")] == [13241, 698, 14]


@given(st.integers(2, 10**9), st.sampled_from(["949,50,1", "1,1,1", "98,2,0", "0.5,0.25,0.25", "1,1000,1"]))
def test_the_ranges_are_contiguous_cover_everything_and_are_megatrons_where_those_can_be_used(
    documents: int, split: str
) -> None:
    parts = split_documents(documents, split)
    assert (parts.train.start, parts.train.stop) == (0, parts.valid.start)
    assert (parts.valid.stop, parts.test.stop) == (parts.test.start, documents)
    assert len(parts.train) > 0
    assert len(parts.valid) > 0
    bounds = megatron(documents, split)
    if bounds[1] > 0 and bounds[2] > bounds[1]:
        assert [parts.train.stop, parts.valid.stop, parts.test.stop] == bounds[1:]


@pytest.mark.parametrize(("documents", "said"), [(0, "there is no document"), (1, "only one document")])
def test_less_than_two_documents_cannot_be_split(documents: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        split_documents(documents, "949,50,1")
