"""The numbers of one training run, as planned and adjusted to the tokenizer that was really made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from core.stages.pretrain import batch_and_rates
from core.train.schedule import Schedule
from core.train.vocabulary import Vocabulary

if TYPE_CHECKING:
    from core.preset import Preset


@dataclass(frozen=True)
class TrainSettings:
    """What loop and engines need to know; the arithmetic is core/stages/pretrain.py's, from the run's plan."""

    steps: int
    micro_batch: int
    accumulation: int
    world_size: int
    sequence_length: int
    vocab_size: int
    """Pieces of the tokenizer."""
    rows: int
    """Rows of the embedding, padding included."""
    precision: str
    """fp32 or bf16."""
    zero: int
    seed: int
    schedule: Schedule
    weight_decay: float
    beta1: float
    beta2: float
    adam_eps: float
    clip_grad: float
    gradient_checkpointing: bool
    compile: Literal["off", "model", "layers"]
    """What torch.compile takes at once: nothing, the whole model, or each layer on its own."""
    flops_per_token: int
    residual_in_fp32: bool = False
    """Whether the residual stream stays fp32 in bf16 training: more exact, and more memory traffic."""

    @property
    def engine(self) -> str:
        """Who trains, and so how the optimizer's state lies in a checkpoint; the same words as in the plan."""
        return "PyTorch" if self.world_size == 1 else f"DeepSpeed ZeRO-{self.zero}"

    @property
    def global_batch(self) -> int:
        """Sequences in one optimizer step."""
        return self.micro_batch * self.accumulation * self.world_size

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch * self.sequence_length

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def train_settings(
    preset: Preset, derived: Mapping[str, Any], vocabulary: Vocabulary, device: torch.device
) -> TrainSettings:
    """Put together the run's numbers from its preset, the plan's derived ones and the tokenizer."""
    section, shape, rates = preset.pretrain, preset.model.shape(), batch_and_rates(preset)
    rows = vocabulary.padded(preset.model.pad_vocab_to)
    return TrainSettings(
        steps=derived["steps"],
        micro_batch=derived["micro_batch"],
        accumulation=derived["gradient_accumulation"],
        world_size=derived["processes"],
        sequence_length=shape.sequence_length,
        vocab_size=vocabulary.size,
        rows=rows,
        precision=derived["precision"],
        zero=derived["zero"],
        seed=preset.seed,
        schedule=Schedule(
            kind=section.schedule,
            peak=rates.lr,
            floor=rates.min_lr,
            warmup=derived["warmup_steps"],
            total=derived["steps"],
            decay_share=section.decay_share,
        ),
        weight_decay=section.weight_decay,
        beta1=section.beta1,
        beta2=section.beta2,
        adam_eps=section.adam_eps,
        clip_grad=section.clip_grad,
        gradient_checkpointing=section.gradient_checkpointing,
        compile="model" if section.compile == "on" or (section.compile == "auto" and device.type == "cuda") else "off",
        flops_per_token=shape.flops_per_token(rows),
    )
