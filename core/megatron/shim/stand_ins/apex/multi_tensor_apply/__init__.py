"""apex.multi_tensor_apply.multi_tensor_applier: passes lists of tensors to an operator of amp_C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class MultiTensorApply:
    available = True

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size

    def __call__(self, op: Callable[..., Any], noop_flag_buffer: Any, tensor_lists: Any, *args: Any) -> Any:
        return op(self.chunk_size, noop_flag_buffer, tensor_lists, *args)


multi_tensor_applier = MultiTensorApply(2048 * 32)
