"""The convert stage's work: a checkpoint becomes a model folder that plain transformers loads, after a gate.

The gate loads the finished folder as anyone would, with AutoModelForCausalLM, and compares it with the checkpoint in the
training model: logits on real validation tokens, and the validation loss that the trainer last reported.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from core.errors import StageError
from core.files import read_json, sync
from core.stages.base import Outcome, StageContext
from core.train.checkpoint import Checkpoint, files_of, latest_verified, verify
from core.train.engine import MODEL_FILE
from core.train.loop import TRAINER_FILE, weighted_mean
from core.train.loss import cross_entropy
from core.train.model import CLASSES, load_model
from core.train.sequences import Sequences, open_sequences, validation_numbers
from core.train.vocabulary import Vocabulary, read_vocabulary

LOSS_TOLERANCE = 0.01
"""Relative difference allowed between the folder's validation loss and the trainer's (which is bf16 on a GPU)."""
VALIDATION_FLOPS = 2e15
"""Work that the validation may cost on a CPU; of a large model only the first validation batches are compared."""


def convert(context: StageContext) -> Outcome:
    """Write the model folder, check it, and only then give it its name.

    Raises:
        StageError: there is no checkpoint that verifies, or the folder does not pass the gate.
    """
    os.umask(0o077)
    disable_progress_bar()
    run, section = context.run, context.preset.convert
    context.progress(0, 4, "steps")
    checkpoint = find_checkpoint(context)
    trainer: dict[str, Any] = read_json(checkpoint.path / TRAINER_FILE)
    vocabulary = read_vocabulary(run.huggingface_tokenizer)
    if vocabulary.document() != trainer["vocabulary"]:
        raise StageError(
            f"{checkpoint.path} was trained with a tokenizer of {trainer['vocabulary']['size']} pieces; the one in "
            f"{run.huggingface_tokenizer} has {vocabulary.size} or other special ids",
            "convert the checkpoint in the run that trained it, or use that run's tokenizer (tokenizer.model)",
        )
    print(f"converting {checkpoint.path} to {section.dtype}", flush=True)
    dtype = getattr(torch, section.dtype)
    _, valid = open_sequences(run.data_prefix, trainer["split"], trainer["sequence_length"], vocabulary.size)
    tokens = torch.from_numpy(valid.read(np.zeros(1, dtype=np.int64)))[:, :-1]
    context.progress(1, 4, "steps")
    expected = checkpoint_logits(checkpoint.path, dtype, tokens, vocabulary.size)

    temporary = run.pretrained.with_name(f".{run.pretrained.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_folder(checkpoint.path, temporary, vocabulary, dtype, run.huggingface_tokenizer)
    context.progress(2, 4, "steps")

    model = AutoModelForCausalLM.from_pretrained(temporary, dtype=torch.float32).eval()
    gate = compare_logits(model, tokens, expected, section.tolerance)
    context.progress(3, 4, "steps")
    if trainer["val_step"] != checkpoint.step:
        context.warn(
            f"the trainer validated last at step {trainer['val_step']}, this checkpoint is of step {checkpoint.step}: "
            "its validation loss is reported but there is nothing to compare it with"
        )
    val_loss, sequences = check_validation_loss(model, valid, trainer, trainer["val_step"] == checkpoint.step)
    parameters = sum(weight.numel() for weight in model.parameters())
    replace_folder(temporary, run.pretrained)
    context.progress(4, 4, "steps")
    print(f"wrote {run.pretrained}: {parameters:,} parameters", flush=True)
    return Outcome(
        {"model": str(run.pretrained)},
        {
            "step": checkpoint.step,
            "parameters": parameters,
            "logits_difference": gate,
            "val_loss": val_loss,
            "perplexity": math.exp(val_loss),
            "val_sequences": sequences,
        },
    )


def find_checkpoint(context: StageContext) -> Checkpoint:
    """The checkpoint that the preset names, or the run's newest, verified."""
    named = context.preset.convert.checkpoint
    if named:
        return verify(Path(named))
    found = latest_verified(context.run.checkpoints, context.warn)
    if found is None:
        raise StageError(
            f"there is no checkpoint in {context.run.checkpoints} that verifies",
            "run the pretrain stage first, or name a checkpoint with --set convert.checkpoint=...",
        )
    return found


def checkpoint_logits(folder: Path, dtype: torch.dtype, tokens: Tensor, vocab_size: int) -> Tensor:
    """Logits [1, T, vocab_size] of the checkpoint in the training model, fp32 arithmetic on weights rounded to `dtype`.

    A folder in bfloat16 can't equal fp32 weights; what the gate must find there is a mistake, not the rounding asked for.
    """
    model = load_model(AutoConfig.from_pretrained(folder), folder / MODEL_FILE, dtype)
    return logits_of(model, tokens)[..., :vocab_size].clone()


def write_folder(checkpoint: Path, target: Path, vocabulary: Vocabulary, dtype: torch.dtype, tokenizer: Path) -> None:
    """Write weights without the vocabulary's padding, config, generation config and tokenizer into `target`."""
    config: PretrainedConfig = AutoConfig.from_pretrained(checkpoint)
    rows = config.vocab_size
    config.vocab_size = vocabulary.size
    config.use_cache = True
    config.dtype = dtype
    with torch.device("meta"):
        model: PreTrainedModel = CLASSES[config.model_type](config)
    weights = load_file(checkpoint / MODEL_FILE)
    for name, weight in weights.items():
        padded = name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight")) and len(weight) == rows
        weights[name] = (weight[: vocabulary.size] if padded else weight).to(dtype).contiguous()
    model.generation_config = GenerationConfig(
        bos_token_id=vocabulary.bos,
        eos_token_id=[vocabulary.eos] + ([vocabulary.eod] if vocabulary.eod is not None else []),
        pad_token_id=vocabulary.pad,
    )
    model.save_pretrained(target, state_dict=weights)
    for file in sorted(tokenizer.iterdir()):
        if file.is_file():
            shutil.copyfile(file, target / file.name)


@torch.no_grad()
def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Logits [B, T, V] in fp32."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.float()


def compare_logits(model: PreTrainedModel, tokens: Tensor, expected: Tensor, tolerance: float) -> float:
    """Largest difference of the folder's logits from the checkpoint's, relative to the largest logit.

    Raises:
        StageError: it is above the tolerance, or the most likely token is another one somewhere.
    """
    found = logits_of(model, tokens)
    if found.shape != expected.shape:
        raise StageError(
            f"the folder's logits have shape {tuple(found.shape)}, the checkpoint's {tuple(expected.shape)}"
        )
    largest = expected.abs().max()
    difference = ((found - expected).abs().max() / largest).item()
    # Between two tokens that are equally likely to within the tolerance, rounding decides.
    chosen = expected.gather(-1, found.argmax(-1, keepdim=True)).squeeze(-1)
    other = int((expected.max(-1).values - chosen > 2 * tolerance * largest).sum())
    print(
        f"logits: largest difference {difference:.2e} of the largest logit; {other} of {tokens.numel()} argmax differ"
    )
    if not difference <= tolerance or other:
        raise StageError(
            f"the converted folder does not compute what the checkpoint does: its logits differ by {difference:.3g} of "
            f"the largest (allowed: {tolerance:g}) and {other} of {tokens.numel()} most likely tokens are others",
            "nothing was written; this is a defect of the conversion or of the installed transformers",
        )
    return difference


def check_validation_loss(
    model: PreTrainedModel, valid: Sequences, trainer: dict[str, Any], comparable: bool
) -> tuple[float, int]:
    """The folder's validation loss, on the trainer's own validation batches, and the number of sequences in it.

    Raises:
        StageError: it is `comparable` with the trainer's and differs by more than `LOSS_TOLERANCE`.
    """
    losses: list[float] = trainer["val_losses"]
    batches = trainer_batches(valid, trainer)
    flops = 2 * sum(weight.numel() for weight in model.parameters()) * len(batches[0]) * valid.length
    batches = batches[: max(1, int(VALIDATION_FLOPS / flops))]
    if len(batches) < len(losses):
        print(
            f"validation loss: on the first {len(batches)} of {len(losses)} batches; all of them would take too long here"
        )
    weights = [len(numbers) for numbers in batches]
    expected = weighted_mean(losses[: len(batches)], weights)
    started = time.perf_counter()
    found = weighted_mean([batch_loss(model, valid, numbers) for numbers in batches], weights)
    print(
        f"validation loss {found:.4f} (perplexity {math.exp(found):.2f}), the trainer's {expected:.4f}; "
        f"{sum(weights)} sequences, {time.perf_counter() - started:.1f} s",
        flush=True,
    )
    if comparable and not abs(found - expected) <= LOSS_TOLERANCE * expected:
        raise StageError(
            f"the converted folder has validation loss {found:.4f}, the trainer reported {expected:.4f} at step "
            f"{trainer['val_step']}: more than {LOSS_TOLERANCE:.0%} apart",
            "nothing was written; this is a defect of the conversion, or the validation data changed since",
        )
    return found, sum(weights)


def trainer_batches(valid: Sequences, trainer: dict[str, Any]) -> list[NDArray[np.int64]]:
    """The validation batches behind the losses in trainer.json."""
    micro_batch, count = trainer["micro_batch"], len(trainer["val_losses"])
    return validation_numbers(len(valid), count, micro_batch)


@torch.no_grad()
def batch_loss(model: PreTrainedModel, valid: Sequences, numbers: NDArray[np.int64]) -> float:
    """Mean loss in nats per token; one sequence at a time, so that few logits exist at once."""
    losses = []
    for number in numbers:
        tokens = torch.from_numpy(valid.read(np.array([number])))
        logits = logits_of(model, tokens[:, :-1])
        losses.append(cross_entropy(logits[0], tokens[0, 1:], valid.vocab_size).item())
    return sum(losses) / len(losses)


def replace_folder(temporary: Path, target: Path) -> None:
    """Let `temporary` take the place of `target`; a reader sees the old folder or the new one, whole."""
    for file in files_of(temporary):
        sync(file)
    sync(temporary)
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old)
    else:
        temporary.rename(target)
    sync(target.parent)
