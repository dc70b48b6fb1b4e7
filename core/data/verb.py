"""`llm-wizard data check`: its options, what it prints, how it exits."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import InputError, WizardError
from core.exit_codes import ExitCode

if TYPE_CHECKING:
    from core.data.check import Report, Vocabulary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb; nothing heavy is imported for --help."""
    parser.add_argument("action", choices=("check",), help="find what is wrong with Megatron's .bin and .idx")
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="token files: the .bin, the .idx, or the path without either"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="MODEL",
        type=Path,
        help="the .model that made them: ids and ends of documents are checked by it",
    )
    parser.add_argument(
        "--fix", action="store_true", help="mend what can be mended; what was there stays beside as .bak"
    )
    parser.add_argument("--dry-run", action="store_true", help="with --fix: say only what would be done")
    parser.add_argument("--yes", action="store_true", help="with --fix: do not ask")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")


def data(options: argparse.Namespace) -> int:
    """Carry out the verb: 0 where all is well or was mended, 1 with warnings only, 2 where something is damaged.

    Raises:
        InputError: options that contradict each other, a file that is not there or cannot be read, a tokenizer that is none.
    """
    from core.data.check import vocabulary_of

    if (options.dry_run or options.yes) and not options.fix:
        raise InputError("--dry-run and --yes go with --fix", "add --fix")
    if options.json and options.fix and not (options.yes or options.dry_run):
        raise InputError("--json cannot ask", "add --yes, or --dry-run to see what would be done")
    prefixes = list(dict.fromkeys(prefix_of(name) for name in options.files))
    vocabulary = vocabulary_of(options.tokenizer) if options.tokenizer else None
    reports = [_look(prefix, vocabulary, options) for prefix in prefixes]
    if options.fix and not options.dry_run:
        reports = [_fix(report, vocabulary, options) for report in reports]
    elif not options.json and any(report.repair for report in reports) and not options.fix:
        from core.language import tr
        from core.text.plain import plain

        words = ["llm-wizard", "data", "check", "--fix", *map(str, options.files)]
        words += ["--tokenizer", str(options.tokenizer)] if options.tokenizer else []
        print(tr("what can be mended here: {command}", command=plain(shlex.join(words))))
    status = max((report.status for report in reports), key=("pass", "warn", "fail").index)
    if options.json:
        _print({"schema_version": 1, "status": status, "files": [report.document() for report in reports]})
    return {"pass": ExitCode.DONE, "warn": ExitCode.WARNINGS, "fail": ExitCode.FAILED}[status]


def prefix_of(name: str) -> Path:
    """The prefix that a .bin, an .idx or a prefix names.

    Raises:
        InputError: there is neither of the two files, one of them is a folder, or they cannot be looked at.
    """
    from core.data.indexed import files_of

    path = Path(name)
    for ending in (".bin", ".idx"):
        if name.endswith(ending):
            path = path.with_name(path.name.removesuffix(ending))
            break
    try:
        folders = [file for file in files_of(path) if file.is_dir()]
        found = any(file.is_file() for file in files_of(path))
    except OSError as error:
        raise _unreadable(error, path) from None
    if folders:
        raise InputError(f"{folders[0]} is a folder; token files are two files", "move it away, or name another prefix")
    if not found:
        raise InputError(
            f"there is neither {path}.bin nor {path}.idx", "name the .bin, the .idx, or the path without either"
        )
    return path


def _unreadable(error: OSError, prefix: Path) -> InputError:
    return InputError(f"{error.filename or prefix} cannot be read: {error.strerror or error}")


def _look(prefix: Path, vocabulary: Vocabulary | None, options: argparse.Namespace) -> Report:
    from core.data.check import check
    from core.data.ends import no_progress

    show = sys.stderr.isatty() and not options.json
    try:
        report = check(prefix, vocabulary, _show_progress if show else no_progress)
    except OSError as error:
        raise _unreadable(error, prefix) from None
    if not options.json:
        _print_report(report)
    return report


def _show_progress(done: int, total: int) -> None:
    """Over itself on one line, and gone at the end: reading a terabyte takes half an hour."""
    print(f"\r{100 * done // total:3} %\r" if done < total else "\r     \r", end="", file=sys.stderr, flush=True)


def _print_report(report: Report) -> None:
    from core.doctor.text import status_text
    from core.language import tr
    from core.text.plain import plain

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(plain(str(report.prefix)))
    for one in report.found:
        print(f"  {status_text(one.status, colour)} {plain(f'{one.id:<22} {one.summary}')}")
        if one.why:
            print(f"      {tr('why')}: {plain(one.why)}")
        if one.hint:
            print(f"      -> {plain(one.hint)}")
    for line in report.repair.preview() if report.repair else ():
        print(f"      {tr('to mend it')}: {plain(line)}")


def _fix(report: Report, vocabulary: Vocabulary | None, options: argparse.Namespace) -> Report:
    """The report on what there is afterwards."""
    from core.language import tr

    if report.repair is None:
        return report
    if not options.yes and not _agreed(report):
        print(tr("left as it is: {file}", file=report.prefix))
        return report
    try:
        report.repair.carry_out()
    except WizardError as error:
        print(error, file=sys.stderr)
        return report
    return _look(report.prefix, vocabulary, options)


def _agreed(report: Report) -> bool:
    from core.language import tr

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError(
            f"{report.prefix} is to be asked about, and there is no terminal to ask on",
            "look at it with --dry-run, then add --yes",
        )
    try:
        answer = input(tr("mend {file} like this? [y/N] ", file=report.prefix))
    except (EOFError, KeyboardInterrupt):
        print()
        return False
    return answer.strip().lower() in ("y", "yes")


def _print(document: Any) -> None:
    print(json.dumps(document, ensure_ascii=False, indent=2), flush=True)
