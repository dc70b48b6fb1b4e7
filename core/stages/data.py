"""Step 2, first half: text to token ids in Megatron's .bin/.idx files, which both backends read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from core.facts import Facts
from core.runs.directory import RunDirectory
from core.section import FilePath, Section
from core.stages.base import Stage, StagePlan
from core.stages.command import stage_argv, stage_env
from core.stages.corpus import corpus_files
from core.stages.tokenizer import tokenizer_file

if TYPE_CHECKING:
    from core.preset import Preset


class DataSection(Section):
    """How text becomes token files."""

    prefix: FilePath | None = None
    """Existing token files {prefix}.bin and {prefix}.idx to use instead of making them."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Tokenizing processes; 0 for one a core."""
    append_eod: bool = True
    """Whether every document ends with <EOD>; it is counted in the index too (the original's tool forgets that)."""
    split: str = "949,50,1"
    """Shares of the documents, in file order, for training, validation and test."""

    @field_validator("split")
    @classmethod
    def _three_shares(cls, value: str) -> str:
        parts = value.split(",")
        try:
            shares = [float(part) for part in parts]
        except ValueError:
            shares = []
        if len(shares) != 3 or min(shares) < 0 or shares[0] <= 0 or shares[1] <= 0:
            raise ValueError(
                f"expected three shares such as 949,50,1 with training and validation above 0, got {value!r}"
            )
        return value


def plan(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
    section = preset.data
    if section.prefix:
        inputs = {"bin": [f"{section.prefix}.bin"], "idx": [f"{section.prefix}.idx"]}
    else:
        inputs = {"text": corpus_files(preset, run)}
    inputs["tokenizer"] = [tokenizer_file(preset, run)]
    prefix = str(run.data_prefix)
    text_bytes = sum(facts.sizes.get(name, 0) for name in inputs.get("text", []))
    item_bytes = 2 if preset.tokenizer.vocab_size < 65500 else 4
    return StagePlan(
        id=STAGE.id,
        argv=stage_argv(run, STAGE.id, facts),
        env=stage_env(run),
        cwd=str(run.root),
        nodes=[facts.host],
        inputs=inputs,
        outputs={"bin": f"{prefix}.bin", "idx": f"{prefix}.idx", "manifest": f"{prefix}.manifest.json"},
        derived={
            "workers": section.workers or facts.cores,
            "bytes_per_token": item_bytes,
            "input_bytes": text_bytes or "not known before the corpus stage",
        },
        settings={
            "data": section.model_dump(exclude={"workers"}),
            "corpus": preset.corpus.model_dump(include={"text_key", "normalize", "max_rejected_share"}),
            "sequence": [preset.model.sequence_length, preset.pretrain.allow_short_documents],
        },
    )


STAGE = Stage("data", "Data", "data", plan, "core.data.work:tokenize_corpus")
