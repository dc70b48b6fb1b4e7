"""A small tokenizer file and a run that already has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_tokenizer import train_small

from core.runs.directory import RunDirectory

if TYPE_CHECKING:
    from conftest import MakeRun

DataRun = Callable[..., RunDirectory]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The .model files of a unigram and a bpe tokenizer of 1,500 pieces."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("unigram", "bpe"):
        (folder / f"{kind}.model").write_bytes(train_small(folder, model_type=kind))
    return {kind: folder / f"{kind}.model" for kind in ("unigram", "bpe")}


@pytest.fixture
def data_run(make_run: MakeRun, models: dict[str, Path]) -> DataRun:
    """`data_run([files], data={...}, corpus={...}, name="r")`: the tokenizer stage counts as done."""

    def make(files: list[Path], name: str = "r", **preset: Any) -> RunDirectory:
        corpus = {"files": [str(file) for file in files], **preset.pop("corpus", {})}
        chosen = {"pretrain": {"steps": 1}, "model": {"size": "125M", "sequence_length": 16}, **preset}
        run = make_run({**chosen, "corpus": corpus, "tokenizer": {"vocab_size": 1500}}, name=name)
        run.tokenizer.mkdir()
        (run.tokenizer / "tokenizer.model").write_bytes(models["bpe"].read_bytes())
        return run

    return make
