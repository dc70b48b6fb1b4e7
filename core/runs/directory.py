"""Where everything of one run lies. Pure paths: making and reading files is up to the owner of each.

runs/<name>/  preset.yaml  plan.json  state.json  events.jsonl  supervisor.log  lock  requests/
              slurm.sh  slurm.json  of a run that was submitted to Slurm
              code/        the trainer as it was when the run was made; ranks import this copy
              stages/<id>/ log.txt  metrics.jsonl  result.json
              nodes/       what the node agents saw: <host>.jsonl (ring) and <host>.history.jsonl (a line a minute)
              checkpoints/ step-N/
              outputs/     what the stages make
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from core.errors import InputError

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_run_name(name: str) -> str:
    """Refuse a name that could leave the runs folder, be read as an option, or need quoting anywhere."""
    if not RUN_NAME.fullmatch(name):
        raise InputError(
            f"run name {name!r} is not usable: letters, digits, '.', '_' and '-' only, a letter or digit first, "
            "at most 100 characters",
            "choose another with --name",
        )
    return name


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run; `root` is absolute."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def preset(self) -> Path:
        return self.root / "preset.yaml"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def requests(self) -> Path:
        return self.root / "requests"

    @property
    def supervisor_log(self) -> Path:
        return self.root / "supervisor.log"

    @property
    def slurm(self) -> Path:
        """The record of the Slurm job of a submitted run."""
        return self.root / "slurm.json"

    @property
    def slurm_script(self) -> Path:
        return self.root / "slurm.sh"

    @property
    def code(self) -> Path:
        return self.root / "code"

    @property
    def nodes(self) -> Path:
        return self.root / "nodes"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def outputs(self) -> Path:
        return self.root / "outputs"

    def stage(self, stage_id: str) -> Path:
        return self.root / "stages" / stage_id

    def log(self, stage_id: str) -> Path:
        return self.stage(stage_id) / "log.txt"

    def metrics(self, stage_id: str) -> Path:
        return self.stage(stage_id) / "metrics.jsonl"

    def result(self, stage_id: str) -> Path:
        return self.stage(stage_id) / "result.json"

    def stacks(self, stage_id: str) -> Path:
        """Where the ranks of a hung stage say what they were doing: rank-N.txt."""
        return self.stage(stage_id) / "stacks"

    def checkpoints_of(self, stage_id: str) -> Path:
        """The folder of a training stage's step-N checkpoints."""
        return self.checkpoints if stage_id == "pretrain" else self.stage(stage_id) / "checkpoints"

    # What stages make, at fixed places: the plan can name them before anything has run.

    @property
    def corpus(self) -> Path:
        """Folder of the texts that a preset's own script makes: pretrain.jsonl and chat.jsonl."""
        return self.outputs / "corpus"

    @property
    def tokenizer(self) -> Path:
        """Folder of {name}.model, {name}.vocab and, under huggingface/, the same tokenizer for transformers."""
        return self.outputs / "tokenizer"

    @property
    def huggingface_tokenizer(self) -> Path:
        return self.tokenizer / "huggingface"

    @property
    def data_prefix(self) -> Path:
        """{prefix}.bin, {prefix}.idx and {prefix}.manifest.json."""
        return self.outputs / "data" / "text_document"

    @property
    def pretrained(self) -> Path:
        """The converted model folder."""
        return self.outputs / "pretrained"

    @property
    def finetuned(self) -> Path:
        """The chat-tuned model folder."""
        return self.outputs / "finetuned"

    def upload(self, stage_id: str) -> Path:
        """The folder with exactly the files that an upload contains."""
        return self.outputs / stage_id
