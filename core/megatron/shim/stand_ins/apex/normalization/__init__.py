"""apex.normalization: the RMSNorm that Megatron's Llama flags use."""

from __future__ import annotations

import torch

from .fused_layer_norm import FusedLayerNormAffineFunction


class MixedFusedRMSNorm(torch.nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the mean in float32; the result has the weight's dtype, as apex's "mixed" one."""

    def __init__(self, normalized_shape: int | tuple[int, ...], eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(normalized_shape))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        wide = input.float()
        over = tuple(range(-self.weight.dim(), 0))
        wide = wide * torch.rsqrt(wide.pow(2).mean(over, keepdim=True) + self.eps)
        return (wide * self.weight.float()).to(self.weight.dtype)


__all__ = ["FusedLayerNormAffineFunction", "MixedFusedRMSNorm"]
