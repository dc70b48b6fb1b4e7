"""Checkpoints as Megatron-DeepSpeed saves them, with random weights, and what such a model computes, rank by rank.

Nothing here uses the reader: every tensor-parallel rank's weights are drawn as its own, the files are laid out from the
description in the docstrings of megatron's pretrain_gpt, and the forward pass works on the split weights and sums over the
ranks, as the ranks themselves do.
"""

from __future__ import annotations

import argparse
import enum
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


class ModelType(enum.Enum):
    encoder_or_decoder = 1


ModelType.__module__ = "megatron.core.enums"


@dataclass
class WrittenModel:
    """A model over tensor-parallel ranks; `ranks[r]` holds rank r's part of each weight, by layer number and name."""

    llama: bool
    hidden: int = 32
    heads: int = 8
    kv_heads: int = 4
    ffn: int = 24
    layers: int = 2
    rows: int = 384
    positions: int = 24
    tied: bool = False
    biases: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    ranks: list[dict[tuple[int, str], Tensor]] = field(default_factory=list)

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def make_model(llama: bool, tensor_parallel: int = 1, seed: int = 0, **changes: Any) -> WrittenModel:
    """A random model; weights are large enough that every part of the model matters to its logits."""
    tied = {"tied": not llama, "biases": not llama}
    gpt = {} if llama else {"kv_heads": 8, "ffn": 48}
    model = WrittenModel(llama, **{**tied, **gpt, **changes})
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    h, share = model.hidden, tensor_parallel
    qkv = (model.heads + 2 * model.kv_heads) * model.head_dim
    norms: dict[tuple[int, str], Tensor] = {}
    for number in range(model.layers):
        for place in ("input_layernorm", "post_attention_layernorm"):
            norms[number, f"{place}.weight"] = 1 + draw(h)
            if not llama:
                norms[number, f"{place}.bias"] = draw(h)
        if model.biases:
            norms[number, "self_attention.dense.bias"], norms[number, "mlp.dense_4h_to_h.bias"] = draw(h), draw(h)
    norms[model.layers, "weight"] = 1 + draw(h)
    if not llama:
        norms[model.layers, "bias"] = draw(h)
        norms[-1, "position_embeddings.weight"] = draw(model.positions, h)
    for _ in range(tensor_parallel):
        own = dict(norms)
        own[-1, "word_embeddings.weight"] = draw(model.rows // share, h)
        for number in range(model.layers):
            up = (2 if llama else 1) * model.ffn // share
            own[number, "self_attention.query_key_value.weight"] = draw(qkv // share, h)
            own[number, "self_attention.dense.weight"] = draw(h, h // share)
            own[number, "mlp.dense_h_to_4h.weight"] = draw(up, h)
            own[number, "mlp.dense_4h_to_h.weight"] = draw(h, model.ffn // share)
            if model.biases:
                own[number, "self_attention.query_key_value.bias"] = draw(qkv // share)
                own[number, "mlp.dense_h_to_4h.bias"] = draw(up)
        if not model.tied:
            own[model.layers + 1, "lm_head.weight"] = draw(model.rows // share, h)
        model.ranks.append(own)
    return model


def forward(model: WrittenModel, tokens: Tensor, gelu: str = "tanh") -> Tensor:
    """Logits [B, T, rows], computed with every rank's own weights."""
    ranks = model.ranks

    def norm(x: Tensor, number: int, prefix: str) -> Tensor:
        weight = ranks[0][number, f"{prefix}weight"]
        if model.llama:
            return functional.rms_norm(x, x.shape[-1:], weight, 1e-5)
        return functional.layer_norm(x, x.shape[-1:], weight, ranks[0][number, f"{prefix}bias"], 1e-5)

    def embed(rank: int) -> Tensor:
        table = ranks[rank][-1, "word_embeddings.weight"]
        local = tokens - rank * len(table)
        mine = (local >= 0) & (local < len(table))
        return table[local.clamp(0, len(table) - 1)] * mine[..., None]

    x = torch.stack([embed(rank) for rank in range(len(ranks))]).sum(0)
    if not model.llama:
        x = x + ranks[0][-1, "position_embeddings.weight"][: tokens.shape[1]]
    for number in range(model.layers):
        normed = norm(x, number, "input_layernorm.")
        x = x + sum(_attention(model, own, number, normed) for own in ranks)
        if model.biases:
            x = x + ranks[0][number, "self_attention.dense.bias"]
        normed = norm(x, number, "post_attention_layernorm.")
        for own in ranks:
            wide = normed @ own[number, "mlp.dense_h_to_4h.weight"].T
            if model.biases:
                wide = wide + own[number, "mlp.dense_h_to_4h.bias"]
            if model.llama:
                half = wide.shape[-1] // 2
                wide = functional.silu(wide[..., :half]) * wide[..., half:]
            else:
                wide = functional.gelu(wide, approximate=gelu)
            x = x + wide @ own[number, "mlp.dense_4h_to_h.weight"].T
        if model.biases:
            x = x + ranks[0][number, "mlp.dense_4h_to_h.bias"]
    final = norm(x, model.layers, "")
    head = (-1, "word_embeddings.weight") if model.tied else (model.layers + 1, "lm_head.weight")
    return torch.cat([final @ own[head].T for own in ranks], dim=-1)


def _attention(model: WrittenModel, own: dict[tuple[int, str], Tensor], number: int, x: Tensor) -> Tensor:
    """One rank's part of the attention's output, before the bias; one head at a time."""
    mixed = x @ own[number, "self_attention.query_key_value.weight"].T
    if model.biases:
        mixed = mixed + own[number, "self_attention.query_key_value.bias"]
    queries = model.heads // model.kv_heads
    heads = mixed.split(model.head_dim, dim=-1)  # query ... query key value, for each key/value head
    outputs = []
    for first in range(0, len(heads), queries + 2):
        key, value = heads[first + queries], heads[first + queries + 1]
        for query in heads[first : first + queries]:
            if model.llama:
                query, turned = _rotate(query), _rotate(key)
            else:
                turned = key
            outputs.append(functional.scaled_dot_product_attention(query, turned, value, is_causal=True))
    return torch.cat(outputs, dim=-1) @ own[number, "self_attention.dense.weight"].T


def _rotate(x: Tensor) -> Tensor:
    """Rotary positions as complex numbers: element i of the first half and of the second half are one of them."""
    half = x.shape[-1] // 2
    numbers = torch.complex(x[..., :half], x[..., half:])
    angles = torch.outer(torch.arange(x.shape[-2]).float(), 10000.0 ** (-2 * torch.arange(half).float() / x.shape[-1]))
    turned = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def arguments_of(model: WrittenModel, pipeline_parallel: int = 1, **changes: Any) -> dict[str, Any]:
    """Megatron's arguments, as far as anything could want to read them."""
    return {
        "num_layers": model.layers,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "kv_channels": model.head_dim,
        "ffn_hidden_size": model.ffn,
        "padded_vocab_size": model.rows,
        "make_vocab_size_divisible_by": 128 // len(model.ranks),
        "max_position_embeddings": model.positions,
        "seq_length": model.positions,
        "layernorm_epsilon": 1e-5,
        "normalization": "rmsnorm" if model.llama else "layernorm",
        "swiglu": model.llama,
        "bias_gelu_fusion": not model.llama,
        "openai_gelu": False,
        "onnx_safe": None,
        "squared_relu": False,
        "use_rotary_position_embeddings": model.llama,
        "rotary_percent": 1.0,
        "add_bias_linear": model.biases,
        "add_position_embedding": not model.llama,
        "untie_embeddings_and_output_weights": not model.tied,
        "apply_layernorm_1p": False,
        "apply_residual_connection_post_layernorm": False,
        "num_experts": [1],
        "tensor_model_parallel_size": len(model.ranks),
        "pipeline_model_parallel_size": pipeline_parallel,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "init_method_std": 0.02,
        "zero_stage": 0,
        "fp16": False,
        "bf16": False,
        "params_dtype": torch.float32,
        "model_type": ModelType.encoder_or_decoder,
        "attn_mask": torch.ones(1, 1, model.positions, model.positions).triu(1).bool(),
        "deepspeed_config_dict": {"zero_optimization": {"stage": 0}},
        **model.arguments,
        **changes,
    }


def write_checkpoint(
    model: WrittenModel,
    folder: Path,
    step: int = 4,
    pipeline_parallel: int = 1,
    pipeline_engine: bool = True,
    vocab_size: int | None = 303,
    **arguments: Any,
) -> Path:
    """`folder`/global_stepN and the pointers; returns the global_stepN folder."""
    target = folder / f"global_step{step}"
    target.mkdir(parents=True)
    tensor_parallel = len(model.ranks)
    if pipeline_engine:
        for rank, own in enumerate(model.ranks):
            for number in range(-1, model.layers + (1 if model.tied else 2)):
                layer = {name: weight for (place, name), weight in own.items() if place == number}
                torch.save(layer, target / f"layer_{number + 2:02d}-model_{rank:02d}-model_states.pt")
    ranks = tensor_parallel * (pipeline_parallel if pipeline_engine else 1)
    namespace = argparse.Namespace(**arguments_of(model, pipeline_parallel, **arguments))
    with _megatron_importable():
        for rank in range(ranks):
            state = {
                "module": None if pipeline_engine else _module(model, model.ranks[rank]),
                "optimizer": {"base_optimizer_state": {"step": torch.tensor(4.0)}},
                "lr_scheduler": {"max_lr": 1e-3},
                "sparse_tensor_module_names": set(),
                "mp_world_size": ranks,
                "dp_world_size": 1,
                "ds_config": {"zero_optimization": {"stage": arguments.get("zero_stage", 0)}},
                "ds_version": "0.12.4",
                "args": namespace,
                "checkpoint_version": 3.0,
                "iteration": step,
                "tokens": 1024,
                "rng_state": [{"np_rng_state": np.random.RandomState(0).get_state(), "torch": torch.zeros(8)}],
            }
            if vocab_size is not None:
                state["universal_checkpoint_info"] = {"original_vocab_size": vocab_size}
            torch.save(state, target / f"mp_rank_{rank:02d}_model_states.pt")
    (folder / "latest").write_text(target.name)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    return target


def _module(model: WrittenModel, own: dict[tuple[int, str], Tensor]) -> dict[str, Any]:
    """A rank's language model as it is saved without the pipeline engine: nested dictionaries."""
    embedding = {name.split(".")[0]: {"weight": weight} for (place, name), weight in own.items() if place == -1}
    encoder = {f"layers.{place}.{name}": weight for (place, name), weight in own.items() if 0 <= place < model.layers}
    encoder |= {f"final_layernorm.{name}": weight for (place, name), weight in own.items() if place == model.layers}
    language_model: dict[str, Any] = {"embedding": embedding, "encoder": encoder}
    if not model.tied:
        language_model["output_layer"] = {"weight": own[model.layers + 1, "lm_head.weight"]}
    return {"language_model": language_model}


@contextmanager
def _megatron_importable() -> Iterator[None]:
    """While it lasts a pickle can name megatron.core.enums.ModelType, as one that Megatron writes does."""
    names = ("megatron", "megatron.core", "megatron.core.enums")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules |= {name: types.ModuleType(name) for name in names}
    sys.modules["megatron.core.enums"].ModelType = ModelType  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
