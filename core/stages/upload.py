"""Steps 3-2 and 5: a model folder is checked by generating with it, described by a card, and published."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from core.facts import Facts
from core.runs.directory import RunDirectory
from core.section import FilePath, Section
from core.stages.base import Stage, StagePlan
from core.stages.command import SECRETS_BY_NEED, stage_argv, stage_env
from core.stages.finetune import has_conversations

if TYPE_CHECKING:
    from core.preset import Preset


class UploadSection(Section):
    """Where a model goes. Files leave the machine only with `to: hub`."""

    to: Literal["folder", "hub", "nowhere"] = "folder"
    """folder: a local folder with exactly the files of an upload; hub: that, and the Hugging Face Hub; nowhere: skip."""
    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$")] | None = None
    """The Hub repository, `name` or `organisation/name`; needed with `to: hub`."""
    private: bool = True
    """Whether a repository that is made new is private."""
    model: FilePath | None = None
    """A model folder to publish; this run's own when empty."""
    license: str | None = None
    """The licence named in the model card, as the Hub spells it (apache-2.0, mit, ...)."""
    languages: list[str] = []
    """Languages named in the model card, as two-letter codes."""
    test_prompt: Annotated[str, Field(min_length=1)] = "Once upon a time,"
    """The text that the model must be able to go on from before it is published."""
    max_new_tokens: Annotated[int, Field(gt=0, le=4096)] = 50
    """Tokens generated for the check."""

    @model_validator(mode="after")
    def _hub_has_a_name(self) -> UploadSection:
        if self.to == "hub" and not self.repo:
            raise ValueError("`to: hub` needs a repository; set `repo` to organisation/name")
        return self


def _planner(stage_id: str, section_name: str) -> Callable[[Preset, Facts, RunDirectory], StagePlan]:
    def plan(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
        section: UploadSection = getattr(preset, section_name)
        own = run.pretrained if stage_id == UPLOAD_PRETRAINED.id else run.finetuned
        skip = "nothing is to be published" if section.to == "nowhere" else ""
        if stage_id == UPLOAD_FINETUNED.id and not section.model:
            skip = skip or ("" if has_conversations(preset) else "there is no fine-tuned model")
        hub = section.to == "hub"
        return StagePlan(
            id=stage_id,
            argv=stage_argv(run, stage_id, facts),
            env=stage_env(run, preset.cluster.thread_count(facts, 1), online=hub),
            cwd=str(run.root),
            nodes=[facts.host],
            inputs={"model": [section.model or str(own)]},
            outputs={} if skip else {"folder": str(run.upload(stage_id))},
            derived={
                "to": f"https://huggingface.co/{section.repo}" if hub else "a local folder",
                "visibility": "private" if section.private else "public",
            },
            settings={"upload": section.model_dump()},
            skip=skip,
            secrets=list(SECRETS_BY_NEED["hub"]) if hub else [],
        )

    return plan


UPLOAD_PRETRAINED = Stage(
    "upload-pretrained",
    "Publishing the pretrained model",
    "upload_pretrained",
    _planner("upload-pretrained", "upload_pretrained"),
    "core.hub.work:publish",
)
UPLOAD_FINETUNED = Stage(
    "upload-finetuned",
    "Publishing the chat model",
    "upload_finetuned",
    _planner("upload-finetuned", "upload_finetuned"),
    "core.hub.work:publish",
)
