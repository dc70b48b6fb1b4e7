"""megatron.start_from with a Hugging Face folder: it is laid out as the training's command divides the model, or refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_tokenizer import train_small
from train.conftest import write_tokenizer

from core.errors import InputError
from core.files import read_json
from core.megatron.layers import read_checkpoint
from core.megatron.start_from import embedding_rows, is_model_folder, lay_out
from core.model import ModelSection
from core.runs.directory import RunDirectory
from core.tokenizer import convert
from core.tokenizer.model_file import parse_model
from core.tokenizer.special import find_special
from core.train.model import build_model, model_config
from core.train.model_folder import write_folder
from core.train.vocabulary import read_vocabulary

SHAPE = {"family": "gpt2", "layers": 2, "hidden_size": 32, "heads": 4, "sequence_length": 24}


@pytest.fixture
def run(make_run: Callable[..., RunDirectory], tmp_path: Path) -> RunDirectory:
    """A run of the megatron backend with its SentencePiece model, on two tensor-parallel processes."""
    (tmp_path / "checkout").mkdir()
    run = make_run(
        {
            "tokenizer": {"vocab_size": 1500},
            "model": SHAPE,
            "cluster": {"processes": 2},
            "megatron": {
                "checkout": str(tmp_path / "checkout"),
                "start_from": str(tmp_path / "folder"),
                "tensor_parallel": 2,
            },
            "pretrain": {
                "backend": "megatron",
                "steps": 4,
                "global_batch": 4,
                "lr": 1e-3,
                "min_lr": 1e-5,
                "device": "cpu",
            },
        }
    )
    run.tokenizer.mkdir(parents=True)
    (run.tokenizer / "tokenizer.model").write_bytes(train_small(tmp_path, model_type="bpe"))
    return run


def write_model(folder: Path, tokenizer: Path) -> None:
    """A random GPT-2 of the run's shape."""
    vocabulary = read_vocabulary(tokenizer)
    config = model_config(ModelSection.model_validate(SHAPE), vocabulary, vocabulary.size)
    weights = dict(build_model(config, seed=1).named_parameters())
    write_folder(folder, config, weights, vocabulary, torch.float32, tokenizer)


def planned(run: RunDirectory) -> tuple[list[str], Path]:
    stage = next(stage for stage in read_json(run.plan)["stages"] if stage["id"] == "pretrain")
    return stage["argv"], Path(stage["outputs"]["checkpoints"])


def test_a_folder_is_laid_out_as_the_command_divides_the_model(run: RunDirectory, tmp_path: Path) -> None:
    data = (run.tokenizer / "tokenizer.model").read_bytes()
    model = parse_model(data, "test")
    special = find_special(model, "test")
    (tmp_path / "tokenizer").mkdir()
    convert.save(convert.build(model, special, "test"), special, tmp_path / "tokenizer", data, 24, "")
    write_model(tmp_path / "folder", tmp_path / "tokenizer")
    argv, checkpoints = planned(run)
    assert is_model_folder(tmp_path / "folder")
    target = lay_out(tmp_path / "folder", checkpoints, argv, run)
    assert target.parent == checkpoints.parent
    checkpoint = read_checkpoint(target)
    assert checkpoint.arguments["tensor_model_parallel_size"] == 2
    assert checkpoint.architecture.rows == embedding_rows(argv, 2) == 1536


def test_a_model_of_another_tokenizer_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    write_model(tmp_path / "folder", tmp_path / "tokenizer")
    argv, checkpoints = planned(run)
    with pytest.raises(InputError, match=r"megatron.start_from: .*another tokenizer \(300 pieces\)") as error:
        lay_out(tmp_path / "folder", checkpoints, argv, run)
    assert "Traceback" not in str(error.value)
    assert not checkpoints.with_name(f"{checkpoints.name}_start").exists()
