"""Step 2, second half: pretraining. The batch, step, memory and time arithmetic is here; the work is in core/train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from core.errors import InputError
from core.facts import Facts
from core.model import NAMED_SIZES, PositiveInt
from core.runs.directory import RunDirectory
from core.section import Section
from core.stages.base import Stage, StagePlan
from core.stages.command import ON_CPU, SECRETS_BY_NEED, stage_env, training_argv

if TYPE_CHECKING:
    from core.preset import Preset

Precision = Literal["auto", "fp32", "bf16", "fp16"]
LOWEST_LR = 1.0e-6
"""Where the learning rate ends, for every named size."""


class PretrainSection(Section):
    """How the model is pretrained."""

    backend: Literal["embedded", "megatron"] = "embedded"
    """embedded: transformers' model code on PyTorch, DeepSpeed ZeRO on several processes; megatron: the checkout that megatron.checkout names."""
    steps: PositiveInt | None = None
    """Optimizer steps; give this or `tokens`."""
    tokens: PositiveInt | None = None
    """Tokens to train on, rounded up to whole steps; give this or `steps`."""
    global_batch: PositiveInt | None = None
    """Sequences in one optimizer step, over all processes, rounded up to whole micro-batches; that of model.size when empty, or 256."""
    micro_batch: PositiveInt = 1
    """Sequences that one process takes through the model at once."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; that of model.size when empty, or 6e-4."""
    min_lr: Annotated[float, Field(ge=0)] | None = None
    """Learning rate at the end of the schedule; 1e-6 when empty."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: cosine down to min_lr, or wsd (stable at lr, then linear down to min_lr over decay_share)."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warm-up; give this or `warmup_tokens` (neither: 1 % of the run)."""
    warmup_tokens: Annotated[int, Field(ge=0)] | None = None
    """Tokens of linear warm-up."""
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the run over which wsd decays."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's weight decay on matrices; biases, norms and one-dimensional weights have none."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's second moment."""
    adam_eps: Annotated[float, Field(gt=0)] = 1.0e-8
    """AdamW's epsilon."""
    clip_grad: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 turns clipping off."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPUs where there are any."""
    precision: Precision = "auto"
    """auto: bf16 with fp32 master weights on a GPU, fp32 on a CPU. fp16, with a loss scale, is for the megatron backend."""
    zero: Literal["auto", 0, 1, 2, 3] = "auto"
    """DeepSpeed ZeRO stage on several processes; auto takes the lowest that fits, from 1 on. One process uses plain PyTorch."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto turns it on for a GPU. The first step then takes minutes."""
    valid_interval: PositiveInt = 100
    """Steps between two validations; the start and the end are always validated."""
    valid_batches: PositiveInt = 20
    """Micro-batches in one validation; the same ones every time."""
    save_interval: PositiveInt = 1000
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    """Checkpoints kept; older ones are removed after a newer one was verified."""
    log_interval: PositiveInt = 1
    """Steps between two metric records."""
    stated_tokens_per_s: Annotated[float, Field(gt=0)] | None = None
    """Tokens per second of all processes together, from a run like this one; the plan's time estimate rests on it."""
    allow_short_documents: bool = False
    """Whether to train though no document is as long as model.sequence_length (every sequence then spans documents)."""

    @model_validator(mode="after")
    def _one_of_each(self) -> PretrainSection:
        if self.steps is not None and self.tokens is not None:
            raise ValueError("give pretrain.steps or pretrain.tokens, not both")
        if self.warmup_steps is not None and self.warmup_tokens is not None:
            raise ValueError("give pretrain.warmup_steps or pretrain.warmup_tokens, not both")
        lowest = LOWEST_LR if self.min_lr is None else self.min_lr
        if self.lr is not None and lowest > self.lr:
            raise ValueError(f"min_lr {lowest:g} is above lr {self.lr:g}")
        if self.precision == "fp16" and self.backend != "megatron":
            raise ValueError(
                "precision fp16 needs a loss scale, which only the megatron backend has; set pretrain.precision to bf16, "
                "or pretrain.backend to megatron"
            )
        return self


@dataclass(frozen=True)
class BatchAndRates:
    """What goes with a model's size: sequences in a step, and the learning rate at its highest and at the end."""

    global_batch: int
    lr: float
    min_lr: float


def batch_and_rates(preset: Preset) -> BatchAndRates:
    """As the preset gives them; what it leaves empty is the named size's (256, 6e-4 and 1e-6 without a size)."""
    section, row = preset.pretrain, NAMED_SIZES[preset.model.size or "125M"]
    return BatchAndRates(
        global_batch=section.global_batch or row[3],
        lr=row[4] if section.lr is None else section.lr,
        min_lr=row[5] if section.min_lr is None else section.min_lr,
    )


@dataclass(frozen=True)
class Batch:
    """The batch arithmetic of one optimizer step: sequences = micro x accumulation x data-parallel processes."""

    micro: int
    accumulation: int
    data_parallel: int
    sequence_length: int
    requested: int

    @property
    def sequences(self) -> int:
        return self.micro * self.accumulation * self.data_parallel

    @property
    def tokens(self) -> int:
        return self.sequences * self.sequence_length


def batch(preset: Preset, processes: int) -> Batch:
    """The batch that will be used: the requested one, rounded up to whole micro-batches on every process."""
    micro, asked = preset.pretrain.micro_batch, batch_and_rates(preset).global_batch
    accumulation = -(-asked // (micro * processes))
    return Batch(micro, accumulation, processes, preset.model.sequence_length, asked)


def total_steps(section: PretrainSection, tokens_per_step: int) -> int:
    """Optimizer steps of the run: as given, or enough for `tokens`; the original's 300 billion tokens where neither is."""
    if section.steps is not None:
        return section.steps
    return -(-(section.tokens or 300_000_000_000) // tokens_per_step)


def warmup_steps(section: PretrainSection, steps: int, tokens_per_step: int) -> int:
    """Steps of warm-up, at most the run's own length."""
    if section.warmup_steps is not None:
        return min(section.warmup_steps, steps)
    if section.warmup_tokens is not None:
        return min(-(-section.warmup_tokens // tokens_per_step), steps)
    return max(1, steps // 100)


def padded_vocab(preset: Preset) -> int:
    """Rows of the embedding while training. With an existing tokenizer its own size is read when the stage runs."""
    multiple = preset.model.pad_vocab_to
    return -(-preset.tokenizer.vocab_size // multiple) * multiple


def resolve_precision(section: PretrainSection, facts: Facts) -> str:
    """fp32 or bf16: what `auto` becomes on this machine."""
    if section.precision != "auto":
        return section.precision
    return "bf16" if facts.gpus and section.device != "cpu" else "fp32"


def resolve_device(section: PretrainSection, facts: Facts) -> str:
    """cpu or cuda: what `auto` becomes on this machine. A GPU that was asked for stays asked for where there is none."""
    if section.device != "auto":
        return section.device
    return "cuda" if facts.gpus else "cpu"


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU (or of one process), estimated."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(preset: Preset, processes: int, precision: str, zero: int) -> Memory:
    """Memory of one process: states by ZeRO's own accounting (Rajbhandari et al. 2020, section 3), activations estimated.

    Plain PyTorch (zero 0) keeps fp32 weights and gradients and two fp32 moments: 16 bytes a parameter; in bf16 the copies
    that autocast makes live only inside a layer. DeepSpeed bf16 keeps bf16 weights and gradients, and fp32 weights and
    moments in the optimizer. Activations: Korthikanti et al. 2022, equation 2 without the attention matrix, which
    neither flash nor PyTorch's fused attention stores; plus the fp32 logits, their gradient and their log-softmax.
    """
    shape = preset.model.shape()
    n = shape.parameters(padded_vocab(preset))
    width = 2 if precision == "bf16" else 4
    if zero == 0:
        weights, gradients, optimizer = 4 * n, 4 * n, 8 * n
    else:
        weights, gradients = width * n, width * n
        optimizer = (12 if width == 2 else 8) * n
    optimizer //= processes if zero >= 1 else 1
    gradients //= processes if zero >= 2 else 1
    weights //= processes if zero >= 3 else 1
    tokens = preset.pretrain.micro_batch * shape.sequence_length
    per_layer = (2 if preset.pretrain.gradient_checkpointing else 34) * tokens * shape.hidden_size * width // 2
    logits = 3 * 4 * tokens * padded_vocab(preset)
    return Memory(weights, gradients, optimizer, shape.layers * per_layer + logits)


def choose_zero(preset: Preset, facts: Facts, processes: int, precision: str) -> int:
    """The ZeRO stage: 0 (plain PyTorch) on one process; else as given, or the lowest from 1 on that fits the GPU."""
    if processes == 1:
        return 0
    asked = preset.pretrain.zero
    if asked == 0:
        raise InputError(
            f"pretrain.zero is 0 with {processes} processes; DeepSpeed shares the work out from stage 1 on",
            "set pretrain.zero to 1, 2, 3 or auto",
        )
    if asked != "auto":
        return asked
    if not facts.gpus:
        return 1
    room = 0.9 * min(gpu.memory for gpu in facts.gpus)
    stages = (1, 2, 3)
    return next((z for z in stages if estimate_memory(preset, processes, precision, z).total <= room), 3)


def plan(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
    if preset.pretrain.backend == "megatron":
        from core.megatron.plan import plan_megatron

        return plan_megatron(preset, facts, run)
    section, shape, rates = preset.pretrain, preset.model.shape(), batch_and_rates(preset)
    on_node = preset.cluster.process_count(facts, section.device)
    processes = on_node * max(1, len(facts.nodes))
    sizes = batch(preset, processes)
    steps = total_steps(section, sizes.tokens)
    precision = resolve_precision(section, facts)
    zero = choose_zero(preset, facts, processes, precision)
    vocab = padded_vocab(preset)
    memory = estimate_memory(preset, processes, precision, zero)
    parameters = shape.parameters(vocab)
    checkpoint = parameters * 12  # fp32 weights and two fp32 moments
    disk = checkpoint * (section.keep_checkpoints + 1)  # one more while the newest is being written
    seconds = steps * sizes.tokens / section.stated_tokens_per_s if section.stated_tokens_per_s else None
    device = resolve_device(section, facts)
    device_memory = facts.memory_for(device, on_node)
    adjusted = sizes.sequences != sizes.requested
    return StagePlan(
        id=STAGE.id,
        argv=training_argv(run, STAGE.id, facts, on_node, len(facts.nodes)),
        env=stage_env(run, preset.cluster.thread_count(facts, on_node), online=preset.wandb.mode == "online")
        | (ON_CPU if section.device == "cpu" or not facts.gpus else {})
        | preset.cluster.variables(),
        cwd=str(run.root),
        nodes=list(facts.nodes) or [facts.host],
        launcher=facts.launcher,
        inputs={
            "bin": [f"{run.data_prefix}.bin"],
            "idx": [f"{run.data_prefix}.idx"],
            "tokenizer": [str(run.huggingface_tokenizer)],
        },
        outputs={"checkpoints": str(run.checkpoints)},
        derived={
            "parameters": parameters,
            "parameters_without_embeddings": shape.non_embedding_parameters(),
            "flops_per_token": shape.flops_per_token(vocab),
            "padded_vocab": vocab,
            "processes": processes,
            "processes_on_node": on_node,
            "device": device,
            "engine": "PyTorch" if zero == 0 else f"DeepSpeed ZeRO-{zero}",
            "zero": zero,
            "precision": precision,
            "micro_batch": sizes.micro,
            "gradient_accumulation": sizes.accumulation,
            "data_parallel": sizes.data_parallel,
            "global_batch": sizes.sequences,
            "global_batch_note": (
                f"adjusted from {sizes.requested}: {sizes.micro} x {sizes.accumulation} x {sizes.data_parallel}"
                if adjusted
                else ""
            ),
            "lr": rates.lr,
            "min_lr": rates.min_lr,
            "tokens_per_step": sizes.tokens,
            "steps": steps,
            "tokens": steps * sizes.tokens,
            "warmup_steps": warmup_steps(section, steps, sizes.tokens),
            "memory_weights": memory.weights,
            "memory_gradients": memory.gradients,
            "memory_optimizer": memory.optimizer,
            "memory_activations": memory.activations,
            "memory_total": memory.total,
            "memory_available": device_memory,
            "memory_fits": device_memory is None or memory.total <= device_memory,
            "checkpoint_bytes": checkpoint,
            "disk_needed": disk,
            "disk_free": facts.disk_free,
            "disk_fits": disk <= facts.disk_free,
            "stated_tokens_per_s": section.stated_tokens_per_s,
            "estimated_seconds": seconds,
        },
        settings={
            "model": preset.model.model_dump(),
            "pretrain": section.model_dump(exclude={"stated_tokens_per_s", "keep_checkpoints", "log_interval"})
            | {"lr": rates.lr, "min_lr": rates.min_lr},
            "split": preset.data.split,
            "global_batch": sizes.sequences,
            "seed": preset.seed,
        },
        secrets=list(SECRETS_BY_NEED["wandb"]) if preset.wandb.mode == "online" else [],
    )


STAGE = Stage("pretrain", "Pretraining", "pretrain", plan, "core.train.pretrain:pretrain")
