"""Step 0: is what the other stages need here? A report; nothing is installed."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

from core.facts import Facts
from core.runs.directory import RunDirectory
from core.stages.base import Stage, StagePlan
from core.stages.command import stage_argv, stage_env

if TYPE_CHECKING:
    from core.preset import Preset


def plan(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
    return StagePlan(
        id=STAGE.id,
        # Under the Python of llm-wizard itself: the training Python is what is looked at, and may be broken.
        argv=stage_argv(run, STAGE.id, dataclasses.replace(facts, python=sys.executable)),
        env=stage_env(run),
        cwd=str(run.root),
        nodes=[facts.host],
        inputs={},
        outputs={"report": str(run.stage(STAGE.id) / "report.json")},
        derived={"python": facts.python, "cores": facts.cores, "memory_bytes": facts.memory, "gpus": len(facts.gpus)},
        # A machine changes between two starts of one run: the time makes this stage never "already done".
        settings={"always": True},
    )


STAGE = Stage("environment", "Environment", "cluster", plan, "core.doctor.environment:examine")
