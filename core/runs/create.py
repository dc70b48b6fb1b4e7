"""Making a run directory: private, complete, and with its own copy of the code."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import core
from core.errors import InputError
from core.files import write_atomically, write_json
from core.plan import Plan
from core.runs.directory import RunDirectory, check_run_name

ENTRY = """import sys

from {module} import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
ENTRIES = {"stage.py": "core.stages.entry", "supervise.py": "core.runs.supervisor"}


def reserve(runs_dir: Path, name: str) -> RunDirectory:
    """Make `runs_dir/name`, mode 0700; exactly one of two callers at the same instant gets it.

    Raises:
        InputError: the name is taken or unusable, or the runs folder cannot be written.
    """
    run = RunDirectory(runs_dir.absolute() / check_run_name(name))
    try:
        runs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        run.root.mkdir(mode=0o700)
    except FileExistsError:
        if run.root.exists():
            raise InputError(
                f"a run named {name!r} exists in {runs_dir}",
                f"continue it with `llm-wizard resume {name}`, or choose another name with --name",
            ) from None
        raise InputError(f"the runs folder {runs_dir} is a file", "choose a folder with --runs-dir") from None
    except OSError as error:
        raise InputError(
            f"the runs folder {runs_dir} cannot be written: {error.strerror}", "choose another with --runs-dir"
        ) from None
    return run


def fill(run: RunDirectory, plan: Plan) -> None:
    """Write the plan, the copy of the code and the empty folders into a reserved run directory."""
    os.umask(0o077)
    for folder in (run.requests, run.checkpoints, run.outputs):
        folder.mkdir(mode=0o700)
    for stage in plan.stages:
        run.stage(stage.id).mkdir(mode=0o700, parents=True)
    copy_code(run.code)
    write_json(run.plan, plan.document())


def copy_code(target: Path) -> None:
    """Copy this package beside its entry scripts, so that the run keeps the code it was started with."""
    source = Path(core.__file__).parent
    shutil.copytree(source, target / "core", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for path in target.rglob("*"):  # copytree keeps the modes of the installed package
        path.chmod(0o700 if path.is_dir() else 0o600)
    for name, module in ENTRIES.items():
        write_atomically(target / name, ENTRY.format(module=module).encode())
