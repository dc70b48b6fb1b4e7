"""`llm-wizard diagnose`: its options and what it prints."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path

from core.errors import InputError
from core.exit_codes import ExitCode
from core.language import tr
from core.runs.directory import RUN_NAME, RunDirectory


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """The options of design.md, and where the archive for a bug report goes."""
    verb.add_argument(
        "logs", metavar="LOG", nargs="+", help="a log (.gz too), a folder, a run, or - for standard input"
    )
    verb.add_argument("--exit-code", metavar="N", type=int, help="the exit code of the process; -9 or 137: signal 9")
    verb.add_argument("--stalled-for", metavar="SECONDS", type=float, help="it still runs, silent for so long")
    verb.add_argument(
        "--bundle", metavar="FILE", type=Path, help="where an unknown failure's archive for a bug report goes"
    )
    verb.add_argument("--json", action="store_true", help="print one JSON document and nothing else")


def diagnose_verb(options: argparse.Namespace) -> int:
    """Exit code 0: healthy; 2: a failure, known or not."""
    from core.troubleshoot.bundle import write_bundle
    from core.troubleshoot.diagnose import diagnose
    from core.troubleshoot.judge import UNKNOWN
    from core.troubleshoot.text import diagnosis_text

    if options.stalled_for is not None and not 0 <= options.stalled_for < math.inf:
        raise InputError(f"--stalled-for {options.stalled_for:g}: seconds without output are expected")
    diagnosis = diagnose(options.logs, options.exit_code, options.stalled_for, options.runs_dir)
    bundle: Path | None = options.bundle
    if bundle is None and diagnosis.verdict == UNKNOWN and not options.json:
        bundle = _free_name()
    written = ""
    if bundle is not None and diagnosis.verdict == UNKNOWN:
        try:
            write_bundle(bundle, diagnosis, _runs(options.logs, options.runs_dir))
            written = tr("to attach to a bug report, tokens masked; look through it first: {path}", path=bundle)
        except InputError as error:
            if options.bundle:
                raise
            written = str(error)
    if options.json:
        import orjson

        sys.stdout.buffer.write(
            orjson.dumps(diagnosis.document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )
        sys.stdout.flush()
    else:
        print(diagnosis_text(diagnosis), end="")
        if written:
            print(f"\n{written}")
    return ExitCode.FAILED if diagnosis.failed else ExitCode.DONE


def _free_name() -> Path:
    stem = f"llm-wizard-diagnosis-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (f"{stem}{end}.tar.gz" for end in ("", *(f"-{number}" for number in range(2, 100))))
    return Path(next((name for name in names if not os.path.lexists(name)), f"{stem}.tar.gz"))


def _runs(names: list[str], runs_dir: Path) -> list[RunDirectory]:
    """The runs among what was named."""
    folders = [Path(name) for name in names] + [runs_dir / name for name in names if RUN_NAME.fullmatch(name)]
    return [RunDirectory(folder.absolute()) for folder in folders if (folder / "plan.json").is_file()]
