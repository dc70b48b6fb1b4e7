"""A stage's own process: `python code/stage.py STAGE RUN_DIR` (one, or one a rank under torchrun).

Exit codes: 0 with a result.json is success; 64 is input that cannot be used; 130 stopped on request; anything else failed.
"""

from __future__ import annotations

import os
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


def main(argv: list[str]) -> int:
    stage_id, run_dir = argv
    started = time.time()
    if "RANK" in os.environ:
        end_with_parent()  # a rank whose launcher was killed must not go on alone
    context = load_context(RunDirectory(Path(run_dir)), stage_id)
    rank = int(os.environ.get("RANK", "0"))
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
        write_result(context, outcome, started)
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
