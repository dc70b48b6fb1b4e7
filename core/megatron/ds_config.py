"""The DeepSpeed configuration of a Megatron training: the original's template with its places filled in."""

from __future__ import annotations

from typing import Any

FP16 = {
    "enabled": True,
    "loss_scale": 0,
    "loss_scale_window": 500,
    "hysteresis": 2,
    "min_loss_scale": 1,
    "initial_scale_power": 11,
}


def ds_config(
    global_batch: int, micro_batch: int, log_interval: int, zero: int, precision: str, clip_grad: float
) -> dict[str, Any]:
    """The document. `precision` is fp16 as in the original's template, or bf16 (with gradients summed in fp32), or fp32.

    Without ZeRO the gradients are divided before they are summed, as the original does.
    """
    document: dict[str, Any] = {
        "train_batch_size": global_batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "steps_per_print": log_interval,
        "zero_optimization": {"stage": zero},
        "gradient_clipping": clip_grad,
        "prescale_gradients": zero == 0,
    }
    if precision == "fp16":
        document["fp16"] = dict(FP16)
    if precision == "bf16":
        document["bf16"] = {"enabled": True}
        document["data_types"] = {"grad_accum_dtype": "fp32"}
    return document | {"wall_clock_breakdown": False}


def ds_config_name(global_batch: int, micro_batch: int, log_interval: int, zero: int) -> str:
    """The original's file name."""
    return f"ds_config_gbs{global_batch}_mbs{micro_batch}_log{log_interval}_zero{zero}.json"
