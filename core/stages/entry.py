"""A stage's own process: `python code/stage.py STAGE RUN_DIR` (one, or one a rank under torchrun).

Exit codes: 0 with a result.json is success; 64 is input that cannot be used; 130 stopped on request; anything else failed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

from core.errors import WizardError
from core.exit_codes import ExitCode
from core.files import read_json
from core.preset import Preset
from core.runs.directory import RunDirectory
from core.runs.process import end_with_parent
from core.stages import BY_ID
from core.stages.base import StageContext, StageStopped, write_result


def load_context(run: RunDirectory, stage_id: str) -> StageContext:
    """The context of a stage from the run's plan.json."""
    document = read_json(run.plan)
    plan = next(stage for stage in document["stages"] if stage["id"] == stage_id)
    return StageContext(run=run, preset=Preset.model_validate(document["preset"]), stage_id=stage_id, plan=plan)


def write_stacks_when_asked(folder: Path, rank: int) -> None:
    """On SIGUSR1 append what every thread is doing to `folder`/rank-N.txt, from within whatever the process waits in."""
    with contextlib.suppress(OSError):  # a full disk must not keep a rank from training
        folder.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(folder / f"rank-{rank}.txt", flags, 0o600)  # open until the process ends
        faulthandler.register(signal.SIGUSR1, descriptor, all_threads=True, chain=False)


def main(argv: list[str]) -> int:
    stage_id, run_dir = argv
    started = time.time()
    run = RunDirectory(Path(run_dir))
    rank = int(os.environ.get("RANK", "0"))
    if "RANK" in os.environ:
        end_with_parent()  # a rank whose launcher was killed must not go on alone
        write_stacks_when_asked(run.stacks(stage_id), rank)
    context = load_context(run, stage_id)
    try:
        outcome = BY_ID[stage_id].run(context)
    except StageStopped:
        print("stopped on request", flush=True)
        return ExitCode.INTERRUPTED
    except WizardError as error:
        # The supervisor looks for this word at the start of a line: it is the line it points the user to.
        print(f"error: {error}", flush=True)
        return error.exit_code
    if rank == 0:
        write_result(run, stage_id, outcome, started)
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
