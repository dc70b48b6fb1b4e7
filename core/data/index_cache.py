"""Megatron's index-cache beside token files: which of its files were made for other content than the files have now.

Megatron keeps the order of the samples in {folder}/index-cache/{md5}.dsc, _doc_idx.npy, _sample_idx.npy and _shuffle_idx.npy. The md5
is of a text with the data's path, sample count, epochs, sequence length, seed and split, but not of the data: token files that were
made again at the same path are read with the old order, in silence. Whether an order fits can be seen from it: sample i begins at token
i x sequence length of the documents in the order given (megatron/data/gpt_dataset.py, helpers.build_sample_idx).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.data.ends import CHUNK
from core.data.split import megatron_cuts

FOLDER = "index-cache"
KEYS = {
    "prefix": "Data prefix",
    "name": "Dataset name",
    "epochs": "Number of epochs",
    "sequence_length": "Sequence length",
    "split": "Split",
}
SAMPLES_LOOKED_AT = 1 << 20


class StaleOrder(NamedTuple):
    """One order of samples that does not fit: its files, and why."""

    files: tuple[Path, ...]
    why: str


def stale_orders(prefix: Path, sizes: NDArray[np.int32]) -> list[StaleOrder]:
    """The orders in the index-cache beside `prefix` that were made for it and do not fit sequences of these sizes."""
    found = []
    for description in sorted((prefix.parent / FOLDER).glob("*.dsc")):
        said = _description(description)
        if said is None or Path(said["prefix"]).name != prefix.name:
            continue
        arrays = [description.with_name(f"{description.stem}_{kind}_idx.npy") for kind in ("doc", "sample", "shuffle")]
        if not all(path.is_file() for path in arrays):
            continue  # Megatron makes all of them again where one is missing
        if why := _misfit(said, arrays, sizes):
            found.append(StaleOrder((description, *arrays), why))
    return found


def _description(path: Path) -> dict[str, str] | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    matches = {key: re.search(rf"^{words} (.+)$", text, re.MULTILINE) for key, words in KEYS.items()}
    values = {key: match[1] for key, match in matches.items() if match}
    numbers = all(values.get(key, "").isdigit() for key in ("epochs", "sequence_length"))
    return values if text.startswith("GPT Dataset") and len(values) == len(KEYS) and numbers else None


def _misfit(said: dict[str, str], arrays: list[Path], sizes: NDArray[np.int32]) -> str:
    """Why this order is not one of these sequences; empty where it fits."""
    try:
        documents, samples, shuffled = (np.load(path, mmap_mode="r") for path in arrays)
    except (ValueError, EOFError, OSError) as error:
        return f"it is cut off or damaged ({error})"
    epochs, length = int(said["epochs"]), int(said["sequence_length"])
    if documents.ndim != 1 or samples.ndim != 2 or samples.shape[1] != 2 or len(shuffled) != len(samples) - 1:
        return "its parts contradict each other"
    if len(documents) == 0 or len(documents) % epochs:
        return f"{len(documents)} documents in {epochs} epochs"
    lowest, highest = int(documents.min()), int(documents.max())
    ranges = _ranges(said, len(sizes))
    if ranges and (lowest, highest + 1, len(documents) // epochs) not in [(a, b, b - a) for a, b in ranges]:
        return f"it orders documents {lowest} to {highest}; of {len(sizes)} documents its part are {ranges[0][0]} to {ranges[0][1] - 1}"
    if lowest < 0 or highest >= len(sizes):
        return f"it names document {highest}; there are {len(sizes)}"
    return _wrong_place(documents, samples, sizes, length)


def _ranges(said: dict[str, str], documents: int) -> list[tuple[int, int]]:
    """First and last + 1 of the documents that this part may have: by the split, or all (files for one part only)."""
    cuts = megatron_cuts(documents, said["split"])
    number = {"train": 0, "valid": 1, "test": 2}.get(said["name"])
    if cuts is None or number is None:
        return []
    return [(cuts[number], cuts[number + 1]), (0, documents)]


def _wrong_place(
    documents: NDArray[np.int32], samples: NDArray[np.int64], sizes: NDArray[np.int32], length: int
) -> str:
    """Looks at every sample, or at a million of them, the last among them."""
    rows = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), SAMPLES_LOOKED_AT)).astype(np.int64))
    chosen = np.asarray(samples[rows])
    if np.any(np.diff(chosen[:, 0]) < 0) or int(chosen[0, 0]) < 0 or int(chosen[-1, 0]) >= len(documents):
        return "its samples are not in order"
    passed = 0
    for begin in range(0, len(documents), CHUNK):
        some = sizes[np.asarray(documents[begin : begin + CHUNK])].astype(np.int64)
        starts = np.concatenate(([0], np.cumsum(some))) + passed
        first, last = np.searchsorted(chosen[:, 0], [begin, begin + len(some)])
        part, expected = chosen[first:last], rows[first:last] * length
        wrong = np.flatnonzero(starts[part[:, 0] - begin] + part[:, 1] != expected)
        if len(wrong):
            return f"its sample {rows[first + int(wrong[0])]} does not begin where the one before ends"
        passed = int(starts[-1])
    return "" if passed - 1 >= int(rows[-1]) * length else "it goes on where the documents have ended"
