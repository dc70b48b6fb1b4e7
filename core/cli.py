"""The verbs of `llm-wizard`: parse, call, print, exit. Everything else is imported when a verb needs it, because
`--help` must answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from core import __version__
from core.encoding import use_terminal_encoding
from core.errors import InputError, WizardError
from core.exit_codes import ExitCode
from core.language import LANGUAGES, choose_language, set_language
from core.runs.default import default_runs_dir

if TYPE_CHECKING:
    from core.plan import Plan
    from core.runs.directory import RunDirectory
    from core.runs.state import Status

DESCRIPTION = "From raw text to a chat-tuned language model: tokenizer, pretraining, conversion, fine-tuning, upload."
EPILOG = """exit codes: 0 done; 1 warnings only; 2 a check or a run failed; 3 could not be observed;
64 wrong usage or an invalid preset; 130 interrupted or stopped"""


class _Parser(argparse.ArgumentParser):
    """argparse with the exit code of the table instead of 2."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(ExitCode.USAGE)


Face = Callable[[argparse.Namespace], int]


def main(argv: list[str] | None = None, screen: Face | None = None, prompts: Face | None = None) -> int:
    """Carry out one command line. `screen` shows the terminal UI (no verb), `prompts` asks line by line (`init`); they
    are passed in, because core imports neither.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _build_parser(argv)
    options = parser.parse_args(argv)
    use_terminal_encoding()
    set_language(choose_language(options.lang, encoding=sys.stdout.encoding))
    options.print_help = parser.print_help
    call = {None: screen, "init": prompts}.get(options.verb) or getattr(options, "call", None)
    if call is None:
        parser.print_help()
        return ExitCode.USAGE
    try:
        return int(call(options))
    except WizardError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE


def _build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all verbs; doctor and diagnose have their options where `argv` names them."""
    parser = _Parser(
        "llm-wizard", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"llm-wizard {__version__}")
    parser.add_argument("--no-mouse", action="store_true", help="the terminal UI leaves the mouse to the terminal")
    parser.add_argument("--ascii", action="store_true", help="the terminal UI draws with ASCII characters only")
    _add_shared(parser, runs_dir=default_runs_dir(), lang=None)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)

    def add(name: str, call: Any, text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
        verb.set_defaults(call=call)
        return verb

    run = add("run", _run, "run a preset, from its first stage to its last")
    plan = add("plan", _plan, "show what a run would do: commands, files, batch arithmetic, memory, time")
    for verb in (run, plan):
        verb.add_argument("preset", metavar="PRESET", help="a name from `llm-wizard presets`, or a file")
        verb.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change a key of the preset")
        verb.add_argument("--name", metavar="N", help="the run's name; the preset's when not given")
        verb.add_argument("--from", dest="first", metavar="STAGE", help="start with this stage")
        verb.add_argument("--until", dest="last", metavar="STAGE", help="end with this stage")
    run.add_argument("--detach", action="store_true", help="return at once; the run goes on by itself")
    run.add_argument(
        "--submit", action="store_true", help="run as a Slurm job, which saves and queues again at its time limit"
    )
    run.add_argument("--dry-run", action="store_true", help="the same as `llm-wizard plan`")

    attach = add("attach", _attach, "follow a run again")
    status = add("status", _status, "say how a run, or every run, is doing")
    logs = add("logs", _logs, "print the log of a stage")
    stop = add("stop", _stop, "stop a run; it saves its work first")
    resume = add("resume", _resume, "go on with a run that failed, was stopped or lost its machine")
    for verb, needed in ((attach, True), (status, False), (logs, True), (stop, True), (resume, True)):
        verb.add_argument("run", metavar="RUN", nargs=None if needed else "?", help="a run's name, or its folder")
    logs.add_argument("stage", metavar="STAGE", nargs="?", help="the stage that runs or ran last when not given")
    logs.add_argument("-f", "--follow", action="store_true", help="go on printing as the log grows")
    resume.add_argument("--detach", action="store_true", help="return at once; the run goes on by itself")
    resume.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="change a key first, such as cluster.nodes"
    )
    resume.add_argument("--submit", action="store_true", help="go on as a Slurm job")

    init = add("init", None, "answer questions line by line; the answers become a preset")
    init.add_argument("preset", metavar="PRESET", nargs="?", help="the preset to begin with; asked for when not given")
    init.add_argument("--output", metavar="FILE", type=Path, help="where to write it; asked for when not given")

    doctor = add("doctor", _doctor, "find what is wrong with the environment, and mend it")
    diagnose = add("diagnose", _diagnose, "say why a run failed, from its logs")
    data = add("data", _data, "check Megatron's token files, and mend them")
    # Importing their modules for nothing would add half to the time of --help.
    if "doctor" in argv:
        from core.doctor.verb import add_arguments as add_doctor_arguments

        add_doctor_arguments(doctor)
    if "diagnose" in argv:
        from core.troubleshoot.verb import add_arguments as add_diagnose_arguments

        add_diagnose_arguments(diagnose)
    if "data" in argv:
        from core.data.verb import add_arguments as add_data_arguments

        add_data_arguments(data)

    presets = add("presets", _presets, "list, show or check presets")
    presets.add_argument("action", nargs="?", choices=("list", "show", "check"), default="list")
    presets.add_argument("names", nargs="*", metavar="NAME")

    monitor = add("monitor", _monitor, "show GPUs, load and processes of this machine or of nodes, without a run")
    monitor.add_argument("--once", action="store_true", help="print one time and end")
    monitor.add_argument("--hostfile", metavar="F", type=Path, help="the nodes of this DeepSpeed hostfile")
    monitor.add_argument(
        "--nodes", metavar="A,B[1-9]", default="", help="these nodes, over ssh; inside a Slurm job its own"
    )
    monitor.add_argument(
        "--python", metavar="PATH", help="a Python of the nodes, 3.8 or newer; this one when not given"
    )

    for verb in (run, plan, status, presets, resume, monitor):
        verb.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    for verb in verbs.choices.values():
        _add_shared(verb)
    return parser


def _add_shared(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Options that stand before or after the verb; one that is not given after it must not undo the one before."""
    missing = argparse.SUPPRESS
    parser.add_argument(
        "--runs-dir",
        metavar="DIR",
        type=Path,
        default=defaults.get("runs_dir", missing),
        help="where runs are kept (runs)",
    )
    parser.add_argument(
        "--lang",
        choices=LANGUAGES,
        default=defaults.get("lang", missing),
        help="the language of screens and reports (LANG's)",
    )


def _print_json(document: Any) -> None:
    import orjson

    sys.stdout.buffer.write(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.flush()


def _sets(options: argparse.Namespace) -> list[str]:
    """What changes the preset: --set, and that a submitted run is Slurm's."""
    return [*options.set, "cluster.launcher=slurm"] if getattr(options, "submit", False) else options.set


def _make_plan(options: argparse.Namespace) -> tuple[Plan, RunDirectory]:
    from core.facts import facts_for
    from core.plan import make_plan
    from core.preset_source import load_preset
    from core.runs.directory import RunDirectory, check_run_name

    loaded = load_preset(options.preset, _sets(options))
    run = RunDirectory(options.runs_dir.absolute() / check_run_name(options.name or loaded.name))
    facts = facts_for(loaded.preset, options.runs_dir.absolute())
    return make_plan(loaded.preset, loaded.name, facts, run, options.first, options.last), run


def _plan(options: argparse.Namespace) -> int:
    plan, _ = _make_plan(options)
    if options.json:
        _print_json(plan.document())
    else:
        from core.plan_text import plan_text

        print(plan_text(plan), end="")
    return ExitCode.DONE


def _run(options: argparse.Namespace) -> int:
    if options.dry_run:
        return _plan(options)
    from core.preflight import check_plan
    from core.runs.create import fill, reserve

    plan, run = _make_plan(options)
    check_plan(plan, run.root)
    reserve(options.runs_dir, run.name)
    fill(run, plan)
    return _submit(run, options) if options.submit else _start(run, options)


def _submit(run: RunDirectory, options: argparse.Namespace) -> int:
    from core.cluster.slurm_job import submit_run
    from core.files import read_json
    from core.runs.state import read_status

    job = submit_run(run, read_json(run.plan))
    if options.json:
        _print_json(read_status(run).document)
    else:
        print(
            f"run {run.name} is Slurm job {job}; `llm-wizard attach {run.name}` follows it, `llm-wizard stop {run.name}` ends it"
        )
    return ExitCode.DONE


def _resume(options: argparse.Namespace) -> int:
    from core.runs.state import find_run, read_status

    run = find_run(options.run, options.runs_dir)
    state = read_status(run).state
    if state == "running":
        raise InputError(f"run {run.name} is running", f"follow it with `llm-wizard attach {run.name}`")
    if state == "queued":
        raise InputError(
            f"run {run.name} is queued in Slurm, and goes on there by itself",
            f"take it out of the queue with `llm-wizard stop {run.name}` first",
        )
    if sets := _sets(options):
        from core.runs.replan import replan

        replan(run, sets)
    return _submit(run, options) if options.submit else _start(run, options)


def _start(run: RunDirectory, options: argparse.Namespace) -> int:
    from core.runs.start import start_supervisor
    from core.runs.state import read_status

    start_supervisor(run)
    if options.detach:
        if options.json:
            _print_json(read_status(run).document)
        else:
            print(f"run {run.name} goes on by itself; `llm-wizard attach {run.name}` follows it")
        return ExitCode.DONE
    return _follow(run, as_json=options.json)


def _attach(options: argparse.Namespace) -> int:
    from core.runs.state import find_run

    return _follow(find_run(options.run, options.runs_dir), as_json=False)


def _follow(run: RunDirectory, as_json: bool) -> int:
    """Show the run until it ends; returns the run's own exit code."""
    from core.runs.line_view import LineView, summary
    from core.runs.state import ENDED, read_status

    if as_json:
        import time

        while (status := read_status(run)).state not in ENDED:
            time.sleep(0.2)
        _print_json(status.document)
        return _exit_code(status)
    view = LineView(run)
    while True:
        try:
            status = view.follow()
            break
        except KeyboardInterrupt:
            view.close()
            if not _asks_to_stop(run):
                print(f"detached; the run goes on. `llm-wizard attach {run.name}` follows it")
                return ExitCode.INTERRUPTED
            _request_stop(run)
    print(summary(status))
    return _exit_code(status)


def _asks_to_stop(run: RunDirectory) -> bool:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        answer = input(f"[d]etach (run {run.name} goes on) or [s]top it? [d] ")
    except (KeyboardInterrupt, EOFError):
        print()
        return False
    return answer.strip().lower() in ("s", "stop")


def _request_stop(run: RunDirectory) -> None:
    from core.runs import requests

    requests.ask(run, requests.STOP)
    print("stopping; the stage saves its work first", flush=True)


def _exit_code(status: Status) -> int:
    if status.state == "lost":
        return ExitCode.FAILED
    return status.exit_code if status.exit_code is not None else ExitCode.FAILED


def _status(options: argparse.Namespace) -> int:
    from core.runs.line_view import ended_line, running_line, summary
    from core.runs.state import find_run, list_runs, read_status

    if options.run is None:
        statuses = [read_status(run) for run in list_runs(options.runs_dir)]
        if options.json:
            _print_json({"schema_version": 1, "runs": [status.document for status in statuses]})
        elif not statuses:
            print(f"no runs in {options.runs_dir}")
        else:
            for status in statuses:
                print(f"{status.state:<8} {status.run.name:<30} {status.document['stage'] or ''}")
        return ExitCode.DONE
    status = read_status(find_run(options.run, options.runs_dir))
    if options.json:
        _print_json(status.document)
        return ExitCode.DONE
    for stage_id, stage in status.document["stages"].items():
        running = stage["state"] == "running"
        print(running_line(status.run, stage_id, stage) if running else ended_line(stage_id, stage))
    print(summary(status) or f"run {status.run.name} is running")
    return ExitCode.DONE


def _doctor(options: argparse.Namespace) -> int:
    from core.doctor.verb import doctor

    return doctor(options)


def _diagnose(options: argparse.Namespace) -> int:
    from core.troubleshoot.verb import diagnose_verb

    return diagnose_verb(options)


def _logs(options: argparse.Namespace) -> int:
    from core.runs.log_view import print_log
    from core.runs.state import find_run

    print_log(find_run(options.run, options.runs_dir), options.stage, options.follow, sys.stdout)
    return ExitCode.DONE


def _stop(options: argparse.Namespace) -> int:
    from core.runs.line_view import LineView, summary
    from core.runs.state import find_run, read_status

    run = find_run(options.run, options.runs_dir)
    status = read_status(run)
    if status.state == "queued":
        from core.cluster.slurm_job import leave_queue

        if leave_queue(run):
            print(f"job {status.document['job']} was cancelled; run {run.name} had not begun, or was waiting to go on")
            return ExitCode.DONE
        status = read_status(run)
    if status.state != "running":
        print(f"run {run.name} is not running: {status.state}")
        return ExitCode.DONE
    _request_stop(run)
    status = LineView(run).follow()
    print(summary(status))
    return ExitCode.DONE if status.state in ("stopped", "done") else ExitCode.FAILED


def _monitor(options: argparse.Namespace) -> int:
    from core.cluster.monitor import monitor, watched_nodes

    if options.nodes and options.hostfile:
        raise InputError("give --nodes or --hostfile, not both")
    nodes = watched_nodes(options.nodes, options.hostfile, options.python or sys.executable)
    document = monitor(nodes, options.once, options.json)
    if document is not None:
        _print_json(document)
    return ExitCode.DONE


def _data(options: argparse.Namespace) -> int:
    from core.data.verb import data

    return data(options)


def _presets(options: argparse.Namespace) -> int:
    import shutil

    from core.preset_listing import preset_row, preset_table
    from core.preset_source import find_preset, load_preset, shipped_presets

    if options.action == "show":
        if len(options.names) != 1:
            raise InputError("presets show takes one name", f"one of: {', '.join(shipped_presets())}")
        path = find_preset(options.names[0])
        if options.json:
            _print_json(load_preset(options.names[0]).preset.model_dump())
        else:
            print(path.read_text(encoding="utf-8"), end="")
        return ExitCode.DONE
    if options.action == "check":
        if not options.names:
            raise InputError("presets check takes at least one file")
        checked = [load_preset(name) for name in options.names]
        documents = [{"name": loaded.name, "file": str(loaded.path), "valid": True} for loaded in checked]
    else:
        documents = [preset_row(name, path) for name, path in shipped_presets().items()]
    if options.json:
        _print_json({"schema_version": 1, "presets": documents})
    elif options.action == "check":
        for document in documents:
            print(f"{document['name']:<24} valid")
    else:
        print(preset_table(documents, shutil.get_terminal_size((80, 24)).columns), end="")
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
