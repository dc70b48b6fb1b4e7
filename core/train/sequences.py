"""Training and validation sequences, read from the memory-mapped token files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.indexed import IndexedDataset
from core.data.split import split_documents
from core.errors import InputError, StageError

Tokens = NDArray[np.int64]
"""Sequences, shape [n, T + 1]: the first T are the input, the last T the targets."""


@dataclass(frozen=True)
class Sequences:
    """Sequences of T + 1 tokens at a stride of T, over the concatenated documents of one part of the data.

    So every token but the very first is a target exactly once in an epoch. `vocab_size` guards against token files of
    another tokenizer.
    """

    tokens: Any
    """1-D memory map of token ids, of this part only."""
    length: int
    """T."""
    vocab_size: int

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.length)

    def read(self, numbers: NDArray[np.int64]) -> Tokens:
        """The sequences with these numbers, as int64 [n, T + 1].

        Raises:
            StageError: a token id that the model has no embedding for.
        """
        result = np.empty((len(numbers), self.length + 1), dtype=np.int64)
        for row, number in enumerate(numbers):
            start = int(number) * self.length
            result[row] = self.tokens[start : start + self.length + 1]
        largest = int(result.max(initial=0))
        if largest >= self.vocab_size or int(result.min(initial=0)) < 0:
            raise StageError(
                f"the token files hold id {largest}, the tokenizer has only {self.vocab_size} pieces: "
                "they were made with another tokenizer",
                "make them again with this tokenizer: `--from data`",
            )
        return result


def open_sequences(prefix: Path, split: str, length: int, vocab_size: int) -> tuple[Sequences, Sequences]:
    """The training and the validation sequences of the token files.

    Raises:
        InputError: the files are unusable, or one of the two parts is shorter than one sequence.
    """
    data = IndexedDataset(prefix)
    parts = split_documents(data.documents, split)
    found = []
    for name, documents in (("training", parts.train), ("validation", parts.valid)):
        start, end = data.document_offsets[documents.start], data.document_offsets[documents.stop]
        sequences = Sequences(data.tokens[start:end], length, vocab_size)
        if len(sequences) == 0:
            raise InputError(
                f"the {name} part of the data ({len(documents)} of {data.documents} documents) has {end - start} tokens; "
                f"one sequence needs {length + 1}",
                "lower model.sequence_length, add text, or give that part a larger share in data.split",
            )
        found.append(sequences)
    return found[0], found[1]


def validation_numbers(available: int, batches: int, micro_batch: int) -> list[NDArray[np.int64]]:
    """The sequences of every validation, in micro-batches: `batches` full ones spread evenly, or all there are."""
    wanted = min(available, batches * micro_batch)
    numbers = np.arange(wanted, dtype=np.int64) * available // wanted
    return [numbers[start : start + micro_batch] for start in range(0, wanted, micro_batch)]


def share_of_rank(
    batches: list[NDArray[np.int64]], rank: int, world_size: int
) -> Iterator[tuple[NDArray[np.int64], bool]]:
    """This rank's validation micro-batches, and whether each one counts.

    All ranks get equally many, because every forward pass of ZeRO-3 is a collective: the last round is filled up with
    repetitions that do not count.
    """
    for start in range(0, len(batches), world_size):
        number = start + rank
        yield (batches[number], True) if number < len(batches) else (batches[-1], False)
