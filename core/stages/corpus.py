"""The text: the user's own files, or a small script of the preset that writes them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from core.facts import Facts
from core.runs.directory import RunDirectory
from core.section import FileList, FilePath, Section
from core.stages.base import Stage, StagePlan
from core.stages.command import stage_argv, stage_env

if TYPE_CHECKING:
    from core.preset import Preset


class CorpusSection(Section):
    """The text to learn from."""

    files: FileList = []
    """Text files (.jsonl, .jsonl.gz, .jsonl.zst, .txt, .parquet); they take the place of what `script` would write."""
    script: FilePath | None = None
    """A Python script that writes pretrain.jsonl and chat.jsonl into the folder given as its argument."""
    text_key: Annotated[str, Field(min_length=1)] = "text"
    """The field of a JSONL record, or the column of a Parquet file, that holds the text."""
    normalize: Literal["none", "nfkc"] = "none"
    """Unicode normalisation of the text before it is used; nfkc is what SentencePiece's nmt_nfkc would do while encoding."""
    max_rejected_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of unusable lines above which the data stage fails; rejected lines are always counted and listed."""


def corpus_files(preset: Preset, run: RunDirectory) -> list[str]:
    """The files to pretrain on: the user's own, or those that the script makes."""
    return preset.corpus.files or [str(run.corpus / "pretrain.jsonl")]


def plan(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
    script = preset.corpus.script
    skip = ""
    if preset.corpus.files and preset.finetune.files:
        skip = "corpus.files and finetune.files name the text"
    elif script is None:
        skip = "the preset has no corpus.script"
    outputs = {}
    if not preset.corpus.files:
        outputs["pretrain"] = str(run.corpus / "pretrain.jsonl")
    if not preset.finetune.files:
        outputs["chat"] = str(run.corpus / "chat.jsonl")
    return StagePlan(
        id=STAGE.id,
        argv=stage_argv(run, STAGE.id, facts),
        env=stage_env(run),
        cwd=str(run.root),
        nodes=[facts.host],
        inputs={"script": [script]} if script else {},
        outputs={} if skip else outputs,
        # The stage runs it as a child; the plan hides nothing that will run.
        derived={} if skip else {"command": shlex.join([facts.python, script or "", str(run.corpus)])},
        settings={},
        skip=skip,
    )


STAGE = Stage("corpus", "Corpus", "corpus", plan, "core.text.corpus:make_corpus")
