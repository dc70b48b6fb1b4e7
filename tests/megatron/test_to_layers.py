"""The way back to Megatron: bit-exact there and back, for every division, and files that DeepSpeed can load."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.megatron_writer import make_model, write_checkpoint
from safetensors.torch import load_file, save_file
from tiny_model import make_model_folder
from train.conftest import VOCAB, write_tokenizer

from core.errors import InputError
from core.files import read_json, write_json
from core.megatron.convert import to_transformers
from core.megatron.layers import load, read_checkpoint
from core.megatron.to_layers import main, megatron_options, write_megatron
from core.train.model_folder import write_folder
from core.train.vocabulary import Vocabulary

VOCABULARY = Vocabulary(VOCAB, bos=1, eos=2, pad=3, eod=6)


def converted(tmp_path: Path, llama: bool, **changes: Any) -> Path:
    checkpoint = read_checkpoint(write_checkpoint(make_model(llama, 2, **changes), tmp_path / "job"))
    write_tokenizer(tmp_path / "tokenizer")
    folder = tmp_path / "folder"
    write_folder(folder, *to_transformers(checkpoint, VOCABULARY), VOCABULARY, torch.float32, tmp_path / "tokenizer")
    return folder


@pytest.mark.parametrize(
    ("tensor_parallel", "pipeline_parallel", "pipeline_engine"),
    [(1, 1, True), (2, 2, True), (4, 1, True), (2, 1, False)],
)
@pytest.mark.parametrize(
    ("llama", "changes"),
    [(True, {}), (True, {"tied": True, "biases": True}), (False, {}), (False, {"tied": False})],
    ids=["llama", "llama-tied-biases", "gpt", "gpt-untied"],
)
def test_there_and_back_is_bit_exact(
    llama: bool,
    changes: dict[str, Any],
    tensor_parallel: int,
    pipeline_parallel: int,
    pipeline_engine: bool,
    tmp_path: Path,
) -> None:
    folder = converted(tmp_path, llama, **changes)
    architecture = write_megatron(folder, tmp_path / "back", tensor_parallel, pipeline_parallel, pipeline_engine)
    back = read_checkpoint(tmp_path / "back")
    assert back.architecture == architecture
    assert architecture.rows == -(-(VOCAB + 3) // (128 * tensor_parallel)) * 128 * tensor_parallel
    original = read_checkpoint(tmp_path / "job").weights
    for name, weight in back.weights.items():
        rows = slice(0, VOCAB) if name in ("word_embeddings.weight", "lm_head.weight") else slice(None)
        assert torch.equal(weight[rows], original[name][rows]), name
    _, weights = to_transformers(back, VOCABULARY)
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(weights[name], weight), name


def test_the_padding_is_as_unlikely_as_the_piece_that_no_text_holds(tmp_path: Path) -> None:
    folder = converted(tmp_path, llama=True)
    write_megatron(folder, tmp_path / "back")
    weights = read_checkpoint(tmp_path / "back").weights
    for name in ("word_embeddings.weight", "lm_head.weight"):
        assert torch.equal(weights[name][VOCAB:], weights[name][3].expand(384 - VOCAB, -1))


def test_the_files_are_those_that_deepspeed_looks_for(tmp_path: Path) -> None:
    write_megatron(converted(tmp_path, llama=True), tmp_path / "back", tensor_parallel=2, pipeline_parallel=2)
    assert (tmp_path / "back" / "latest").read_text() == "global_step0"
    assert (tmp_path / "back" / "latest_checkpointed_iteration.txt").read_text() == "0"
    folder = tmp_path / "back" / "global_step0"
    ranks = sorted(path.name for path in folder.glob("mp_rank_*"))
    assert ranks == [f"mp_rank_{rank:02d}_model_states.pt" for rank in range(4)]
    assert len(list(folder.glob("layer_*-model_*-model_states.pt"))) == 5 * 2
    state = load(folder / ranks[0])
    # DeepSpeed counts the mp_rank files against this, and Megatron reorders queries, keys and values below version 2.
    assert (state["mp_world_size"], state["module"], state["iteration"], state["checkpoint_version"]) == (
        4,
        None,
        0,
        3.0,
    )
    # Each file has its own part only: torch.save writes the whole of what a view is of.
    assert (folder / "layer_02-model_00-model_states.pt").stat().st_size < 20_000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, "base 500000; Megatron-DeepSpeed has only"),
        ({"model_type": "mistral"}, "is a mistral model"),
        ({"num_key_value_heads": 3}, "its config says 8 heads and 3 key/value heads"),
        ({"vocab_size": 200}, "has 200 rows for a tokenizer of 300 pieces"),
    ],
)  # fmt: skip
def test_what_megatron_cannot_compute_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = converted(tmp_path, llama=True)
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)
    with pytest.raises(InputError, match=said):
        write_megatron(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, "no SwiGLU"),
        ({"attention_bias": True}, "biases in a part of its matrices"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}, "of type linear"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "has rotary positions"),
        ({"tie_word_embeddings": True}, "has a head of its own"),
        ({"num_hidden_layers": 1}, r"not, such as model\.layers\.1\."),
        ({"rms_norm_eps": None}, "config.json is damaged"),
        ({"num_attention_heads": "many"}, "config.json is damaged"),
    ],
)
def test_a_llama_of_another_kind_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = converted(tmp_path, llama=True)
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)
    with pytest.raises(InputError, match=said):
        write_megatron(folder, tmp_path / "back")


@pytest.mark.parametrize(
    "changes",
    [{"activation_function": "relu"}, {"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}],
)
def test_a_gpt2_of_another_kind_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = converted(tmp_path, llama=False)
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)
    with pytest.raises(InputError, match="which Megatron has not"):
        write_megatron(folder, tmp_path / "back")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").write_text('{"a":'), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'), "config.json has no n_head"),
        (lambda folder: cut(folder / "model.safetensors"), "the weights in .* are damaged or cut off"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors and no model.safetensors.index"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "it has no tokenizer.json"),
    ],
    ids=["config", "config-lacks", "cut", "no-weights", "no-tokenizer"],
)  # fmt: skip
def test_a_damaged_folder_is_named(damage: Any, said: str, tmp_path: Path) -> None:
    folder = converted(tmp_path, llama=True)
    damage(folder)
    with pytest.raises(InputError, match=said):
        write_megatron(folder, tmp_path / "back")


def test_weights_in_several_files_are_those_of_the_index(tmp_path: Path) -> None:
    """As transformers does it: a file that the index does not name is not read."""
    folder = converted(tmp_path, llama=True)
    write_megatron(folder, tmp_path / "whole")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / file)
    save_file({name: weight * 2 for name, weight in weights.items()}, folder / "older.safetensors")
    places = {name: file for file, own in parts.items() for name in own}
    write_json(folder / "model.safetensors.index.json", {"weight_map": places})
    write_megatron(folder, tmp_path / "back")
    whole, back = (read_checkpoint(tmp_path / name).weights for name in ("whole", "back"))
    assert all(torch.equal(back[name], weight) for name, weight in whole.items())
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model-00002-of-00002\.safetensors, which its"):
        write_megatron(folder, tmp_path / "again")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted(tmp_path, llama=True)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(sys, "argv", ["to_layers", str(folder), str(tmp_path / "back")])
    assert main() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "job", "tokenizer"]


@pytest.mark.parametrize(
    ("division", "said"),
    [
        ({"tensor_parallel": 8}, "4 key/value heads"),
        ({"tensor_parallel": 0}, "at least one"),
        ({"pipeline_parallel": 3}, "2 layers cannot be divided over 3"),
        ({"pipeline_parallel": 2, "pipeline_engine": False}, "need the pipeline engine"),
    ],
)
def test_a_division_that_does_not_come_out_is_refused(division: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        write_megatron(converted(tmp_path, llama=True), tmp_path / "back", **division)


def test_it_is_a_command_that_says_how_to_load(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "folder", "gpt2")
    command = [sys.executable, "-m", "core.megatron.to_layers", str(folder), str(tmp_path / "back")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert f"--load {tmp_path / 'back'} --finetune --num-layers 2" in done.stdout
    assert "--swiglu" not in done.stdout


def test_a_mistake_is_an_error_of_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["to_layers", str(tmp_path), str(tmp_path)])
    assert main() == 64
    assert "exists already" in capsys.readouterr().err


def test_the_options_build_the_same_model(tmp_path: Path) -> None:
    words = megatron_options(write_megatron(converted(tmp_path, llama=True), tmp_path / "back"))
    assert words[words.index("--num-key-value-heads") + 1] == "4"
    assert {"--swiglu", "--use-rotary-position-embeddings", "--untie-embeddings-and-output-weights"} <= set(words)
    assert "--disable-bias-linear" in words
    assert words[words.index("--layernorm-epsilon") + 1] == "1e-05"


def test_the_options_of_variants(tmp_path: Path) -> None:
    gpt = read_checkpoint(write_checkpoint(make_model(False), tmp_path / "gpt", layernorm_epsilon=1e-6)).architecture
    words = megatron_options(gpt)
    assert words[words.index("--layernorm-epsilon") + 1] == "1e-06"
    assert not {"--no-bias-gelu-fusion", "--squared-relu", "--disable-bias-linear"} & set(words)
    assert "--no-bias-gelu-fusion" in megatron_options(dataclasses.replace(gpt, activation="gelu"))
    assert "--squared-relu" in megatron_options(dataclasses.replace(gpt, activation="squared_relu"))
