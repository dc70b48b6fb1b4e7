"""apex.normalization.fused_layer_norm.FusedLayerNormAffineFunction by torch's layer_norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional


class FusedLayerNormAffineFunction:
    """Called through `apply`, as a torch.autograd.Function is. Megatron reads the arguments of `forward` to know apex's version."""

    @staticmethod
    def forward(
        ctx: None,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        normalized_shape: Sequence[int],
        eps: float,
        memory_efficient: bool = False,
    ) -> torch.Tensor:
        return functional.layer_norm(input.to(weight.dtype), list(normalized_shape), weight, bias, eps)

    @classmethod
    def apply(cls, *args: Any) -> torch.Tensor:
        return cls.forward(None, *args)
