"""Causal attention without a mask, so that the fast kernels (flash, cuDNN) are always used.

transformers builds a [batch, 1, T, T] mask whenever its code is traced by torch.compile, and with any mask PyTorch falls
back to a slow kernel: measured on an H200, a compiled model then trains slower than the same model uncompiled with
fused kernels. All our training sequences are full, so causality is all the mask would say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from core.errors import StageError

NAME = "llm_wizard_causal"


def causal_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [B, heads, T, d], key and value [B, kv_heads, T, d] -> [B, T, heads, d].

    Raises:
        ValueError: a mask was given, which would otherwise be ignored.
    """
    if attention_mask is not None:
        raise ValueError("causal_attention takes no mask; give full sequences")
    mixed = scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=dropout if module.training else 0.0,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2).contiguous(), None


# No mask function is registered under this name, so transformers builds no mask at all.
AttentionInterface.register(NAME, causal_attention)


@contextmanager
def preferred_kernels(device: torch.device) -> Iterator[None]:
    """cuDNN's attention first on Hopper and newer, where it is the fastest; PyTorch's own order elsewhere."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        yield
        return
    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    with sdpa_kernel(order, set_priority=True):
        yield


@torch.no_grad()
def check_causality(model: PreTrainedModel, vocab_size: int, length: int = 16) -> None:
    """Change the last token of a short text and see that nothing before it moves; a lost mask would look like learning.

    Raises:
        StageError: an earlier position saw a later token.
    """
    was_training = model.training
    model.eval()
    first = torch.arange(length, device=model.device)[None] % vocab_size
    second = first.clone()
    second[0, -1] = (second[0, -1] + vocab_size // 2) % vocab_size
    before, after = (model(input_ids=tokens, use_cache=False).logits[0].float() for tokens in (first, second))
    model.train(was_training)
    scale = before.abs().max().item()
    leaked = (before[:-1] - after[:-1]).abs().max().item()
    if leaked > 1e-3 * scale or torch.equal(before[-1], after[-1]):
        raise StageError(
            f"attention is not causal: a changed last token moved earlier logits by {leaked:.3g} (of {scale:.3g})",
            "this is a defect of the installed torch or transformers; run `llm-wizard doctor`",
        )
