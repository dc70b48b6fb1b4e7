"""Step 3-1: a checkpoint becomes a model folder that plain transformers loads, after a gate on its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from core.facts import Facts
from core.runs.directory import RunDirectory
from core.section import FilePath, Section
from core.stages import pretrain
from core.stages.base import Stage, StagePlan
from core.stages.command import ON_CPU, stage_argv, stage_env

if TYPE_CHECKING:
    from core.preset import Preset


class ConvertSection(Section):
    """How a checkpoint becomes a Hugging Face model folder."""

    checkpoint: FilePath | None = None
    """A checkpoint folder: step-N of this tool, or global_stepN of Megatron-DeepSpeed (GPT or Llama, any parallelism); the run's newest complete one when empty."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the saved weights."""
    tolerance: Annotated[float, Field(gt=0)] = 1.0e-4
    """Largest difference allowed between the logits of folder and checkpoint, relative to the largest logit."""


def plan(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
    section = preset.convert
    checkpoints = pretrain.plan(preset, facts, run).outputs["checkpoints"]
    parameters = preset.model.shape().parameters(preset.tokenizer.vocab_size)
    return StagePlan(
        id=STAGE.id,
        argv=stage_argv(run, STAGE.id, facts),
        env=stage_env(run, preset.cluster.thread_count(facts, 1)) | ON_CPU,
        cwd=str(run.root),
        nodes=[facts.host],
        inputs={
            "checkpoint": [section.checkpoint or checkpoints],
            "tokenizer": [str(run.huggingface_tokenizer)],
        },
        outputs={"model": str(run.pretrained)},
        derived={"weights_bytes": parameters * (2 if section.dtype == "bfloat16" else 4), "dtype": section.dtype},
        settings={"convert": section.model_dump()},
    )


STAGE = Stage("convert", "Conversion", "convert", plan, "core.train.convert:convert")
