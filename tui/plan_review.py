"""What Plan shows of a draft before it is launched: the plan, what stands in its way, and the run that has its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core import preset_source
from core.errors import InputError, WizardError
from core.facts import facts_for
from core.plan import Plan
from core.preflight import check_plan
from core.runs.directory import RunDirectory
from core.runs.state import Status, read_status
from tui.draft import Draft
from tui.form import all_fields

_DOTTED = re.compile(r"[a-z_]+\.[a-z0-9_]+")


@dataclass(frozen=True)
class Problem:
    """One thing that keeps the plan from being launched; `key` is the field where it is mended, where that is known."""

    text: str
    key: str = ""


@dataclass(frozen=True)
class Review:
    """A draft looked at with everything that lies on this machine."""

    draft: Draft
    plan: Plan | None = None
    problems: tuple[Problem, ...] = ()
    free_name: str = ""
    """The draft's name, or the next one that no folder has."""
    existing: Status | None = None
    """The run that has the draft's name now, where there is one that can be read."""
    done: Mapping[str, str] = field(default_factory=dict)
    """Stage -> state in that run."""


def review(draft: Draft, runs_dir: Path) -> Review:
    """Plan and check a draft; reads files, so never call it where a screen would wait."""
    if wrong := draft.problems():
        return Review(draft, problems=tuple(Problem(_said(one), one.key or _key(draft, one.text)) for one in wrong))
    try:
        preset = draft.preset()
        run = draft.run(runs_dir)
        plan = draft.plan(facts_for(preset, runs_dir), runs_dir)
    except WizardError as error:  # also a GPU that does not answer
        return Review(draft, problems=_problems(draft, error))
    free = free_name(draft.name, runs_dir)
    existing = _existing(run) if free != draft.name else None
    done = {name: str(stage["state"]) for name, stage in existing.document["stages"].items()} if existing else {}
    try:
        check_plan(plan, run.root)
    except InputError as error:
        return Review(draft, plan, _problems(draft, error), free, existing, done)
    return Review(draft, plan, (), free, existing, done)


def free_name(name: str, runs_dir: Path) -> str:
    """The name itself, or with the lowest number behind it that no folder has yet: quickstart, quickstart-2, ..."""
    base, number = re.sub(r"-\d+$", "", name)[:90] or name, 1
    while (runs_dir / name).exists():
        number += 1
        name = f"{base}-{number}"
    return name


def _existing(run: RunDirectory) -> Status | None:
    if not run.plan.is_file():
        return None
    try:
        return read_status(run)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _said(wrong: preset_source.Problem) -> str:
    """A problem of a file with its line; what was typed here has no place that its key would not say better."""
    return wrong.text if str(wrong.place).startswith("--set") else str(wrong)


def _problems(draft: Draft, error: WizardError) -> tuple[Problem, ...]:
    lines = error.message.splitlines()
    texts = [f"{error.message} -> {error.hint}"] if len(lines) == 1 and error.hint else lines
    return tuple(Problem(text, _key(draft, text)) for text in texts)


def _key(draft: Draft, text: str) -> str:
    """The field that a message is about: one that it names, or one whose path it names."""
    named: list[str] = [word for word in _DOTTED.findall(text) if word in all_fields()]
    if named:
        return named[0]
    if text.startswith("run name"):
        return "name"
    paths = {key: draft.value(key) for key, spec in all_fields().items() if spec.kind in ("path", "paths")}
    for key, value in paths.items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, str) and path and path in text:
                return key
    return ""
