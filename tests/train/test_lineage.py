from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data.indexed import write_indexed
from core.preset import Preset
from core.train.lineage import config_hash, data_hash

BASE: dict[str, Any] = {"model": {"size": "125M"}, "pretrain": {"steps": 10}}
DERIVED = {"steps": 10, "warmup_steps": 1, "global_batch": 256, "precision": "fp32", "zero": 0}


def hash_of(derived: dict[str, Any] = DERIVED, **changes: Any) -> str:
    document = {**BASE, **changes}
    return config_hash(Preset.model_validate(document), derived)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"model": {"size": "125M", "norm_eps": 1e-6}},
        {"pretrain": {"steps": 10, "lr": 1e-4}},
        {"data": {"split": "90,10,0"}},
        {"derived": DERIVED | {"steps": 11}},
        {"derived": DERIVED | {"global_batch": 128}},
        {"derived": DERIVED | {"precision": "bf16"}},
    ],
    ids=str,
)
def test_what_decides_the_weights_changes_the_config_hash(changes: dict[str, Any]) -> None:
    assert hash_of(**changes) != hash_of()


@pytest.mark.parametrize(
    "change",
    [{"save_interval": 5}, {"keep_checkpoints": 3}, {"compile": "off"}, {"micro_batch": 4}, {"global_batch": 255}],
    ids=str,
)
def test_what_may_change_between_two_attempts_does_not(change: dict[str, Any]) -> None:
    assert hash_of(pretrain={"steps": 10, **change}) == hash_of()


def test_one_changed_token_changes_the_data_hash(tmp_path: Path) -> None:
    hashes = set()
    for last in (5, 6, 5):
        write_indexed(tmp_path / "t", [np.array([1, 2, last], dtype=np.uint16)], np.uint16)
        hashes.add(data_hash(tmp_path / "t"))
    assert len(hashes) == 2
