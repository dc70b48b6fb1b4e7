"""Step 4: a chat-tuned model by supervised fine-tuning with trl; the loss is on the answers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from core.facts import Facts
from core.model import PositiveInt
from core.runs.directory import RunDirectory
from core.section import FileList, FilePath, Section
from core.stages.base import Stage, StagePlan
from core.stages.command import ON_CPU, SECRETS_BY_NEED, stage_env, training_argv

if TYPE_CHECKING:
    from core.preset import Preset


class FinetuneSection(Section):
    """How the model is fine-tuned."""

    files: FileList = []
    """JSONL files of `{"text": "### Human: ...### Assistant: ..."}`, `{"prompt", "completion"}` or `{"messages": [...]}`; the corpus script's chat.jsonl when empty."""
    model: FilePath | None = None
    """A Hugging Face model folder to start from; this run's converted model when empty."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the conversations; ignored where `steps` is given."""
    steps: PositiveInt | None = None
    """Optimizer steps."""
    micro_batch: PositiveInt = 1
    """Conversations that one process takes through the model at once."""
    gradient_accumulation: PositiveInt = 1
    """Micro-batches in one optimizer step of a process."""
    lr: Annotated[float, Field(gt=0)] = 1.0e-5
    """Peak learning rate."""
    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the steps that warms up."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """Learning rate after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay."""
    max_length: PositiveInt | None = None
    """Tokens of one conversation; what is longer is cut and counted. The model's sequence length when empty."""
    instruction_template: Annotated[str, Field(min_length=1)] = "### Human:"
    """What stands before a question."""
    response_template: Annotated[str, Field(min_length=1)] = "### Assistant:"
    """What stands before an answer."""
    valid_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the conversations kept for validation."""
    lora: bool = False
    """Train low-rank adapters and merge them at the end, instead of all weights."""
    lora_rank: PositiveInt = 8
    """Rank of the adapters."""
    lora_alpha: PositiveInt = 32
    """Scale of the adapters (alpha / rank)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout before the adapters."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    nodes: PositiveInt = 1
    """How many of the cluster's nodes take part; one is enough for most conversations."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPUs where there are any."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    zero: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage on several processes; 0 for plain data-parallel PyTorch. One process uses plain PyTorch."""
    save_interval: PositiveInt = 500
    """Steps between two checkpoints; a stop on request saves one too. The two newest are kept until the end."""
    log_interval: PositiveInt = 1
    """Steps between two metric records."""


def chat_files(preset: Preset, run: RunDirectory) -> list[str]:
    """The conversations: the user's own, or those that the corpus script makes."""
    return preset.finetune.files or [str(run.corpus / "chat.jsonl")]


def plan(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
    section = preset.finetune
    on_node = preset.cluster.process_count(facts, section.device)
    nodes = facts.nodes[: section.nodes]
    processes = on_node * max(1, len(nodes))
    skip = ""
    if not section.files and preset.corpus.script is None:
        skip = "the preset names no conversations (finetune.files)"
    on_cpu = section.device == "cpu" or not facts.gpus
    return StagePlan(
        id=STAGE.id,
        argv=training_argv(run, STAGE.id, facts, on_node, len(nodes)),
        env=stage_env(run, preset.cluster.thread_count(facts, on_node), online=preset.wandb.mode == "online")
        | (ON_CPU if on_cpu else {})
        | preset.cluster.variables(),
        cwd=str(run.root),
        nodes=list(nodes) or [facts.host],
        launcher=facts.launcher,
        inputs={"model": [section.model or str(run.pretrained)], "conversations": chat_files(preset, run)},
        outputs={} if skip else {"model": str(run.finetuned)},
        derived={
            "processes": processes,
            "processes_on_node": on_node,
            "device": "cpu" if on_cpu else "cuda",
            "micro_batch": section.micro_batch,
            "gradient_accumulation": section.gradient_accumulation,
            "global_batch": section.micro_batch * section.gradient_accumulation * processes,
            "method": "LoRA" if section.lora else "full",
            "engine": "PyTorch" if processes == 1 or not section.zero else f"DeepSpeed ZeRO-{section.zero}",
            "precision": section.precision if section.precision != "auto" else "fp32" if on_cpu else "bf16",
            "max_length": section.max_length or preset.model.sequence_length,
        },
        settings={
            "finetune": section.model_dump(exclude={"log_interval", "save_interval"}),
            "processes": processes,
            "seed": preset.seed,
        },
        skip=skip,
        secrets=list(SECRETS_BY_NEED["wandb"]) if preset.wandb.mode == "online" else [],
    )


STAGE = Stage("finetune", "Fine-tuning", "finetune", plan, "core.train.finetune:finetune")
