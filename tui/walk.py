"""The walk through Setup: which fields each step asks for, and under which of them a problem is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.errors import InputError
from core.language import tr_later
from core.text.plain import plain
from tui.draft import Draft
from tui.form import STEPS, FieldSpec, Step, fields_of, step_of

NAME = FieldSpec(
    "name", tr_later("The run's name: that of its folder. Letters, digits, `.`, `_` and `-`."), "", kind="text"
)
"""Not a key of the preset: `--name` on the command line."""


def specs_of(step: Step) -> list[FieldSpec]:
    """The fields of a step, in their order; the run's name is the first of the first."""
    own = [NAME] if step is STEPS[0] else []
    return own + [spec for section in step.sections for spec in fields_of(section)]


def steps_for(draft: Draft) -> list[Step]:
    """The steps of the walk whose values count in this draft, in their order."""
    return [step for step in STEPS if step.only_with is None or draft.value(step.only_with[0]) == step.only_with[1]]


def step_with(key: str) -> Step | None:
    """The step with the field of a key, or with a whole section."""
    return STEPS[0] if key == NAME.key else step_of(key)


def has_fields(key: str) -> bool:
    """Whether Setup can change it: a field, or a section with some; not a key that a preset should not have."""
    return any(spec.key == key or spec.key.startswith(f"{key}.") for step in STEPS for spec in specs_of(step))


def problems_by_field(draft: Draft, runs_dir: Path, changed_last: Mapping[str, str]) -> dict[str, str]:
    """What is wrong, by the key of the field under which it is said; the first problem of each.

    `changed_last` names the field of each section that was changed last: what does not fit together is said there. A
    problem that no field has (an unknown key of the preset) stands under its own key.
    """
    found: dict[str, str] = {}
    for problem in draft.problems():
        found.setdefault(_field_of(problem.key, changed_last), plain(problem.text))
    try:
        draft.run(runs_dir)
    except InputError as error:
        found[NAME.key] = plain(error.message)
    return found


def _field_of(key: str, changed_last: Mapping[str, str]) -> str:
    keys = [spec.key for step in STEPS for spec in specs_of(step)]
    inner = key
    while inner not in keys and inner.count(".") > 1:  # an item of a list
        inner = inner.rpartition(".")[0]
    if inner in keys:
        return inner
    return changed_last.get(key) or next((name for name in keys if name.startswith(f"{key}.")), key)
