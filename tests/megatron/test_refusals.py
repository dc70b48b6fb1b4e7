"""What the checkout fails with is refused before anything starts. (Tried with the real one: scripts/megatron_parity.py.)"""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import InputError
from core.megatron.refusals import check_settings
from core.preset import Preset


def preset(kv_heads: int, micro_batch: int, **megatron: Any) -> Preset:
    model = {"family": "llama", "layers": 2, "hidden_size": 64, "heads": 8, "kv_heads": kv_heads, "sequence_length": 64}
    return Preset.model_validate(
        {"model": model, "pretrain": {"backend": "megatron", "micro_batch": micro_batch}, "megatron": megatron}
    )


@pytest.mark.parametrize(("kv_heads", "tensor_parallel"), [(1, 1), (2, 2)])
def test_one_key_value_head_on_each_process_needs_flash_attn_or_single_sequences(
    kv_heads: int, tensor_parallel: int
) -> None:
    refused = preset(kv_heads, 2, tensor_parallel=tensor_parallel)
    with pytest.raises(InputError, match="view size is not compatible"):
        check_settings(refused, "fp32", on_cpu=True)
    without = preset(kv_heads, 2, tensor_parallel=tensor_parallel, flash_attention=False)
    with pytest.raises(InputError, match=r"micro_batch=1"):
        check_settings(without, "bf16", on_cpu=False)
    check_settings(refused, "bf16", on_cpu=False)  # flash-attn
    check_settings(preset(kv_heads, 1, tensor_parallel=tensor_parallel), "fp32", on_cpu=True)
    check_settings(preset(2 * kv_heads, 2, tensor_parallel=tensor_parallel), "fp32", on_cpu=True)
    check_settings(preset(8, 2, tensor_parallel=8), "fp32", on_cpu=True)  # no head is repeated
