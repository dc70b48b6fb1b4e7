"""The command line of llm-jp-sft's train.py, as the original's scripts write it: the same arguments in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

DEFAULT_STEPS = 500
"""transformers' --logging_steps and --save_steps where none are given."""
DEFAULT_SEED = 42
"""transformers' --seed where none is given; no script of the original gives one."""


@dataclass(frozen=True)
class FineTuning:
    """Everything that the command line says, resolved."""

    epochs: float
    steps: int | None
    micro_batch: int
    gradient_accumulation: int
    lr: float
    warmup_share: float
    schedule: str
    weight_decay: float
    max_length: int | None
    """None where it is not given, which is 2048."""
    gradient_checkpointing: bool
    log_interval: int
    save_interval: int
    files: tuple[str, ...]
    model: str
    output: str
    instruction_template: str
    response_template: str
    ds_config_file: str
    """"" without DeepSpeed."""
    seed: int
    on_cpu: bool
    wandb: tuple[str, ...]


def training_args(t: FineTuning) -> list[str]:
    """The arguments of train.py; those that no script of the original has come last, and only where a preset asks for them."""
    return [
        "--num_train_epochs", number(t.epochs),
        "--per_device_train_batch_size", str(t.micro_batch),
        *_option("--gradient_accumulation_steps", t.gradient_accumulation, 1),
        "--learning_rate", number(t.lr),
        "--warmup_ratio", number(t.warmup_share),
        "--lr_scheduler_type", t.schedule,
        "--bf16",
        *(["--max_seq_length", str(t.max_length)] if t.max_length else []),
        *(["--gradient_checkpointing"] if t.gradient_checkpointing else []),
        *_option("--logging_steps", t.log_interval, DEFAULT_STEPS),
        "--data_files", *t.files,
        "--model_name_or_path", t.model,
        "--output_dir", t.output,
        "--use_fast", "False",
        "--instruction_template", t.instruction_template,
        "--response_template", t.response_template,
        *(["--deepspeed", t.ds_config_file] if t.ds_config_file else []),
        *t.wandb,
        *(["--max_steps", str(t.steps)] if t.steps else []),
        *(["--weight_decay", number(t.weight_decay)] if t.weight_decay else []),
        *_option("--save_steps", t.save_interval, DEFAULT_STEPS),
        *_option("--seed", t.seed, DEFAULT_SEED),
        *(["--use_cpu"] if t.on_cpu else []),
    ]  # fmt: skip


def wandb_words(
    model: str, host: str, started: str, entity: str, project: str, group: str, tags: Sequence[str]
) -> list[str]:
    """The original's words about W&B; its options have underscores. Without `group` it is the original's, of the model's name."""
    name = model.rstrip("/").rsplit("/", 1)[-1]
    words = ["--use_wandb", *(["--wandb_entity", entity] if entity else []), "--wandb_project", project]
    words += ["--wandb_group", group or f"finetune_{name}_{host}_{started}"]
    return [*words, *(word for tag in tags for word in ("--wandb_tag", tag))]


def number(value: float) -> str:
    """As the scripts write it: 2, 0.1, 1e-5."""
    text = f"{Decimal(repr(value)).normalize():f}"
    if 0 < abs(value) < 1e-3:
        digits, exponent = f"{Decimal(repr(value)).normalize():e}".split("e")
        return f"{digits}e{int(exponent)}"
    return text


def _option(name: str, value: int, default: int) -> list[str]:
    return [] if value == default else [name, str(value)]
