"""Step 0: is what the other stages need here? A report; nothing is installed."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

from core.facts import Facts
from core.runs.directory import RunDirectory
from core.section import FilePath, Section
from core.stages.base import Stage, StagePlan
from core.stages.command import stage_argv, stage_env

if TYPE_CHECKING:
    from core.preset import Preset


class ClusterSection(Section):
    """Where the stages run."""

    python: FilePath | None = None
    """The training Python; the one llm-wizard itself runs under when empty."""
    processes: int | None = None
    """Training processes on this machine; one a GPU, or one on a machine without GPUs, when empty."""
    threads: int | None = None
    """CPU threads of each training process; the machine's cores shared out evenly when empty."""

    def process_count(self, facts: Facts, device: str = "auto") -> int:
        """How many ranks train on this machine."""
        if self.processes:
            return self.processes
        return max(1, len(facts.gpus)) if device != "cpu" else 1

    def thread_count(self, facts: Facts, processes: int) -> int:
        """CPU threads of one rank."""
        return self.threads or max(1, facts.cores // processes)


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
