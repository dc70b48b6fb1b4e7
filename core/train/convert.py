"""The convert stage's work: a checkpoint becomes a model folder that plain transformers loads, after a gate.

The gate loads the finished folder as anyone would, with AutoModelForCausalLM, and compares it with the checkpoint: logits
on real validation tokens, against the training model of the embedded backend or a plain forward pass of Megatron's
weights, and the validation loss that the trainer last reported.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from core.errors import StageError
from core.files import read_json
from core.megatron.convert import MegatronSource, megatron_folder
from core.stages.base import Outcome, StageContext
from core.train.checkpoint import Checkpoint, latest_verified, verify
from core.train.engine import MODEL_FILE
from core.train.gate import LOSS_TOLERANCE, VALIDATION_FLOPS, compare_logits, logits_of
from core.train.loop import TRAINER_FILE, weighted_mean
from core.train.loss import cross_entropy
from core.train.model import load_model
from core.train.model_folder import replace_folder, write_folder
from core.train.sequences import Sequences, open_sequences, validation_numbers
from core.train.vocabulary import Vocabulary, read_vocabulary


class Source(Protocol):
    """A checkpoint of either backend, and what it takes to convert and to judge it."""

    @property
    def path(self) -> Path: ...

    @property
    def step(self) -> int: ...

    @property
    def tokens(self) -> Tensor:
        """Real validation tokens, [1, T]."""

    def logits(self, dtype: torch.dtype) -> Tensor:
        """Logits [1, T, pieces] of `tokens`, fp32 arithmetic on weights rounded to `dtype`.

        A folder in bfloat16 can't equal fp32 weights; what the gate must find there is a mistake, not the rounding asked for.
        """

    def model(self) -> tuple[PretrainedConfig, dict[str, Tensor]]:
        """transformers' config and weights, without the vocabulary's padding."""

    def check_loss(self, model: PreTrainedModel) -> tuple[float, dict[str, Any]]:
        """The folder's validation loss in nats per token, and what else is worth a number in the result.

        Raises:
            StageError: it is not the trainer's.
        """


def convert(context: StageContext) -> Outcome:
    """Write the model folder, check it, and only then give it its name.

    Raises:
        StageError: there is no checkpoint that verifies, or the folder does not pass the gate.
    """
    os.umask(0o077)
    disable_progress_bar()
    run, section = context.run, context.preset.convert
    context.progress(0, 4, "steps")
    vocabulary = read_vocabulary(run.huggingface_tokenizer)
    megatron = megatron_folder(context)
    source: Source = MegatronSource(context, megatron, vocabulary) if megatron else EmbeddedSource(context, vocabulary)
    print(f"converting {source.path} to {section.dtype}", flush=True)
    dtype = getattr(torch, section.dtype)
    context.progress(1, 4, "steps")
    expected = source.logits(dtype)

    temporary = run.pretrained.with_name(f".{run.pretrained.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_folder(temporary, *source.model(), vocabulary, dtype, run.huggingface_tokenizer)
        context.progress(2, 4, "steps")

        model = AutoModelForCausalLM.from_pretrained(temporary, dtype=torch.float32).eval()
        gate = compare_logits(model, source.tokens, expected, section.tolerance)
        context.progress(3, 4, "steps")
        val_loss, more = source.check_loss(model)
        parameters = sum(weight.numel() for weight in model.parameters())
        replace_folder(temporary, run.pretrained)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    context.progress(4, 4, "steps")
    print(f"wrote {run.pretrained}: {parameters:,} parameters", flush=True)
    return Outcome(
        {"model": str(run.pretrained)},
        {
            "step": source.step,
            "parameters": parameters,
            "logits_difference": gate,
            "val_loss": val_loss,
            "perplexity": math.exp(val_loss),
            **more,
        },
    )


class EmbeddedSource:
    """A checkpoint of this tool's own trainer."""

    def __init__(self, context: StageContext, vocabulary: Vocabulary) -> None:
        run = context.run
        self._context, self._vocabulary = context, vocabulary
        checkpoint = find_checkpoint(context)
        self.path, self.step = checkpoint.path, checkpoint.step
        self._trainer: dict[str, Any] = read_json(self.path / TRAINER_FILE)
        if vocabulary.document() != self._trainer["vocabulary"]:
            raise StageError(
                f"{self.path} was trained with a tokenizer of {self._trainer['vocabulary']['size']} pieces; the one in "
                f"{run.huggingface_tokenizer} has {vocabulary.size} or other special ids",
                "convert the checkpoint in the run that trained it, or use that run's tokenizer (tokenizer.model)",
            )
        _, self._valid = open_sequences(
            run.data_prefix, self._trainer["split"], self._trainer["sequence_length"], vocabulary.size
        )
        self.tokens = torch.from_numpy(self._valid.read(np.zeros(1, dtype=np.int64)))[:, :-1]

    def logits(self, dtype: torch.dtype) -> Tensor:
        return checkpoint_logits(self.path, dtype, self.tokens, self._vocabulary.size)

    def model(self) -> tuple[PretrainedConfig, dict[str, Tensor]]:
        config: PretrainedConfig = AutoConfig.from_pretrained(self.path)
        weights = load_file(self.path / MODEL_FILE)
        for name, weight in weights.items():
            if (
                name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight"))
                and len(weight) == config.vocab_size
            ):
                weights[name] = weight[: self._vocabulary.size]
        return config, weights

    def check_loss(self, model: PreTrainedModel) -> tuple[float, dict[str, Any]]:
        comparable = self._trainer["val_step"] == self.step
        if not comparable:
            self._context.warn(
                f"the trainer validated last at step {self._trainer['val_step']}, this checkpoint is of step {self.step}: "
                "its validation loss is reported but there is nothing to compare it with"
            )
        loss, sequences = check_validation_loss(model, self._valid, self._trainer, comparable)
        return loss, {"val_sequences": sequences}


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
    """Logits [1, T, vocab_size] of the checkpoint in the training model, fp32 arithmetic on weights rounded to `dtype`."""
    model = load_model(AutoConfig.from_pretrained(folder), folder / MODEL_FILE, dtype)
    return logits_of(model, tokens)[..., :vocab_size].clone()


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
