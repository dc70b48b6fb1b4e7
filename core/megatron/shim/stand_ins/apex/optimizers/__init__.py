"""apex.optimizers by torch's. They are functions, because DeepSpeed compares the exact type of an optimizer: it must be torch's own."""

from __future__ import annotations

from typing import Any

import torch


def FusedAdam(  # noqa: N802  apex's name
    params: Any,
    lr: float = 1e-3,
    bias_correction: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    adam_w_mode: bool = True,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """AdamW, as apex's in its default mode: the weight decay is not part of the gradient."""
    if not (bias_correction and adam_w_mode):
        raise ValueError("the stand-in for apex is AdamW with bias correction only")
    return torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def FusedSGD(  # noqa: N802  apex's name
    params: Any,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov
    )
