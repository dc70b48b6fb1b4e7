"""The command line of pretrain_gpt.py, as the original's scripts write it: the same arguments in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

SCRIPT_LABELS = {
    "125M": "0.125", "350M": "0.35", "760M": "0.76", "1.3B": "1.3", "2.7B": "2.7", "6.7B": "6.7", "13B": "13", "175B": "175",
}  # fmt: skip
"""How the scripts write a named size, in billions of parameters."""


@dataclass(frozen=True)
class Training:
    """Everything that the command line says, resolved; `own` are arguments that no script of the original has."""

    family: str
    """gpt or llama: the first word of the job's name."""
    size: str
    """Billions of parameters, as text."""
    layers: int
    hidden_size: int
    heads: int
    sequence_length: int
    init_std: float
    global_batch: int
    micro_batch: int
    lr: float
    min_lr: float
    decay_style: str
    tokens: int
    warmup_tokens: int
    samples: int
    weight_decay: float
    clip_grad: float
    beta1: float
    beta2: float
    seed: int
    tensor_parallel: int
    pipeline_parallel: int
    pipeline_engine: bool
    zero: int
    processes: int
    fp16: bool
    """Whether --fp16 is given."""
    flash_attention: bool
    gradient_checkpointing: bool
    log_optimizer_state: bool
    log_interval: int
    eval_interval: int
    eval_iters: int
    save_interval: int
    exit_minutes: int
    split: str
    data: tuple[str, ...]
    """The words of --data-path."""
    tokenizer: str
    output: str
    """The folder that the original calls --output_model_dir."""
    ds_config_name: str
    start_from: str
    """A checkpoint folder to load instead of the training's own; "" for none."""
    started: str
    host: str
    wandb: tuple[str, ...]
    """The words about W&B."""
    own: tuple[str, ...]

    @property
    def job_name(self) -> str:
        """The name of the folders: everything that makes one training another, but for the data."""
        tokens = billions(self.tokens)
        name = f"{self.family}_{self.size}B_tok{tokens}B_lr{rate(self.lr)}_min{rate(self.min_lr)}"
        name += f"_w{_decimal(self.warmup_tokens, 6)}M_d{tokens}B_{self.decay_style}"
        name += f"_gbs{self.global_batch}_mbs{self.micro_batch}_g{self.processes}"
        name += f"_z{self.zero}" if self.zero > 0 else ""
        name += f"_mp{self.tensor_parallel}" if self.tensor_parallel > 1 else ""
        name += f"_pp{self.pipeline_parallel}" if self.pipeline_engine else ""
        return f"{name}_seed{self.seed}_rebase"

    @property
    def checkpoints(self) -> str:
        return f"{self.output}/checkpoint/{self.job_name}"

    @property
    def tensorboard(self) -> str:
        return f"{self.output}/tensorboard/{self.job_name}_{self.host}_{self.started}"

    @property
    def ds_config_file(self) -> str:
        return f"{self.output}/deepspeed_config/{self.ds_config_name}"


def training_args(t: Training) -> list[str]:
    """The arguments of pretrain_gpt.py."""
    numbers = {
        "--adam-beta1": t.beta1,
        "--adam-beta2": t.beta2,
        "--tensor-model-parallel-size": t.tensor_parallel,
        "--init-method-std": t.init_std,
        "--lr-decay-tokens": t.tokens,
        "--lr-warmup-tokens": t.warmup_tokens,
        "--micro-batch-size": t.micro_batch,
        "--exit-duration-in-mins": t.exit_minutes,
        "--global-batch-size": t.global_batch,
        "--num-layers": t.layers,
        "--hidden-size": t.hidden_size,
        "--num-attention-heads": t.heads,
        "--seq-length": t.sequence_length,
        "--max-position-embeddings": t.sequence_length,
        "--train-tokens": t.tokens,
        "--train-samples": t.samples,
        "--lr": rate(t.lr),
        "--min-lr": rate(t.min_lr),
        "--lr-decay-style": t.decay_style,
        "--split": t.split,
        "--log-interval": t.log_interval,
        "--eval-interval": t.eval_interval,
        "--eval-iters": t.eval_iters,
        "--save-interval": t.save_interval,
        "--weight-decay": t.weight_decay,
        "--clip-grad": t.clip_grad,
        "--hysteresis": 2,
        "--num-workers": 0,
    }
    checkpointing = t.gradient_checkpointing
    return [
        "--override-opt_param-scheduler",
        *_words(numbers),
        *_flag("--fp16", t.fp16),
        *_words({"--seed": t.seed, "--load": t.start_from or t.checkpoints, "--save": t.checkpoints}),
        "--no-async-tensor-model-parallel-allreduce",
        *_flag("--use-flash-attn-v2", t.flash_attention),
        "--tensorboard-queue-size", "1",
        "--log-timers-to-tensorboard",
        "--log-batch-size-to-tensorboard",
        "--log-validation-ppl-to-tensorboard",
        "--tensorboard-dir", t.tensorboard,
        *_flag("--checkpoint-activations", checkpointing),
        *_flag("--log-optimizer-states-to-tensorboard", t.log_optimizer_state),
        "--tokenizer-type", "SentencePieceTokenizer",
        "--tokenizer-model", t.tokenizer,
        "--data-path", *t.data,
        "--data-impl", "mmap",
        "--deepspeed",
        "--deepspeed_config", t.ds_config_file,
        *_words({"--zero-stage": t.zero, "--pipeline-model-parallel-size": t.pipeline_parallel}),
        *_flag("--no-pipeline-parallel", not t.pipeline_engine),
        *_flag("--deepspeed-activation-checkpointing", checkpointing),
        *t.wandb,
        *t.own,
        *_flag("--finetune", bool(t.start_from)),
    ]  # fmt: skip


def load_own(argv: Sequence[str], checkpoints: str) -> list[str]:
    """A command of `training_args` with a place to start from, for when the training has a checkpoint of its own."""
    words = list(argv)
    if words[-1] == "--finetune":
        words.pop()
        words[words.index("--load") + 1] = checkpoints
    return words


def wandb_words(family: str, size: str, host: str, started: str, entity: str, project: str, tag: str) -> list[str]:
    """The original's words about W&B; its options have underscores."""
    group = f"pretrain_{family}_{size}B_{host}_{started}"
    words = ["--use_wandb", *_words({"--wandb_entity": entity} if entity else {})]
    return [*words, "--wandb_project", project, "--wandb_group", group, *(["--wandb_tag", tag] if tag else [])]


def _words(options: dict[str, object]) -> list[str]:
    return [str(word) for option in options.items() for word in option]


def _flag(name: str, given: bool) -> list[str]:
    return [name] if given else []


def rate(value: float) -> str:
    """A learning rate as the scripts write it: 6.0e-4. It is part of the names of folders."""
    if value == 6e-5:
        return "0.6e-4"  # how all scripts write that of 175B
    if value == 0:
        return "0.0"
    digits, exponent = f"{Decimal(repr(value)):e}".split("e")
    return f"{digits if '.' in digits else f'{digits}.0'}e{int(exponent)}"


def billions(count: int) -> str:
    """`count` in billions, without an exponent: 300, 0.01."""
    return _decimal(count, 9)


def _decimal(count: int, power: int) -> str:
    text = f"{Decimal(count).scaleb(-power):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
