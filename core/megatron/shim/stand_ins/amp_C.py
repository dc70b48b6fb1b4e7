"""In place of apex's amp_C: the two operators that Megatron calls, without fusion."""

from __future__ import annotations

import torch


def multi_tensor_l2norm(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], per_tensor: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The L2 norm over all tensors of the first list, in float32: shape [1], and those of each tensor (shape [n]) or None."""
    norms = torch.stack([torch.linalg.vector_norm(tensor.float()) for tensor in tensor_lists[0]])
    return torch.linalg.vector_norm(norms).reshape(1), norms if per_tensor else None


def multi_tensor_scale(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], scale: float
) -> None:
    """Second list = first list * scale; the flag becomes 1 where a source is not finite."""
    sources, targets = tensor_lists
    for index, source in enumerate(sources):
        targets[index].copy_(source * scale)
        if not torch.isfinite(source).all():
            noop_flag.fill_(1)
