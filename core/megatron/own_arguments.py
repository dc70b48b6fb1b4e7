"""The arguments of pretrain_gpt.py that no script of the original has: other models, other precisions, machines without CUDA kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.preset import Preset

DROPOUT = 0.1
VOCAB_MULTIPLE = 128
NORM_EPS = 1e-5
ADAM_EPS = 1e-8
"""Defaults of the checkout's megatron/arguments.py. What equals them is not said, as in the original."""


def own_arguments(preset: Preset, precision: str, on_cpu: bool) -> list[str]:
    """In the order in which they stand on the command line."""
    section, megatron, model = preset.pretrain, preset.megatron, preset.model
    words = model_arguments(preset)
    if precision == "bf16":
        words.append("--bf16")
    if on_cpu or not megatron.fused_kernels:
        words += ["--no-masked-softmax-fusion", "--no-gradient-accumulation-fusion"]
    if section.adam_eps != ADAM_EPS:
        words += ["--adam-eps", str(section.adam_eps)]
    if model.norm_eps != NORM_EPS:
        words += ["--layernorm-epsilon", str(model.norm_eps)]
    if model.pad_vocab_to != VOCAB_MULTIPLE:
        words += ["--make-vocab-size-divisible-by", str(model.pad_vocab_to)]
    if not megatron.strict_original:
        words.append("--exit-signal-handler")
    return [*words, *megatron.extra_args]


def model_arguments(preset: Preset) -> list[str]:
    """GPT is Megatron's default. Llama: as the upstream example pretrain_llama2_distributed.sh has it."""
    model, shape = preset.model, preset.model.shape()
    if model.family == "gpt2":
        words = []
        if model.dropout != DROPOUT:
            words += ["--attention-dropout", str(model.dropout), "--hidden-dropout", str(model.dropout)]
        if shape.ffn_size != 4 * shape.hidden_size:
            words += ["--ffn-hidden-size", str(shape.ffn_size)]
        return words if shape.tied_embeddings else [*words, "--untie-embeddings-and-output-weights"]
    return [
        "--no-query-key-layer-scaling",
        "--attention-dropout", "0",
        "--hidden-dropout", "0",
        "--use-rotary-position-embeddings",
        *([] if shape.tied_embeddings else ["--untie-embeddings-and-output-weights"]),
        "--swiglu",
        "--normalization", "rmsnorm",
        "--disable-bias-linear",
        "--num-key-value-heads", str(shape.kv_heads),
        "--ffn-hidden-size", str(shape.ffn_size),
    ]  # fmt: skip
