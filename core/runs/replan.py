"""Going on with a run on other nodes, or with other settings: its plan is made again from its own preset; the old plan is kept."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from core.facts import facts_for
from core.files import free_name, read_json, write_json
from core.plan import make_plan
from core.preflight import check_plan
from core.preset_source import RawPreset
from core.runs.directory import RunDirectory


def replan(run: RunDirectory, sets: Sequence[str]) -> None:
    """Replace plan.json by one with `sets` (--set) applied to the run's preset; the one before becomes plan.json-N.

    Stages that are done and do not depend on what changed are not done again: the supervisor knows them by their fingerprints.

    Raises:
        InputError: a key or value is wrong, or an input is missing; the plan is as it was.
        StageError: a node does not answer.
    """
    before = read_json(run.plan)
    raw = RawPreset(before["preset"], {}, str(run.plan))
    for option in sets:
        raw.apply(option)
    preset = raw.checked()
    facts = facts_for(preset, run.root.parent)
    plan = make_plan(preset, before["preset_name"], facts, run, before.get("from"), before.get("until"))
    check_plan(plan, run.root)
    shutil.copy2(run.plan, free_name(run.plan))
    write_json(run.plan, plan.document())
