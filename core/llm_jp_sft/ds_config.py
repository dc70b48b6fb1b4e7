"""DeepSpeed's configuration for train.py: ds_config_zero2.json and ds_config_zero3.json of the original, the same on all its clusters."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]

_OFFLOAD = {"device": "cpu", "pin_memory": True}
_ZERO: dict[int, Document] = {
    2: {
        "stage": 2,
        "offload_optimizer": _OFFLOAD,
        "allgather_partitions": True,
        "allgather_bucket_size": 2e8,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 2e8,
        "contiguous_gradients": True,
    },
    3: {
        "stage": 3,
        "offload_optimizer": _OFFLOAD,
        "offload_param": _OFFLOAD,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}
_SCHEDULER: Document = {
    "type": "WarmupLR",
    "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
}


def ds_config(zero: int, scheduler: bool) -> Document:
    """The document for ZeRO stage 2 or 3; "auto" is filled in by transformers.

    With `scheduler` it has the original's "scheduler": transformers then makes none of its own, so that --lr_scheduler_type is ignored
    and the learning rate stays at its peak after the warm-up (transformers 4.36, integrations/deepspeed.py, deepspeed_optim_sched).
    """
    return {
        "fp16": {
            "enabled": "auto",
            "loss_scale": 0,
            "loss_scale_window": 1000,
            "initial_scale_power": 16,
            "hysteresis": 2,
            "min_loss_scale": 1,
        },
        "bf16": {"enabled": "auto"},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        **({"scheduler": _SCHEDULER} if scheduler else {}),
        "zero_optimization": _ZERO[zero],
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "steps_per_print": 10,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }


def ds_config_name(zero: int) -> str:
    """The file's name in the original."""
    return f"ds_config_zero{zero}.json"
