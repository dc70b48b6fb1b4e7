"""Step 2, first half: text to token ids in Megatron's .bin/.idx files, which both backends read."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from core.data import preprocess_command
from core.facts import Facts
from core.megatron.data import read_instead
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

    tool: Literal["own", "preprocess_data"] = "own"
    """own: this tool's tokenizing; preprocess_data: tools/preprocess_data.py of megatron.checkout, once for each corpus file."""
    prefix: FilePath | None = None
    """Existing token files {prefix}.bin and {prefix}.idx to use instead of making them."""
    output_folder: FilePath | None = None
    """Folder for the token files of preprocess_data, {corpus file}_text_document.bin and .idx; a folder of the run when empty."""
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

    @model_validator(mode="after")
    def _tools_keys(self) -> DataSection:
        if self.prefix and self.tool != "own":
            raise ValueError("data.prefix names token files that exist; data.tool would make others: give one of them")
        if self.output_folder and self.tool == "own":
            raise ValueError("data.output_folder is for data.tool=preprocess_data; ours writes into the run")
        return self


def data_prefixes(preset: Preset, run: RunDirectory) -> list[str]:
    """The prefixes of the token files ({prefix}.bin, {prefix}.idx) that the data stage leaves."""
    if preset.data.tool == "own":
        return [str(run.data_prefix)]
    return [pair.prefix for pair in preprocess_command.pairs(preset, corpus_files(preset, run), run)]


def plan(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
    planned = (_plan_own if preset.data.tool == "own" else _plan_preprocess_data)(preset, facts, run)
    skip = read_instead(preset, data_prefixes(preset, run)) if preset.pretrain.backend == "megatron" else ""
    return replace(planned, skip=skip, outputs={}) if skip else planned


def _plan_own(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
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


def _plan_preprocess_data(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
    """The checkout's own program; our stage starts it, and judges by the files that it leaves."""
    section, megatron = preset.data, preset.megatron
    files = corpus_files(preset, run)
    pairs = preprocess_command.checked_pairs(preset, files, run)
    model = tokenizer_file(preset, run)
    python = megatron.python or facts.python
    workers = section.workers or facts.cores
    commands = [preprocess_command.argv(preset, python, model, pair, workers) for pair in pairs]
    outputs = {
        f"{ending} {number}": f"{pair.prefix}.{ending}"
        for number, pair in enumerate(pairs, 1)
        for ending in ("bin", "idx")
    }
    if preset.pretrain.backend == "embedded":  # it reads the run's own
        outputs |= {"bin": f"{run.data_prefix}.bin", "idx": f"{run.data_prefix}.idx"}
    derived: dict[str, Any] = {
        f"command {number}" if len(commands) > 1 else "command": shlex.join(command)
        for number, command in enumerate(commands, 1)
    }
    return StagePlan(
        id=STAGE.id,
        argv=stage_argv(run, STAGE.id, facts),
        env=stage_env(run),
        cwd=str(run.root),
        nodes=[facts.host],
        inputs={"text": files, "tokenizer": [model]},
        outputs={**outputs, "manifest": f"{run.data_prefix}.manifest.json"},
        derived={
            **derived,
            "pythonpath": preprocess_command.python_path(preset, facts, run),
            "workers": workers,
            "corrections": preprocess_command.corrections(preset),
            "strict_original": megatron.strict_original,
        },
        settings={
            "data": section.model_dump(exclude={"workers"}),
            "corpus": preset.corpus.model_dump(include={"text_key"}),
            "checkout": megatron.checkout,
            "strict_original": megatron.strict_original,
        },
    )


STAGE = Stage("data", "Data", "data", plan, "core.data.work:tokenize_corpus")
