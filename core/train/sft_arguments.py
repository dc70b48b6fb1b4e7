"""The preset's fine-tuning section in the words of trl, DeepSpeed and peft."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from peft import LoraConfig
from trl import SFTConfig

from core.stages.base import StageContext
from core.stages.finetune import FinetuneSection

LORA_TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def total_steps(section: FinetuneSection, examples: int, processes: int) -> int:
    """Optimizer steps of the run; the last one of an epoch may be smaller than the others."""
    if section.steps:
        return section.steps
    batches = math.ceil(examples / (section.micro_batch * processes))
    return max(1, math.ceil(section.epochs * math.ceil(batches / section.gradient_accumulation)))


def training_arguments(context: StageContext, folder: Path, steps: int) -> SFTConfig:
    """Everything that the trainer has to know. With several processes this also starts their process group."""
    section, derived = context.preset.finetune, context.plan["derived"]
    precision, on_cpu = derived["precision"], derived["device"] == "cpu"
    deepspeed_config = None
    if section.zero and derived["processes"] > 1:
        import deepspeed

        # With use_cpu the trainer makes the process group too late: ZeRO-3's zero.Init would see a world of one.
        deepspeed.init_distributed()
        deepspeed_config = zero_config(section.zero, precision)
    return SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=section.micro_batch,
        per_device_eval_batch_size=section.micro_batch,
        gradient_accumulation_steps=section.gradient_accumulation,
        learning_rate=section.lr,
        warmup_steps=round(section.warmup_share * steps),
        lr_scheduler_type=section.schedule,
        weight_decay=section.weight_decay,
        optim="adamw_torch",
        bf16=precision == "bf16",
        use_cpu=on_cpu,
        gradient_checkpointing=section.gradient_checkpointing,
        deepspeed=deepspeed_config,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not on_cpu,
        seed=context.preset.seed,
        logging_steps=section.log_interval,
        logging_nan_inf_filter=False,  # it would show the mean of earlier losses instead of a NaN
        save_strategy="steps",
        save_steps=section.save_interval,
        max_length=None,  # our examples are cut, and counted, already
        disable_tqdm=True,
        report_to="none",  # W&B gets our records, by our names
    )


def zero_config(stage: int, precision: str) -> dict[str, Any]:
    """DeepSpeed's config. No optimizer in it: the trainer brings torch's AdamW, and no kernel has to be built."""
    return {
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def lora_config(section: FinetuneSection, family: str) -> LoraConfig:
    """Adapters on every linear layer but the output projection, which trl multiplies by directly."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=section.lora_rank,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=LORA_TARGETS.get(family, "all-linear"),
        fan_in_fan_out=family == "gpt2",  # its Conv1D keeps weights transposed
    )
