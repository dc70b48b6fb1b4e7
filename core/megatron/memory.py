"""Memory and disk of a Megatron training, estimated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.stages.pretrain import Memory

if TYPE_CHECKING:
    from core.megatron.command import Training
    from core.preset import Preset


def estimate_memory(preset: Preset, t: Training, precision: str, rows: int) -> Memory:
    """Bytes of the process that has most: the first pipeline stage, with the embedding and most micro-batches in flight.

    16 bytes a parameter in fp16 (weights, gradients, fp32 weights, two moments), 18 in bf16, whose gradients are summed in
    fp32; ZeRO-1 shares out the optimizer's part, ZeRO-2 the gradients, ZeRO-3 the weights. Activations: Korthikanti et al.
    2022, equations 2 and 4; `rows` are the embedding's.
    """
    shape = preset.model.shape()
    data_parallel = t.processes // (t.tensor_parallel * t.pipeline_parallel)
    layers = shape.non_embedding_parameters() // t.pipeline_parallel
    n = (layers + shape.parameters(rows) - shape.non_embedding_parameters()) // t.tensor_parallel
    weights, gradients, optimizer = {"fp16": (2, 2, 12), "bf16": (2, 4, 12), "fp32": (4, 4, 8)}[precision]
    shared = data_parallel if t.zero >= 1 else 1
    width = 4 if precision == "fp32" else 2
    tokens = t.micro_batch * t.sequence_length
    per_layer = tokens * shape.hidden_size * (10 + 24 / t.tensor_parallel) * width / 2
    if not t.flash_attention:
        per_layer += 5 * t.micro_batch * shape.heads * t.sequence_length**2 / t.tensor_parallel * width / 2
    if t.gradient_checkpointing:
        per_layer = tokens * shape.hidden_size * width
    accumulation = t.global_batch // (t.micro_batch * data_parallel)
    in_flight = min(t.pipeline_parallel, accumulation)
    logits = 3 * 4 * tokens * rows // t.tensor_parallel
    return Memory(
        weights=n * weights // (data_parallel if t.zero >= 3 else 1),
        gradients=n * gradients // (data_parallel if t.zero >= 2 else 1),
        optimizer=n * optimizer // shared,
        activations=int(per_layer * shape.layers / t.pipeline_parallel * in_flight) + logits,
    )


def checkpoint_bytes(parameters: int, precision: str) -> int:
    """Bytes of one checkpoint: the weights, and their fp32 copy (where they are shorter) and two moments."""
    return parameters * (12 if precision == "fp32" else 14)
