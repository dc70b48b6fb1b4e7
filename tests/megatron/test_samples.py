"""Megatron's validation samples: against a walk through the documents token by token, as the description in its source goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data.indexed import files_of, write_indexed
from core.errors import InputError
from core.megatron.samples import blend, validation_samples


def write_data(prefix: Path, documents: int, seed: int, missed_ends: bool = False) -> list[list[int]]:
    """Token files of random documents; what Megatron reads as each. `missed_ends`: as preprocess_data.py --append-eod writes them."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    texts = [random.integers(10, 300, size).tolist() for size in random.integers(0, 40, documents)]
    write_indexed(prefix, [np.array(text, np.uint16) for text in texts], np.uint16)
    if not missed_ends:
        return texts
    tokens = [token for text in texts for token in ([*text, 6] if text else [])]
    files_of(prefix)[0].write_bytes(np.array(tokens, np.uint16).tobytes())
    read, place = [], 0
    for text in texts:
        read.append(tokens[place : place + len(text)])
        place += len(text)
    return read


def walk(texts: list[list[int]], first: int, last: int, count: int, length: int, seed: int) -> list[list[int]]:
    """All samples of documents `first` ... `last` - 1 in Megatron's order, for at least `count` samples."""
    documents = np.arange(first, last, dtype=np.int32)
    epoch = sum(len(texts[number]) for number in documents)
    epochs = 1
    while (epochs * epoch - 1) // length < count:
        epochs += 1
    in_others = ((epochs - 1) * epoch - 1) // length
    separate = epochs > 1 and count - in_others < int(0.8 * ((epoch - 1) // length))
    random = np.random.RandomState(seed)
    groups = [epochs - 1, 1] if separate else [epochs]
    order: list[int] = []
    for group in groups:
        part = np.concatenate([documents] * group)
        random.shuffle(part)
        order += part.tolist()
    text = [token for number in order for token in texts[number]]
    samples = [text[start : start + length + 1] for start in range(0, len(text) - length, length)]
    assert len(samples) == (epochs * epoch - 1) // length
    numbers = np.arange(len(samples))
    parts = [numbers[:in_others], numbers[in_others:]] if separate else [numbers]
    for part in parts:
        random.shuffle(part)  # in place, a view
    return [samples[number] for number in numbers]


def arguments(prefix: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data_path": [str(prefix)],
        "split": "600,300,100",
        "seq_length": 16,
        "seed": 1234,
        "train_iters": 10,
        "eval_interval": 5,
        "eval_iters": 2,
        "global_batch_size": 4,
        "dataloader_type": "single",
        **changes,
    }


@pytest.mark.parametrize("eval_iters", [1, 2, 3, 5, 8, 13])
def test_every_sample_is_the_one_of_the_walk(eval_iters: int, tmp_path: Path) -> None:
    texts = write_data(tmp_path / "a", 50, seed=eval_iters)
    count = 3 * eval_iters * 4
    expected = walk(texts, 30, 45, count, 16, 1234)
    found = validation_samples(arguments(tmp_path / "a", eval_iters=eval_iters), 0, count)
    assert found.tolist() == expected[:count]


def test_the_walk_covers_one_epoch_several_and_one_apart(tmp_path: Path) -> None:
    texts = write_data(tmp_path / "a", 50, seed=1)
    tokens = sum(len(text) for text in texts[30:45])
    epochs = {-(-(3 * many * 4 * 16 + 1) // tokens) for many in (1, 2, 3, 5, 8, 13)}
    assert min(epochs) == 1
    assert max(epochs) > 5


def test_files_with_megatrons_own_bug_are_read_as_megatron_reads_them(tmp_path: Path) -> None:
    texts = write_data(tmp_path / "a", 50, seed=3, missed_ends=True)
    found = validation_samples(arguments(tmp_path / "a"), 8, 8)
    assert found.tolist() == walk(texts, 30, 45, 24, 16, 1234)[8:16]


def test_a_blend_takes_from_the_set_that_is_furthest_behind(tmp_path: Path) -> None:
    first, second = write_data(tmp_path / "a", 50, seed=4), write_data(tmp_path / "b", 80, seed=5)
    wanted = 3 * 2 * 4
    sets = [walk(first, 30, 45, int(np.ceil(wanted * 0.25 * 1.005)), 16, 1234)]
    sets.append(walk(second, 48, 72, int(np.ceil(wanted * 0.75 * 1.005)), 16, 1234))
    paths = ["1", str(tmp_path / "a"), "3", str(tmp_path / "b")]
    found = validation_samples(arguments(tmp_path / "a", data_path=paths), 0, wanted)
    # By hand, with shares 0.25 and 0.75: b owes 0.75 before sample 0, a 0.25 before sample 1, b 0.5, b 0.25; then both 0: a.
    chosen = "babb" + 5 * "abbb"
    places = {"a": 0, "b": 0}
    for row, name in zip(found.tolist(), chosen, strict=True):
        assert row == sets["ab".index(name)][places[name]]
        places[name] += 1


def test_shares_of_a_blend() -> None:
    chosen = [which for which, _ in blend([0.3, 0.5, 0.2], 1000)]
    assert [chosen.count(which) for which in range(3)] == [300, 500, 200]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_path": ["/nowhere/x"]}, "x.bin does not exist here"),
        ({"data_path": None, "valid_data_path": ["/x"]}, "did not get its data by --data-path"),
        ({"dataloader_type": "cyclic"}, "--dataloader-type cyclic"),
        ({"split": "100,0,0"}, "the validation part of the checkpoint's data is empty"),
    ],
)
def test_data_that_cannot_be_found_again_is_said(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_data(tmp_path / "a", 50, seed=1)
    with pytest.raises(InputError, match=said):
        validation_samples(arguments(tmp_path / "a", **changes), 0, 4)
