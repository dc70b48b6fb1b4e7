"""Preset and machine -> plan. Pure: what --dry-run prints, the screen shows and the supervisor carries out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from core.errors import InputError
from core.facts import Facts
from core.preset import Preset
from core.runs.directory import RunDirectory
from core.stages import BY_ID, STAGES
from core.stages.base import StagePlan
from core.text.plain import plain


@dataclass(frozen=True)
class Plan:
    """All stages of one run, in order; stages outside --from/--until are marked as skipped."""

    preset: Preset
    preset_name: str
    stages: tuple[StagePlan, ...]
    first: str | None = None
    """--from."""
    last: str | None = None
    """--until."""

    def document(self) -> dict[str, Any]:
        """The JSON document of `plan --json` and plan.json."""
        return {
            "schema_version": 1,
            "preset_name": self.preset_name,
            "preset": self.preset.model_dump(),
            "from": self.first,
            "until": self.last,
            "stages": [asdict(stage) for stage in self.stages],
        }


def make_plan(
    preset: Preset,
    preset_name: str,
    facts: Facts,
    run: RunDirectory,
    first: str | None = None,
    last: str | None = None,
) -> Plan:
    """Plan every stage. Raises InputError for an unknown stage, `first` after `last`, or names that are not UTF-8."""
    order = [stage.id for stage in STAGES]
    for stage_id in (first, last):
        if stage_id is not None and stage_id not in BY_ID:
            raise InputError(f"there is no stage {stage_id!r}", f"one of: {', '.join(order)}")
    start = order.index(first) if first else 0
    end = order.index(last) if last else len(order) - 1
    if start > end:
        raise InputError(f"--from {first} comes after --until {last}", f"the order is: {', '.join(order)}")
    stages = []
    for position, stage in enumerate(STAGES):
        outside = ""
        if position < start or position > end:
            outside = f"before --from {first}" if position < start else f"after --until {last}"
        try:
            planned = stage.plan(preset, facts, run)
        except InputError:
            if not outside:
                raise
            # What a stage that does not run would need (a checkout, say) is no reason to refuse the others.
            planned = StagePlan(stage.id, [], {}, str(run.root), [facts.host], {}, {}, {}, {})
        # The training Python's own tools first: two ninjas on one PATH rebuild each other's kernels for half a minute.
        planned.env.setdefault("PATH", f"{Path(facts.python).parent}:{facts.path}")
        if outside:
            planned = StagePlan(**{**vars(planned), "skip": outside, "outputs": {}})
        stages.append(planned)
    plan = Plan(preset, preset_name, tuple(stages), first, last)
    try:
        orjson.dumps(plan.document())
    except TypeError:
        shown = plain(preset_name if run.root.name.isascii() and not _is_utf8(preset_name) else str(run.root))
        hint = "give the folder or file another name, or choose another runs folder with --runs-dir"
        raise InputError(
            f"a path of this run has bytes that are not UTF-8, which no JSON can hold: {shown}", hint
        ) from None
    return plan


def _is_utf8(text: str) -> bool:
    return text == text.encode("utf-8", "replace").decode()
