"""Conversion: the gate lets a right folder through and stops a wrong one; the result needs nothing of this project."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked_stage import fork_stage
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.errors import StageError
from core.files import read_json, write_json
from core.runs.directory import RunDirectory
from core.train.convert import LOSS_TOLERANCE, check_validation_loss, checkpoint_logits, compare_logits
from core.train.sequences import open_sequences

MakeTraining = Callable[..., RunDirectory]
TRAIN = {"steps": 40, "lr": 1e-2, "save_interval": 40, "valid_interval": 40}

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-untied": {"tied_embeddings": False, "kv_heads": 4},
    "gpt2": {"family": "gpt2"},
    "gpt2-untied": {"family": "gpt2", "tied_embeddings": False, "dropout": 0.1},
}

USE_ELSEWHERE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, tokens = sys.argv[1], json.loads(sys.argv[2])
assert not any(name == "core" or name.startswith("core.") for name in sys.modules)
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
batch = torch.tensor(tokens)
with torch.no_grad():
    logits = model(batch[:, :-1]).logits
loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
made = model.generate(batch[:1, :5], max_new_tokens=5, do_sample=False)
print(json.dumps({"loss": loss.item(), "generated": made.shape[1], "dtype": str(model.dtype), "pieces": len(tokenizer),
                  "rows": model.get_input_embeddings().weight.shape[0], "eos": model.generation_config.eos_token_id}))
"""


def trained(run: RunDirectory) -> RunDirectory:
    stage = fork_stage(run, "pretrain")
    assert stage.wait() == 0, stage.output
    return run


def validation_tokens(run: RunDirectory) -> np.ndarray:
    _, valid = open_sequences(run.data_prefix, "949,50,1", 32, 300)
    return valid.read(np.arange(8))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_folder_computes_what_the_checkpoint_does(shape: str, training_run: MakeTraining) -> None:
    run = trained(training_run(TRAIN, model=SHAPES[shape]))
    stage = fork_stage(run, "convert")
    assert stage.wait() == 0, stage.output
    metrics = read_json(run.result("convert"))["metrics"]
    pretrained = read_json(run.result("pretrain"))["metrics"]
    assert metrics["logits_difference"] <= 1e-4
    assert metrics["val_loss"] == pytest.approx(pretrained["val_loss"], rel=1e-4)
    assert metrics["perplexity"] == pytest.approx(np.exp(pretrained["val_loss"]), rel=1e-3)
    config = read_json(run.pretrained / "config.json")
    assert (config["vocab_size"], config["use_cache"]) == (300, True)
    generation = read_json(run.pretrained / "generation_config.json")
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, [2, 6], 3)
    assert {path.name for path in run.outputs.iterdir()} >= {"pretrained"}
    assert not list(run.outputs.glob(".pretrained*"))
    tied = SHAPES[shape].get("tied_embeddings", True)
    assert ("lm_head.weight" in load_file(run.pretrained / "model.safetensors")) == (not tied)


def test_a_process_without_this_project_loads_it_and_finds_the_trainers_loss(
    training_run: MakeTraining, tmp_path: Path
) -> None:
    run = trained(training_run(TRAIN))
    assert fork_stage(run, "convert").wait() == 0
    found = subprocess.run(
        [sys.executable, "-I", "-c", USE_ELSEWHERE, str(run.pretrained), json.dumps(validation_tokens(run).tolist())],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    answer = json.loads(found.stdout)
    assert answer["loss"] == pytest.approx(read_json(run.result("pretrain"))["metrics"]["val_loss"], rel=1e-4)
    assert {name: answer[name] for name in ("dtype", "pieces", "rows", "eos")} == {
        "dtype": "torch.float32",
        "pieces": 300,
        "rows": 300,
        "eos": [2, 6],
    }
    assert answer["generated"] > 5


def test_bfloat16_is_compared_with_equally_rounded_weights(training_run: MakeTraining) -> None:
    run = trained(training_run(TRAIN, convert={"dtype": "bfloat16"}))
    stage = fork_stage(run, "convert")
    assert stage.wait() == 0, stage.output
    assert read_json(run.result("convert"))["metrics"]["logits_difference"] <= 1e-4
    assert {weight.dtype for weight in load_file(run.pretrained / "model.safetensors").values()} == {torch.bfloat16}


@pytest.fixture
def converted(training_run: MakeTraining) -> RunDirectory:
    run = trained(training_run(TRAIN))
    assert fork_stage(run, "convert").wait() == 0
    return run


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight", "model.norm.weight"]
)
def test_the_gate_stops_a_folder_with_one_wrong_weight(name: str, converted: RunDirectory) -> None:
    tokens = torch.from_numpy(validation_tokens(converted)[:1, :-1])
    expected = checkpoint_logits(converted.checkpoints / "step-40", torch.float32, tokens, 300)
    right = AutoModelForCausalLM.from_pretrained(converted.pretrained, dtype=torch.float32).eval()
    assert compare_logits(right, tokens, expected, 1e-4) <= 1e-4
    file = converted.pretrained / "model.safetensors"
    weights = load_file(file)
    weights[name].flatten()[weights[name].numel() // 2] += 0.5
    if name == "model.embed_tokens.weight":
        weights[name][int(tokens[0, 3])] += 0.5
    save_file(weights, file, metadata={"format": "pt"})
    wrong = AutoModelForCausalLM.from_pretrained(converted.pretrained, dtype=torch.float32).eval()
    with pytest.raises(StageError, match="does not compute what the checkpoint does"):
        compare_logits(wrong, tokens, expected, 1e-4)


def test_the_gate_stops_a_folder_whose_config_lies(converted: RunDirectory) -> None:
    tokens = torch.from_numpy(validation_tokens(converted)[:1, :-1])
    expected = checkpoint_logits(converted.checkpoints / "step-40", torch.float32, tokens, 300)
    config = read_json(converted.pretrained / "config.json")
    config["rope_parameters"]["rope_theta"] = 500.0
    write_json(converted.pretrained / "config.json", config)
    wrong = AutoModelForCausalLM.from_pretrained(converted.pretrained, dtype=torch.float32).eval()
    with pytest.raises(StageError, match="does not compute what the checkpoint does"):
        compare_logits(wrong, tokens, expected, 1e-4)


def test_a_validation_loss_off_by_more_than_one_percent_fails(converted: RunDirectory) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted.pretrained, dtype=torch.float32).eval()
    _, valid = open_sequences(converted.data_prefix, "949,50,1", 32, 300)
    trainer = read_json(converted.checkpoints / "step-40" / "trainer.json")
    loss, sequences = check_validation_loss(model, valid, trainer, comparable=True)
    assert sequences == 8
    assert loss == pytest.approx(trainer["val_loss"], rel=1e-4)
    shifted = trainer | {"val_losses": [value * (1 + 2 * LOSS_TOLERANCE) for value in trainer["val_losses"]]}
    with pytest.raises(StageError, match="more than 1% apart"):
        check_validation_loss(model, valid, shifted, comparable=True)


def test_a_failed_gate_leaves_the_folder_that_was_there(converted: RunDirectory) -> None:
    document = read_json(converted.plan)
    document["preset"]["convert"]["tolerance"] = 1e-30
    document["preset"]["convert"]["dtype"] = "bfloat16"
    write_json(converted.plan, document)
    before = (converted.pretrained / "model.safetensors").read_bytes()
    trainer = converted.data_prefix.with_name("text_document.bin")
    trainer.write_bytes(trainer.read_bytes()[::-1])  # other validation data: another loss than the trainer's
    stage = fork_stage(converted, "convert")
    assert stage.wait() == 2, stage.output
    assert "error: " in stage.output
    assert "Traceback" not in stage.output
    assert (converted.pretrained / "model.safetensors").read_bytes() == before


def test_without_a_checkpoint_the_stage_says_so(training_run: MakeTraining) -> None:
    stage = fork_stage(training_run(), "convert")
    assert stage.wait() == 2
    assert "there is no checkpoint in" in stage.output
    assert "Traceback" not in stage.output


def test_another_tokenizer_than_the_trainings_is_refused(converted: RunDirectory) -> None:
    tokenizer = read_json(converted.huggingface_tokenizer / "tokenizer.json")
    tokenizer["model"]["vocab"]["one-more"] = 300
    write_json(converted.huggingface_tokenizer / "tokenizer.json", tokenizer)
    stage = fork_stage(converted, "convert")
    assert stage.wait() == 2
    assert "was trained with a tokenizer of 300 pieces" in stage.output
