"""Megatron's checkpoints through the convert stage: the folder computes what the ranks computed, and the training log agrees."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked_stage import fork_stage
from megatron.megatron_writer import WrittenModel, forward, make_model, write_checkpoint
from torch.nn.functional import cross_entropy
from train.conftest import VOCAB, write_tokenizer, write_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.errors import StageError
from core.files import read_json
from core.megatron.convert import check_validation_loss, check_vocabulary, to_transformers, validation_at
from core.megatron.layers import read_checkpoint
from core.megatron.reference import logits
from core.megatron.samples import validation_samples
from core.megatron.to_layers import write_megatron
from core.runs.directory import RunDirectory
from core.train.gate import compare_logits
from core.train.model_folder import write_folder
from core.train.vocabulary import Vocabulary

MakeRun = Callable[..., RunDirectory]
VOCABULARY = Vocabulary(VOCAB, bos=1, eos=2, pad=3, eod=6)
TOKENS = torch.randint(0, VOCAB, (2, 20), generator=torch.Generator().manual_seed(1))
EVALUATION = {
    "train_iters": 4,
    "eval_interval": 2,
    "eval_iters": 2,
    "global_batch_size": 4,
    "consumed_valid_samples": 16,
}


@pytest.mark.parametrize(
    ("llama", "tensor_parallel", "changes"),
    [
        (True, 1, {}),
        (True, 4, {}),
        (True, 2, {"tied": True, "biases": True}),
        (False, 1, {}),
        (False, 4, {}),
        (False, 2, {"tied": False}),
    ],
    ids=["llama", "llama-tp4", "llama-tied-biases", "gpt", "gpt-tp4", "gpt-untied"],
)
def test_transformers_computes_what_the_ranks_computed(
    llama: bool, tensor_parallel: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model(llama, tensor_parallel, **changes)
    checkpoint = read_checkpoint(write_checkpoint(model, tmp_path / "job"))
    write_tokenizer(tmp_path / "tokenizer")
    folder = tmp_path / "folder"
    write_folder(folder, *to_transformers(checkpoint, VOCABULARY), VOCABULARY, torch.float32, tmp_path / "tokenizer")
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = converted(TOKENS).logits
    expected = forward(model, TOKENS)[..., :VOCAB]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize(
    ("llama", "arguments"),
    [
        (False, {"bias_gelu_fusion": False}),
        (False, {"squared_relu": True}),
        (False, {"layernorm_epsilon": 1e-2}),
        (True, {"layernorm_epsilon": 1e-2}),
    ],
    ids=["exact-gelu", "squared-relu", "gpt-epsilon", "llama-epsilon"],
)
def test_transformers_computes_other_variants_as_the_reference_does(
    llama: bool, arguments: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(write_checkpoint(make_model(llama), tmp_path / "job", **arguments))
    write_tokenizer(tmp_path / "tokenizer")
    folder = tmp_path / "folder"
    write_folder(folder, *to_transformers(checkpoint, VOCABULARY), VOCABULARY, torch.float32, tmp_path / "tokenizer")
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = logits(checkpoint, TOKENS)[..., :VOCAB]
    assert compare_logits(converted, TOKENS, expected, 1e-4) <= 1e-5
    assert (expected - forward(make_model(llama), TOKENS)[..., :VOCAB]).abs().max() > 1e-4 * expected.abs().max()


def test_the_config_has_the_widths_of_heads_and_the_rates_of_dropout(tmp_path: Path) -> None:
    gpt = read_checkpoint(
        write_checkpoint(make_model(False), tmp_path / "gpt", hidden_dropout=0.2, attention_dropout=0.3)
    )
    config, _ = to_transformers(gpt, VOCABULARY)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.2, 0.2, 0.3)
    llama = read_checkpoint(write_checkpoint(make_model(True), tmp_path / "llama"))
    wide = dataclasses.replace(llama.architecture, heads=2, kv_heads=1, head_dim=8, rotary_dim=8)
    config, _ = to_transformers(dataclasses.replace(llama, architecture=wide, weights={}), VOCABULARY)
    assert (config.head_dim, config.num_attention_heads, config.num_key_value_heads) == (8, 2, 1)


@pytest.mark.parametrize(
    ("step", "consumed", "expected"), [(4, 16, (False, 8, 8)), (4, 0, (True, 0, 8)), (3, 8, (True, 8, 8))]
)
def test_which_validation_is_the_checkpoints(
    step: int, consumed: int, expected: tuple[bool, int, int], tmp_path: Path
) -> None:
    """After a step without validation, the one after the training reads on from where the last one ended."""
    arguments = {**EVALUATION, "consumed_valid_samples": consumed}
    checkpoint = read_checkpoint(write_checkpoint(make_model(False), tmp_path, step=step, **arguments))
    assert validation_at(checkpoint) == expected


def test_a_diverged_checkpoint_is_called_that(make_run: MakeRun, tmp_path: Path) -> None:
    model = make_model(False)
    model.ranks[0][1, "self_attention.dense.bias"][0] = math.nan
    run = megatron_run(make_run, write_checkpoint(model, tmp_path / "job"))
    stage = fork_stage(run, "convert")
    assert stage.wait() == 2
    assert "logits that are not finite: its training had diverged" in stage.output
    assert not run.pretrained.exists()


def test_the_folder_generates_in_every_precision(make_run: MakeRun, tmp_path: Path) -> None:
    """Plain transformers, with what the folder says of begin, end and padding."""
    run = megatron_run(make_run, write_checkpoint(make_model(True, 2), tmp_path / "job"), dtype="bfloat16")
    stage = fork_stage(run, "convert")
    assert stage.wait() == 0, stage.output
    tokenizer = AutoTokenizer.from_pretrained(run.pretrained)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = AutoModelForCausalLM.from_pretrained(run.pretrained, dtype=dtype)
        found = model.generate(torch.tensor([[1, 20, 21]]), max_new_tokens=4, do_sample=False)
        assert found.shape[1] > 3
        assert tokenizer.decode(found[0])


@pytest.mark.parametrize("llama", [True, False], ids=["llama", "gpt"])
def test_a_vocabulary_without_padding(llama: bool, tmp_path: Path) -> None:
    """A number of pieces that is a multiple already: no row is removed, and none put back for the loss."""
    model = make_model(llama, 2, rows=VOCAB)
    checkpoint = read_checkpoint(write_checkpoint(model, tmp_path / "job", vocab_size=VOCAB))
    check_vocabulary(checkpoint, VOCABULARY, tmp_path / "none.model")
    write_tokenizer(tmp_path / "tokenizer")
    folder = tmp_path / "folder"
    write_folder(folder, *to_transformers(checkpoint, VOCABULARY), VOCABULARY, torch.float32, tmp_path / "tokenizer")
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    head = checkpoint.weights["word_embeddings.weight" if checkpoint.architecture.tied else "lm_head.weight"]
    expected = cross_entropy(forward(model, TOKENS[:1, :-1]).flatten(0, 1), TOKENS[0, 1:]).item()
    own, _ = check_validation_loss(converted, TOKENS[:1].numpy(), head[VOCAB:], expected, 1e-4)
    assert own == pytest.approx(expected, rel=1e-4)
    write_megatron(folder, tmp_path / "back", rows=VOCAB)
    back = read_checkpoint(tmp_path / "back").weights
    assert all(torch.equal(back[name], weight) for name, weight in checkpoint.weights.items())


def megatron_run(make_run: MakeRun, checkpoint: Path, **convert: Any) -> RunDirectory:
    run = make_run({"tokenizer": {"vocab_size": VOCAB}, "convert": {"checkpoint": str(checkpoint), **convert}})
    write_tokenizer(run.huggingface_tokenizer)
    write_tokens(run.data_prefix, documents=120)
    return run


def original_layout(folder: Path, model: WrittenModel, data: Path, said: float | None = None, **arguments: Any) -> Path:
    """A job's checkpoint and log as the original's scripts lay them out; the log says the ranks' own loss, or `said`."""
    arguments = {**EVALUATION, "data_path": [str(data)], "split": "800,190,10", "seed": 1, **arguments}
    target = write_checkpoint(model, folder / "checkpoint" / "job", **arguments)
    read = read_checkpoint(target).arguments
    samples = torch.from_numpy(validation_samples(read, 8, 8))
    logits = forward(model, samples[:, :-1])
    loss = cross_entropy(logits.flatten(0, 1), samples[:, 1:].flatten()).item()
    (folder / "log").mkdir()
    (folder / "log" / "job_host_2026.01.01_00.00.00.log").write_text(
        f" validation loss at iteration 2 | lm loss value: 9.000000E+00 | lm loss PPL: 8.103084E+03 | \n"
        f" validation loss at iteration 4 | lm loss value: {said or loss:.6E} | lm loss PPL: {math.exp(loss):.6E} | \n"
        f" validation loss at iteration 4 on 8-sample draw from validation set | lm loss value: 9.000000E+00 | lm loss PPL: 8.1E+03 | \n"
    )
    return target


@pytest.mark.parametrize("llama", [True, False], ids=["llama", "gpt"])
def test_the_stage_converts_and_finds_the_loss_of_the_training_log(
    llama: bool, make_run: MakeRun, tmp_path: Path
) -> None:
    write_tokens(tmp_path / "data" / "text_document", documents=120)
    target = original_layout(tmp_path / "out", make_model(llama, 2), tmp_path / "data" / "text_document")
    run = megatron_run(make_run, target.parent)
    stage = fork_stage(run, "convert")
    assert stage.wait() == 0, stage.output
    metrics = read_json(run.result("convert"))["metrics"]
    assert metrics["step"] == 4
    assert metrics["logits_difference"] <= 1e-4
    assert metrics["val_loss_difference"] <= 1e-4
    assert metrics["val_sequences"] == 8
    assert metrics["val_loss"] < metrics["padded_val_loss"]
    config = read_json(run.pretrained / "config.json")
    assert config["vocab_size"] == VOCAB
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 3)
    if not llama:
        assert config["activation_function"] == "gelu_new"
    generation = read_json(run.pretrained / "generation_config.json")
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, [2, 6], 3)
    assert (run.pretrained / "tokenizer.json").is_file()


def test_a_log_that_says_another_loss_stops_the_conversion(make_run: MakeRun, tmp_path: Path) -> None:
    write_tokens(tmp_path / "data" / "text_document", documents=120)
    target = original_layout(tmp_path / "out", make_model(False), tmp_path / "data" / "text_document", said=7.0)
    run = megatron_run(make_run, target)
    stage = fork_stage(run, "convert")
    assert stage.wait() == 2
    assert "its log says 7.000000: more than 0.0001 apart" in stage.output
    assert not run.pretrained.exists()


def test_a_checkpoint_from_elsewhere_without_its_log_is_converted_and_that_is_said(
    make_run: MakeRun, tmp_path: Path
) -> None:
    target = write_checkpoint(make_model(True, 2), tmp_path / "job", **EVALUATION, data_path=["/gone/x"], split="9,1,0")
    run = megatron_run(make_run, target, dtype="bfloat16")
    stage = fork_stage(run, "convert")
    assert stage.wait() == 0, stage.output
    assert "there is no validation loss of the training to compare with" in stage.output
    assert read_json(run.result("convert"))["metrics"]["logits_difference"] <= 1e-4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"vocab_size": 410},
            "was trained with 410 pieces, Megatron's additions included; this run's tokenizer has 300",
        ),
        ({"vocab_size": 299}, "was trained with 299 pieces"),
        ({"vocab_size": 303, "padded_vocab_size": 301}, "was trained with 303 pieces"),
        ({"vocab_size": None, "make_vocab_size_divisible_by": 32}, "a vocabulary that is padded to 384 rows"),
    ],
)
def test_a_checkpoint_of_another_tokenizer_is_refused(arguments: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = make_model(False, rows=arguments.get("padded_vocab_size", 384))
    checkpoint = read_checkpoint(write_checkpoint(model, tmp_path, **arguments))
    with pytest.raises(StageError, match=said):
        check_vocabulary(checkpoint, VOCABULARY, tmp_path / "none.model")


@pytest.mark.parametrize("vocab_size", [300, 303, 307, None])
def test_megatrons_own_additions_to_the_vocabulary_are_no_other_tokenizer(
    vocab_size: int | None, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(write_checkpoint(make_model(False), tmp_path, vocab_size=vocab_size))
    check_vocabulary(checkpoint, VOCABULARY, tmp_path / "none.model")


@pytest.mark.parametrize(
    ("llama", "arguments", "said"),
    [
        (True, {"rotary_percent": 0.5}, "RMSNorm and positions that are not rotary over whole heads"),
        (False, {"num_key_value_heads": 4}, "fewer key/value heads than heads"),
    ],
)
def test_a_model_that_transformers_cannot_compute_is_named(
    llama: bool, arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = make_model(llama, **({} if llama else {"kv_heads": 4}))
    checkpoint = read_checkpoint(write_checkpoint(model, tmp_path, **arguments))
    with pytest.raises(StageError, match=said):
        to_transformers(checkpoint, VOCABULARY)


def test_a_part_of_the_validation_is_judged_by_its_sampling_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(False)
    checkpoint = read_checkpoint(write_checkpoint(model, tmp_path / "job"))
    write_tokenizer(tmp_path / "tokenizer")
    folder = tmp_path / "folder"
    write_folder(folder, *to_transformers(checkpoint, VOCABULARY), VOCABULARY, torch.float32, tmp_path / "tokenizer")
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    samples = np.random.default_rng(0).integers(0, VOCAB, (64, 21))
    tokens = torch.from_numpy(samples)
    expected = cross_entropy(forward(model, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).item()
    removed = checkpoint.weights["word_embeddings.weight"][VOCAB:]
    flops = 2 * sum(weight.numel() for weight in converted.parameters()) * 21
    monkeypatch.setattr("core.megatron.convert.VALIDATION_FLOPS", 16 * flops)
    _, numbers = check_validation_loss(converted, samples, removed, expected, 1e-4)
    assert numbers["val_sequences"] == 16
    assert numbers["val_loss_difference"] > 1e-4
    assert "on 16 of 64 samples" in capsys.readouterr().out
    with pytest.raises(StageError, match="apart"):
        check_validation_loss(converted, samples, removed, expected + 1.0, 1e-4)


def test_a_run_of_the_megatron_backend_converts_its_newest_complete_checkpoint(
    make_run: MakeRun, tmp_path: Path
) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "pretrain_gpt.py").write_text("")
    shape = {"layers": 2, "hidden_size": 32, "heads": 8, "ffn_size": 48, "sequence_length": 24}
    run = make_run(
        {
            "tokenizer": {"vocab_size": VOCAB},
            "model": {"family": "gpt2", **shape},
            "megatron": {"checkout": str(tmp_path / "checkout")},
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
    write_tokenizer(run.huggingface_tokenizer)
    write_tokens(run.data_prefix, documents=120)
    stages = {stage["id"]: stage for stage in read_json(run.plan)["stages"]}
    checkpoints = Path(stages["pretrain"]["outputs"]["checkpoints"])
    assert stages["convert"]["inputs"]["checkpoint"] == [str(checkpoints)]
    data = {**EVALUATION, "data_path": [str(run.data_prefix)], "split": "800,190,10", "seed": 1}
    model = make_model(False)
    read = read_checkpoint(write_checkpoint(model, checkpoints, step=4, **data)).arguments
    (write_checkpoint(make_model(False, seed=1), checkpoints, step=6) / "layer_02-model_00-model_states.pt").unlink()
    samples = torch.from_numpy(validation_samples(read, 8, 8))
    loss = cross_entropy(forward(model, samples[:, :-1]).flatten(0, 1), samples[:, 1:].flatten()).item()
    run.log("pretrain").parent.mkdir(parents=True, exist_ok=True)
    run.log("pretrain").write_text(
        f" validation loss at iteration 4 | lm loss value: {loss:.6E} | lm loss PPL: 1.0E+02 | \n"
    )
    stage = fork_stage(run, "convert")
    assert stage.wait() == 0, stage.output
    metrics = read_json(run.result("convert"))["metrics"]
    assert metrics["step"] == 4
    assert metrics["val_loss_difference"] <= 1e-4
