"""Runs a stage in a process forked from one that has already imported PyTorch: a real process to kill, at once.

The forked child runs core/stages/entry.py as the planned command would, with its own copy of the planned environment.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from core.files import read_json
from core.runs.directory import RunDirectory

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["core.train.training", "core.train.convert", "core.train.sft", "core.hub.generation"])


@dataclass
class ForkedStage:
    """A stage's process; `wait` gives its exit code, negative for a signal."""

    process: ForkServerProcess
    log: Path

    def wait(self, timeout: float = 300) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"the stage did not end in {timeout} s: {self.output}")
        return self.process.exitcode

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self.log.read_text() if self.log.exists() else ""


def fork_stage(run: RunDirectory, stage_id: str, **env: str) -> ForkedStage:
    """Start the stage; `env` comes on top of the planned environment."""
    plan = next(stage for stage in read_json(run.plan)["stages"] if stage["id"] == stage_id)
    log = run.root / f"forked-{len(list(run.root.glob('forked-*')))}.txt"
    process = _CONTEXT.Process(target=_main, args=(str(run.root), stage_id, {**plan["env"], **env}, str(log)))
    process.start()
    return ForkedStage(process, log)


def _main(root: str, stage_id: str, env: dict[str, str], log: str) -> None:
    os.environ.update(env)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    if limit := env.get("TEST_FILE_LIMIT"):
        # A file that can't grow any more is what a full disk looks like to the writer.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    from core.stages.entry import main

    sys.exit(main([stage_id, root]))
