"""A plain forward pass of merged Megatron weights, from the formulae: what a converted folder is compared with.

It shares no code with transformers and none with the conversion, and does all arithmetic in fp32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from core.megatron.layers import Architecture, MegatronCheckpoint


@torch.no_grad()
def logits(checkpoint: MegatronCheckpoint, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits [B, T, rows] in fp32 for token ids [B, T], the padding of the vocabulary included; weights are rounded to `dtype`."""
    architecture = checkpoint.architecture

    def weight(name: str) -> Tensor:
        return checkpoint.weights[name].to(dtype).float()

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, weight(f"{name}.weight"), weight(f"{name}.bias") if architecture.biases else None)

    def norm(name: str, x: Tensor) -> Tensor:
        if architecture.normalization == "layernorm":
            mean = x.mean(-1, keepdim=True)
            variance = (x - mean).square().mean(-1, keepdim=True)
            return (x - mean) / (variance + architecture.eps).sqrt() * weight(f"{name}.weight") + weight(f"{name}.bias")
        return x / (x.square().mean(-1, keepdim=True) + architecture.eps).sqrt() * weight(f"{name}.weight")

    length = tokens.shape[1]
    x = weight("word_embeddings.weight")[tokens]
    if not architecture.rotary_dim:
        x = x + weight("position_embeddings.weight")[:length]
    for number in range(architecture.layers):
        layer = f"layers.{number}"
        mixed = linear(f"{layer}.self_attention.query_key_value", norm(f"{layer}.input_layernorm", x))
        attended = attention(architecture, mixed)
        x = x + linear(f"{layer}.self_attention.dense", attended)
        wide = linear(f"{layer}.mlp.dense_h_to_4h", norm(f"{layer}.post_attention_layernorm", x))
        x = x + linear(f"{layer}.mlp.dense_4h_to_h", activate(architecture, wide))
    head = "word_embeddings.weight" if architecture.tied else "lm_head.weight"
    return norm("final_layernorm", x) @ weight(head).T


def attention(architecture: Architecture, mixed: Tensor) -> Tensor:
    """Causal attention; `mixed` [B, T, ...] holds for each key/value head its query heads, its key and its value."""
    batch, length, _ = mixed.shape
    grouped = mixed.view(batch, length, architecture.kv_heads, architecture.groups + 2, architecture.head_dim)
    grouped = grouped.permute(0, 2, 3, 1, 4)  # [B, kv heads, groups + 2, T, head_dim]
    query, key, value = grouped[:, :, :-2], grouped[:, :, -2:-1], grouped[:, :, -1:]
    if architecture.rotary_dim:
        query, key = rotate(architecture, query), rotate(architecture, key)
    scores = query @ key.transpose(-1, -2) / math.sqrt(architecture.head_dim)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(-1)
    return (weights @ value).permute(0, 3, 1, 2, 4).reshape(batch, length, -1)


def rotate(architecture: Architecture, x: Tensor) -> Tensor:
    """Rotary positions over the first `rotary_dim` of the last dimension, whose halves are the two coordinates (RoFormer, eq. 34)."""
    half = architecture.rotary_dim // 2
    frequencies = architecture.rope_theta ** (-torch.arange(half).float() / half)
    angles = torch.arange(x.shape[-2]).float()[:, None] * frequencies
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def activate(architecture: Architecture, x: Tensor) -> Tensor:
    """The feed-forward layer's activation, of x [..., ffn], or [..., 2 x ffn] for SwiGLU."""
    if architecture.activation == "swiglu":
        gate, up = x.chunk(2, dim=-1)
        return gate * gate.sigmoid() * up
    if architecture.activation == "gelu_tanh":
        return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())
    if architecture.activation == "gelu":
        return 0.5 * x * (1 + (x / math.sqrt(2)).erf())
    return x.relu().square()
