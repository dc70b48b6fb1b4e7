from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.indexed import write_indexed
from core.errors import InputError, StageError
from core.train.sequences import Sequences, open_sequences, share_of_rank, validation_numbers


def test_every_token_but_the_first_is_a_target_exactly_once() -> None:
    sequences = Sequences(np.arange(101, dtype=np.uint16), length=10, vocab_size=200)
    read = sequences.read(np.arange(len(sequences)))
    assert read.shape == (10, 11)
    assert read.dtype == np.int64
    assert read[:, 1:].flatten().tolist() == list(range(1, 101))
    assert (read[:, :-1] == read[:, 1:] - 1).all()


def test_parts_follow_the_documents(tmp_path: Path) -> None:
    documents = [np.full(20, number, dtype=np.uint16) for number in range(10)]
    write_indexed(tmp_path / "t", documents, np.uint16)
    train, valid = open_sequences(tmp_path / "t", "7,2,1", length=8, vocab_size=100)
    assert set(train.read(np.arange(len(train))).flatten()) == set(range(7))
    assert set(valid.read(np.arange(len(valid))).flatten()) == {7, 8}


def test_a_part_shorter_than_one_sequence_is_refused(tmp_path: Path) -> None:
    write_indexed(tmp_path / "t", [np.arange(50, dtype=np.uint16), np.arange(5, dtype=np.uint16)], np.uint16)
    with pytest.raises(InputError, match=r"validation part .* has 5 tokens; one sequence needs 9"):
        open_sequences(tmp_path / "t", "90,10,0", length=8, vocab_size=100)


def test_an_id_without_an_embedding_is_refused_and_named() -> None:
    sequences = Sequences(np.array([1, 2, 3, 99, 5], dtype=np.uint16), length=4, vocab_size=99)
    with pytest.raises(StageError, match="hold id 99, the tokenizer has only 99 pieces"):
        sequences.read(np.array([0]))


@given(available=st.integers(1, 200), batches=st.integers(1, 20), micro_batch=st.integers(1, 8))
def test_validation_takes_the_asked_number_spread_over_the_part_or_all_of_it(
    available: int, batches: int, micro_batch: int
) -> None:
    chosen = np.concatenate(validation_numbers(available, batches, micro_batch))
    assert len(chosen) == min(available, batches * micro_batch)
    assert len(set(chosen)) == len(chosen)
    assert chosen.max() < available
    if len(chosen) == available:
        assert chosen.tolist() == list(range(available))
    else:
        gaps = np.diff(np.append(chosen, available + chosen[0]))
        assert gaps.max() - gaps.min() <= 1


@given(count=st.integers(1, 30), world_size=st.integers(1, 8))
def test_ranks_share_the_validation_evenly_and_each_batch_counts_once(count: int, world_size: int) -> None:
    batches = [np.array([number]) for number in range(count)]
    shares = [list(share_of_rank(batches, rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(int(numbers[0]) for share in shares for numbers, counts in share if counts) == list(range(count))
