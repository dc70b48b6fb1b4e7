import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.train.order import SampleOrder, first_sample


@given(sequences=st.integers(1, 3000), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 5))
def test_every_epoch_holds_every_sequence_exactly_once(sequences: int, seed: int, epoch: int) -> None:
    order = SampleOrder(sequences, seed)
    assert sorted(order.samples(epoch * sequences, sequences)) == list(range(sequences))


@given(
    sequences=st.integers(1, 500),
    seed=st.integers(0, 100),
    first=st.integers(0, 2000),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=8),
)
def test_a_sample_is_the_same_however_it_is_asked_for(sequences: int, seed: int, first: int, cuts: list[int]) -> None:
    order = SampleOrder(sequences, seed)
    whole = order.samples(first, sum(cuts))
    pieces, start = [], first
    for count in cuts:
        pieces.append(order.samples(start, count))
        start += count
    assert np.array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 24), (1, 2), (2, 3), (4, 6), (8, 1), (12, 2)])
def test_a_step_consumes_the_same_samples_on_any_number_of_processes(world_size: int, micro_batch: int) -> None:
    global_batch, consumed = 24, 72
    accumulation = global_batch // (micro_batch * world_size)
    taken = [
        sample
        for micro in range(accumulation)
        for rank in range(world_size)
        for sample in np.arange(micro_batch) + first_sample(consumed, micro, rank, world_size, micro_batch)
    ]
    assert taken == list(range(consumed, consumed + global_batch))


def test_a_resumed_run_on_another_world_size_sees_every_sequence_exactly_once() -> None:
    order, seen, consumed = SampleOrder(96, seed=3), [], 0
    for world_size, micro_batch, steps in [(1, 4, 5), (4, 1, 3), (2, 2, 16)]:
        for _ in range(steps):
            for rank in range(world_size):
                seen += list(order.samples(first_sample(consumed, 0, rank, world_size, micro_batch), micro_batch))
            consumed += world_size * micro_batch
    assert sorted(seen) == list(range(96))


def test_epochs_and_seeds_give_other_orders() -> None:
    first, second = SampleOrder(1000, 1).samples(0, 2000).reshape(2, 1000)
    other = SampleOrder(1000, 2).samples(0, 1000)
    for a, b in [(first, second), (first, other), (first, np.arange(1000))]:
        # Two random permutations of 1,000 agree in about one place; 20 would be a probability below 1e-18.
        assert np.count_nonzero(a == b) < 20


def test_the_order_is_as_even_as_a_shuffle() -> None:
    """Neighbours in the order are not neighbours in the file, and every stretch of the file is met at all times."""
    size, parts = 10_000, 10
    order = SampleOrder(size, 5).samples(0, size)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05  # five standard errors
    counts = np.histogram2d(np.arange(size), order, bins=parts)[0]
    chi_squared = ((counts - size / parts**2) ** 2 / (size / parts**2)).sum()
    assert 30 < chi_squared < 160  # 81 degrees of freedom: mean 81, standard deviation 12.7


def test_the_order_of_a_seed_never_changes() -> None:
    """A checkpoint says only how many samples were consumed: another order would repeat some and skip others."""
    assert SampleOrder(1000, 1234).samples(995, 10).tolist() == [287, 166, 203, 79, 521, 236, 316, 93, 29, 201]
