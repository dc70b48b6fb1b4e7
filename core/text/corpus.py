"""The corpus stage: the preset's own script writes the text, and what it wrote is checked and counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from core.errors import StageError
from core.stages.base import Outcome, StageContext

FILES = {"pretrain": "pretrain.jsonl", "chat": "chat.jsonl"}
OURS = ("PYTHONPATH", "PYTHONSAFEPATH")
"""Variables that make Python find this run's copy of the code; the preset's script has no business with it."""


def make_corpus(context: StageContext) -> Outcome:
    """Run the script and count what it wrote: `{name}_records` and `{name}_bytes` of each file that a later stage reads.

    Raises:
        StageError: the script failed, or a file that is needed is missing or empty.
    """
    script, folder = context.preset.corpus.script, context.run.corpus
    assert script is not None  # the plan skips the stage otherwise
    folder.mkdir(parents=True, exist_ok=True)
    run_script(script, folder)
    needed = {name: Path(path) for name, path in context.plan["outputs"].items()}
    metrics: dict[str, int] = {}
    for name, path in needed.items():
        records, size = count(path)
        if not records:
            raise StageError(
                f"{Path(script).name} ended without an error but {'wrote nothing into' if path.exists() else 'made no'} "
                f"{path.name}; expected {FILES['pretrain']} and {FILES['chat']} in the folder that is its argument",
                f"run it by hand: {sys.executable} {script} some-folder",
            )
        print(f"{path.name}: {records} records, {size} bytes", flush=True)
        metrics |= {f"{name}_records": records, f"{name}_bytes": size}
    return Outcome(outputs={name: str(path) for name, path in needed.items()}, metrics=metrics)


def run_script(script: str, folder: Path) -> None:
    """Run `script folder` under this Python, its output going to the log as it comes."""
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    last = ""
    with subprocess.Popen(
        [sys.executable, script, str(folder)],
        env=environment | {"PYTHONHASHSEED": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode:
        how = (
            f"was killed by signal {-process.returncode}"
            if process.returncode < 0
            else f"ended with {process.returncode}"
        )
        raise StageError(
            f"the corpus script {Path(script).name} {how}: {last or 'it printed nothing'}",
            f"mend it, or run it by hand to see more: {sys.executable} {script} some-folder",
        )


def count(path: Path) -> tuple[int, int]:
    """Lines that are not blank, and bytes; (0, 0) for a file that is not there."""
    if not path.is_file():
        return 0, 0
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip()), path.stat().st_size
