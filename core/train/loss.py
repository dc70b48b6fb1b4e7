"""The next-token loss, joined with the output projection and taken in chunks of tokens.

The logits are the largest tensor of a small model's training step (B x T x V in fp32, and their gradient as much again).
Here they exist for one chunk at a time: the forward pass computes a chunk's logits, its loss and, while they are at
hand, its gradients with respect to the hidden states and to the projection; nothing is recomputed in the backward pass.
The log-softmax is taken in fp32 whatever the precision of the matrix products. Rows that only pad the embedding take
no part, so the loss is the one that the converted model, without these rows, has on the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = {"cuda": 4096, "cpu": 512}
"""Tokens whose logits exist at one time: enough to fill the device, few enough for the memory (or the cache)."""

LossAndGradients = tuple[Tensor, tuple[Tensor, Tensor] | None]
"""A loss, and its gradients with respect to the hidden states [n, d] and to the projection [V, d] where they were wanted."""
ChunkFunction = Callable[[Tensor, Tensor, Tensor, int, float, bool], LossAndGradients]


def chunk_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, scale: float, with_gradients: bool
) -> LossAndGradients:
    """Summed loss of hidden [n, d] against targets [n] under weight [V, d], times `scale`; and its gradients."""
    logits = (hidden @ weight.t()).float()
    if vocab_size < weight.shape[0]:
        logits[:, vocab_size:] = -torch.inf
    log_probabilities = torch.log_softmax(logits, dim=-1)
    loss = -log_probabilities.gather(1, targets[:, None]).sum() * scale
    if not with_gradients:
        return loss, None
    # d loss / d logits = probabilities - one-hot.
    if torch.compiler.is_compiling():
        columns = torch.arange(weight.shape[0], device=hidden.device)
        gradient = (log_probabilities.exp() - (columns == targets[:, None]).float()) * scale
    else:
        gradient = log_probabilities.exp_()
        gradient[torch.arange(len(targets), device=hidden.device), targets] -= 1.0
        gradient *= scale
    gradient = gradient.to(hidden.dtype)
    return loss, (gradient @ weight, gradient.t() @ hidden)


class _ProjectedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        dtype: torch.dtype,
        chunk: ChunkFunction,
        with_gradients: bool,
    ) -> Tensor:
        tokens = len(targets)
        chunks = -(-tokens // CHUNK_TOKENS.get(hidden.device.type, CHUNK_TOKENS["cuda"]))
        states, narrow = hidden.to(dtype), weight.to(dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        by_state: list[Tensor] = []
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if with_gradients else None
        with torch.autocast(hidden.device.type, enabled=False):
            for part, wanted in zip(states.chunk(chunks), targets.chunk(chunks), strict=True):
                part_loss, gradients = chunk(part, narrow, wanted, vocab_size, 1.0 / tokens, with_gradients)
                loss += part_loss
                if gradients is not None and by_weight is not None:
                    by_state.append(gradients[0])
                    by_weight += gradients[1]
        if by_weight is not None:
            ctx.save_for_backward(torch.cat(by_state).to(hidden.dtype), by_weight.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        state_gradient, weight_gradient = ctx.saved_tensors
        (upstream,) = gradients
        return state_gradient * upstream, weight_gradient * upstream, None, None, None, None, None


def projected_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    dtype: torch.dtype | None = None,
    chunk: ChunkFunction = chunk_loss,
) -> Tensor:
    """Mean loss in nats per token (a scalar) of hidden [n, d], projected by weight [V, d], against targets [n] int64.

    Logits of the rows from `vocab_size` on are left out. `dtype` is that of the matrix products (None: hidden's own).
    `chunk` may be `torch.compile(chunk_loss)`.
    """
    # Inside a Function gradients are always off, and its inputs say only that they could have some: ask here.
    with_gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    apply: Callable[..., Tensor] = _ProjectedCrossEntropy.apply
    loss = apply(hidden, weight, targets, vocab_size, dtype or hidden.dtype, chunk, with_gradients)
    return loss


def cross_entropy(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Mean loss in nats per token of logits [n, V] against targets [n], in fp32, without the padding rows."""
    return torch.nn.functional.cross_entropy(logits[:, :vocab_size].float(), targets)
