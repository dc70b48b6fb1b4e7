"""The samples that Megatron validates on, found again from the token files and the arguments in a checkpoint.

megatron/data/gpt_dataset.py lays out epochs of a split's documents, each shuffled by one numpy RandomState(seed), as one
long text; sample i is its tokens [i T, i T + T], and the same generator then shuffles the samples. Where the last epoch is
needed for less than 80 % its documents and samples are shuffled apart. megatron/data/blendable_dataset.py takes the next
sample of whichever data set is furthest behind its share. Validation reads on from where the one before it ended.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.indexed import files_of, read_index
from core.data.split import megatron_cuts
from core.errors import InputError

LAST_EPOCH_SHARE = 0.8
SPARE = 1.005
"""Megatron indexes so much more of each data set of a blend than its share."""


class SplitSamples:
    """The samples of one split of one data set in Megatron's order.

    Args:
        prefix: of the token files.
        documents: numbers of the sequences of the index in this split.
        count: samples that Megatron asks for; the order depends on it.
        length: T, tokens of a sample without the last target.
        seed: Megatron's --seed.

    Raises:
        InputError: the token files are missing or unusable, or the split has no tokens.
    """

    def __init__(self, prefix: Path, documents: range, count: int, length: int, seed: int) -> None:
        bin_path, idx_path = files_of(prefix)
        index = read_index(idx_path)
        # Not through IndexedDataset: what Megatron read of files with its own end-of-document bug is what counts here.
        self._tokens = np.memmap(bin_path, dtype=index.dtype, mode="r")
        ends = np.cumsum(index.sizes, dtype=np.int64)
        self._starts = ends - index.sizes
        numbers = np.arange(documents.start, documents.stop, dtype=np.int32)
        epoch = int(index.sizes[numbers].sum(dtype=np.int64))
        if epoch < 1 or count < 1:
            raise InputError(f"the validation part of {prefix} has no tokens")
        self.length = length
        epochs = max(1, -(-(count * length + 1) // epoch))
        before_last = ((epochs - 1) * epoch - 1) // length
        apart = epochs > 1 and count - before_last < int(LAST_EPOCH_SHARE * ((epoch - 1) // length))
        random = np.random.RandomState(seed)
        if apart:
            first = _shuffled(np.tile(numbers, epochs - 1), random)
            self._documents = np.concatenate((first, _shuffled(numbers.copy(), random)))
        else:
            self._documents = _shuffled(np.tile(numbers, epochs), random)
        self._ends = np.cumsum(index.sizes[self._documents], dtype=np.int64)
        total = (epochs * epoch - 1) // length
        cut = before_last if apart else total
        kind = np.uint32 if total < np.iinfo(np.uint32).max - 1 else np.int64
        self._order = _shuffled(np.arange(cut, dtype=kind), random)
        if apart:
            self._order = np.concatenate((self._order, _shuffled(np.arange(cut, total, dtype=kind), random)))

    def __len__(self) -> int:
        return len(self._order)

    def read(self, number: int) -> NDArray[np.int64]:
        """Sample `number` as Megatron counts them: T + 1 token ids."""
        start = int(self._order[number]) * self.length
        place = int(np.searchsorted(self._ends, start, side="right"))
        result, have = np.empty(self.length + 1, np.int64), 0
        while have < len(result):
            end = int(self._ends[place])
            position, take = start + have, min(end - start - have, len(result) - have)
            document_end = int(self._starts[self._documents[place]]) + self._size(place)
            offset = document_end - (end - position)
            result[have : have + take] = self._tokens[offset : offset + take]
            have += take
            place += 1
        return result

    def _size(self, place: int) -> int:
        return int(self._ends[place] - (self._ends[place - 1] if place else 0))


def _shuffled(values: NDArray[Any], random: np.random.RandomState) -> NDArray[Any]:
    random.shuffle(values)
    return values


def validation_samples(arguments: dict[str, Any], first: int, count: int) -> NDArray[np.int64]:
    """Samples `first` ... `first + count - 1` of Megatron's validation, int64 [count, T + 1].

    Args:
        arguments: Megatron's own, from a checkpoint.

    Raises:
        InputError: the token files are not where the arguments say, or the data was given in another way.
    """
    paths = [str(word) for word in arguments.get("data_path") or []]
    if not paths or arguments.get("valid_data_path"):
        raise InputError("the checkpoint's training did not get its data by --data-path and --split")
    if arguments.get("dataloader_type", "single") != "single":
        raise InputError(
            f"the checkpoint's training drew its samples by --dataloader-type {arguments['dataloader_type']}"
        )
    weights = [1.0] if len(paths) == 1 else [float(weight) for weight in paths[::2]]
    prefixes = [Path(path) for path in (paths if len(paths) == 1 else paths[1::2])]
    for prefix in prefixes:
        for file in files_of(prefix):
            if not file.is_file():
                raise InputError(f"the checkpoint was trained on {prefix}, and {file} does not exist here")
    batches = (int(arguments["train_iters"]) // int(arguments["eval_interval"]) + 1) * int(arguments["eval_iters"])
    wanted = batches * int(arguments["global_batch_size"])
    total = sum(weights)
    sets: list[SplitSamples | None] = []
    for prefix, weight in zip(prefixes, weights, strict=True):
        asked = wanted if len(paths) == 1 else math.ceil(wanted * (weight / total) * SPARE)
        sequences = len(read_index(files_of(prefix)[1]).sizes)
        cuts = megatron_cuts(sequences, str(arguments["split"]))
        documents = range(cuts[1], cuts[2]) if cuts else range(0)
        length, seed = int(arguments["seq_length"]), int(arguments["seed"])
        sets.append(SplitSamples(prefix, documents, asked, length, seed) if documents else None)
    if any(found is None for found in sets):
        raise InputError("the validation part of the checkpoint's data is empty")
    numbers = [(0, number) for number in range(first, first + count)]
    if len(sets) > 1:
        numbers = blend(weights, first + count)[first:]
    if any(number >= len(sets[which] or ()) for which, number in numbers):
        raise InputError("the checkpoint's data has fewer validation samples than its training read")
    return np.stack([found.read(number) for which, number in numbers if (found := sets[which]) is not None])


def blend(weights: list[float], size: int) -> list[tuple[int, int]]:
    """The data set and its sample behind each of the first `size` samples of a blend.

    helpers.cpp, build_blending_indices: sample i comes from the set with the largest weight x max(i, 1) - samples so far.
    """
    total = np.float64(sum(weights))
    shares = [float(np.float64(weight) / total) for weight in weights]
    taken, result = [0] * len(shares), []
    for sample in range(size):
        behind = [share * max(float(sample), 1.0) - have for share, have in zip(shares, taken, strict=True)]
        chosen = behind.index(max(behind))
        result.append((chosen, taken[chosen]))
        taken[chosen] += 1
    return result
