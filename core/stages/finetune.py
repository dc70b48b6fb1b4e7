"""Step 4: a chat-tuned model by supervised fine-tuning with trl; the loss is on the answers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from core.facts import Facts
from core.model import PositiveInt
from core.runs.directory import RunDirectory
from core.section import FileList, FilePath, Section
from core.stages.base import Stage, StagePlan
from core.stages.command import ON_CPU, SECRETS_BY_NEED, stage_env, training_argv

if TYPE_CHECKING:
    from core.preset import Preset


VALID_SHARE = 0.02
ORIGINAL_CONVERSATIONS = "dataset/openassistant_best_replies_train.jsonl"
"""Where the original's fine-tuning scripts have theirs, below the llm-jp-sft checkout."""


class FinetuneSection(Section):
    """How the model is fine-tuned."""

    backend: Literal["embedded", "llm-jp-sft"] = "embedded"
    """embedded: trl, with checkpoints that a stopped run goes on from; llm-jp-sft: train.py of the checkout that finetune.checkout names, as in the original pipeline."""
    checkout: FilePath | None = None
    """The llm-jp-sft checkout: the folder with train.py, at the same place on every node (llm-jp-sft backend)."""
    python: FilePath | None = None
    """The Python of its environment; cluster.python when empty."""
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
    valid_share: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the conversations kept for validation; 0.02 when empty, and none with llm-jp-sft, which does not validate."""
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

    @model_validator(mode="after")
    def _what_llm_jp_sft_can(self) -> FinetuneSection:
        if self.backend == "embedded":
            return self
        if self.lora:
            raise ValueError(
                "finetune.lora leaves a merged model with finetune.backend=embedded; llm-jp-sft's adapters are not driven"
            )
        if self.valid_share:
            raise ValueError(
                "llm-jp-sft does not validate; remove finetune.valid_share, or set finetune.backend to embedded"
            )
        if self.precision == "fp32":
            raise ValueError("llm-jp-sft's train.py trains in bf16; set finetune.precision to bf16 or auto")
        if self.zero == 1:
            raise ValueError("llm-jp-sft has DeepSpeed configurations for ZeRO 2 and 3; set finetune.zero to 0, 2 or 3")
        if self.zero == 0 and self.nodes > 1:
            raise ValueError(
                "without DeepSpeed train.py is one process; set finetune.zero to 2 or 3, or finetune.nodes to 1"
            )
        return self


def valid_share(section: FinetuneSection) -> float:
    """Share of the conversations that is kept for validation."""
    if section.valid_share is not None:
        return section.valid_share
    return VALID_SHARE if section.backend == "embedded" else 0.0


def chat_files(preset: Preset, run: RunDirectory) -> list[str]:
    """The conversations: the user's own, those that the corpus script makes, or those in the llm-jp-sft checkout."""
    section = preset.finetune
    if section.files or preset.corpus.script is not None or not section.checkout:
        return section.files or [str(run.corpus / "chat.jsonl")]
    return [f"{section.checkout}/{ORIGINAL_CONVERSATIONS}"]


def has_conversations(preset: Preset) -> bool:
    """Whether there is anything to fine-tune on."""
    return bool(preset.finetune.files or preset.corpus.script or preset.finetune.backend == "llm-jp-sft")


def plan(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
    section = preset.finetune
    if section.backend == "llm-jp-sft":
        from core.llm_jp_sft.plan import plan_llm_jp_sft

        return plan_llm_jp_sft(preset, facts, run)
    on_node = preset.cluster.process_count(facts, section.device)
    nodes = facts.nodes[: section.nodes]
    processes = on_node * max(1, len(nodes))
    skip = ""
    if not has_conversations(preset):
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
            "finetune": section.model_dump(exclude={"log_interval", "save_interval"})
            | {"valid_share": valid_share(section)},
            "processes": processes,
            "seed": preset.seed,
        },
        skip=skip,
        secrets=list(SECRETS_BY_NEED["wandb"]) if preset.wandb.mode == "online" else [],
    )


STAGE = Stage("finetune", "Fine-tuning", "finetune", plan, "core.train.finetune:finetune")
