"""The order in which a run sees its sequences: sample k is a pure function of (seed, k), computed in O(1) memory.

So the position in the data is one number, the samples consumed so far; a resumed run, or one on another number of
processes, goes on with exactly the sequences that are due. Each epoch is another permutation of all sequences: a
Feistel network on just enough bits, walked along its cycle until it lands inside the range (Black and Rogaway 2002,
"Ciphers with arbitrary finite domains", method 3). Nothing is shuffled in memory or written to an index file, where
Megatron builds gigabytes of index at every start.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6


@dataclass(frozen=True)
class SampleOrder:
    """The order of `sequences` training sequences under `seed`."""

    sequences: int
    seed: int

    def samples(self, first: int, count: int) -> NDArray[np.int64]:
        """Sequence numbers, shape [count], of the run's samples `first` to `first + count`; epochs follow each other."""
        numbers = np.arange(first, first + count, dtype=np.int64)
        epochs, places = np.divmod(numbers, self.sequences)
        result = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = permute(places[chosen], self.sequences, self.seed, int(epoch))
        return result


def first_sample(consumed: int, micro: int, rank: int, world_size: int, micro_batch: int) -> int:
    """The first of the `micro_batch` samples that `rank` takes as its micro-batch number `micro` of a step.

    A step consumes consecutive samples: micro-batch after micro-batch, and within one rank after rank. So which samples a
    step consumes depends on the global batch alone.
    """
    return consumed + (micro * world_size + rank) * micro_batch


def permute(places: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Map places in range(size) to the permutation of (seed, epoch) at these places."""
    half_bits = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half_bits)) - 1)
    keys = [np.uint64(_key(seed, epoch, number)) for number in range(ROUNDS)]
    values = places.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half_bits, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        values[outside] = (left << half_bits) | right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def _key(seed: int, epoch: int, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}/{number}".encode(), digest_size=8).digest(), "little")


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every input bit changes about half of the output's."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
