"""`llm-wizard doctor`: its options, what it prints, how it exits."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import InputError, StageError
from core.exit_codes import ExitCode

if TYPE_CHECKING:
    from core.doctor.check import Check, Tier
    from core.doctor.finding import Finding, Status
    from core.doctor.needs import Needs

EVERYTHING = "every fix"
SLOW_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb; nothing heavy is imported for --help."""
    parser.add_argument("--preset", metavar="P", help="judge by what this preset's stages need (quickstart)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change a key of the preset")
    parser.add_argument(
        "--profile",
        choices=("original", "original-abci", "megatron-modern", "modern"),
        help="the environment to judge by; the preset's when not given",
    )
    parser.add_argument("--python", metavar="PATH", help="the training Python; the preset's when not given")
    parser.add_argument("--hostfile", metavar="F", type=Path, help="look at the nodes of this DeepSpeed hostfile")
    parser.add_argument("--nodes", metavar="A,B[1-9]", help="look at these nodes, over ssh")
    parser.add_argument(
        "--tier", choices=("quick", "full", "deep"), default="quick", help="how much to look at (quick)"
    )
    parser.add_argument("--only", action="append", default=[], metavar="ID,..", help="these checks or groups only")
    parser.add_argument("--skip", action="append", default=[], metavar="ID,..", help="not these checks or groups")
    parser.add_argument("--list", action="store_true", help="list the checks")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument(
        "--stream", action="store_true", help="print one JSON object a line, each as soon as it is known"
    )
    parser.add_argument(
        "--fix",
        nargs="?",
        const=EVERYTHING,
        metavar="ID,..",
        help="mend what these fixes or checks name; all when none is named",
    )
    parser.add_argument("--dry-run", action="store_true", help="with --fix: print the commands only")
    parser.add_argument("--yes", action="store_true", help="with --fix, or the deep tier: do not ask")
    parser.add_argument(
        "--strict", action="store_true", help="exit as for a failure on a warning or on what could not be observed"
    )
    parser.add_argument("--accept", metavar="ID", help="accept a check's finding; with --why and --until")
    parser.add_argument("--why", metavar="TEXT", help="with --accept: the reason")
    parser.add_argument("--until", metavar="DATE", help="with --accept: the last day, as 2027-01-31")


def doctor(options: argparse.Namespace) -> int:
    """Carry the verb out. Raises InputError for wrong usage."""
    from core.doctor.checks import CHECKS

    _refuse_contradictions(options)
    if options.list:
        return _list(choose_checks(CHECKS, "deep", options.only, options.skip), options.json)
    if options.accept:
        return _accept(options)
    checks = choose_checks(CHECKS, options.tier, options.only, options.skip)
    if any(check.tier == "deep" for check in checks) and not options.yes:
        _ask_for_deep()
    needs = gather_needs(options)
    if options.fix:
        return _fix(options, checks, needs)
    node = os.uname().nodename
    started = time.monotonic()
    if options.stream:
        for check in checks:
            _print_line({"kind": "check", **{k: v for k, v in check.document().items() if k != "fix"}})
    findings: list[Finding] = []
    try:
        with _SlowWarning(checks, needs.nodes, quiet=options.stream or options.json) as waiting:
            for finding in _examine(needs, checks, node, options.tier):
                waiting.seen(finding)
                findings.append(finding)
                if options.stream:
                    _print_line({"kind": "finding", **finding.document(), "group": finding.group})
    except KeyboardInterrupt:
        _report(options, [*findings, *_not_made(checks, findings, needs, node)], needs, started)
        raise
    return _report(options, findings, needs, started)


def _not_made(checks: list[Check], findings: list[Finding], needs: Needs, node: str) -> list[Finding]:
    """Unknown, each: the checks that an interruption came before."""
    from core.doctor.check import judge

    made = {(finding.id, finding.node) for finding in findings}
    places = {check.id: needs.nodes if needs.nodes and check.scope != "head" else (node,) for check in checks}
    return [
        judge(check, None, place, needs)
        for check in checks
        for place in places[check.id]
        if not {(check.id, place), (check.id, "all")} & made
    ]


def _report(options: argparse.Namespace, findings: list[Finding], needs: Needs, started: float) -> int:
    from core.doctor.checks import BY_ID
    from core.doctor.finding import overall, report
    from core.doctor.text import counts_text, report_text, stages_text
    from core.language import tr

    order = {check_id: number for number, check_id in enumerate(BY_ID)}
    findings = sorted(findings, key=lambda finding: order[finding.id])  # stable: nodes stay as they came
    status = overall(findings)
    stages = blocked_stages(findings, needs)
    if options.stream:
        _print_line({"kind": "report", "status": status, "stages": stages})
    elif options.json:
        _print_document({**report(findings), "profile": needs.profile.name, "stages": stages})
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        width = shutil.get_terminal_size((130, 24)).columns  # 130 where it goes to a file
        print(report_text(findings, colour, command_of(options), width))
        print()
        if text := stages_text(stages, width):
            print(text)
        seconds = f"{time.monotonic() - started:.1f}"
        print(
            tr(
                "{counts}; profile {profile}, {seconds} s",
                counts=counts_text(findings),
                profile=needs.profile.name,
                seconds=seconds,
            )
        )
        if any(finding.fix and finding.fix.runnable and finding.is_problem for finding in findings):
            print(tr("what can be mended here: {command}", command=f"{command_of(options)} --fix --dry-run"))
    return exit_code(status, options.strict)


def command_of(options: argparse.Namespace) -> str:
    """The doctor as it was called, as far as it decides what is looked at: what is typed next must look at the same."""
    words = ["llm-wizard", "doctor"]
    for name in ("preset", "profile", "python", "hostfile", "nodes"):
        if value := getattr(options, name):
            words += [f"--{name}", str(value)]
    for change in options.set:
        words += ["--set", change]
    if options.tier != "quick":
        words += ["--tier", options.tier]
    return shlex.join(words)


def exit_code(status: Status, strict: bool) -> ExitCode:
    """design.md's table: 0 all pass, 1 warnings only, 2 a failure, 3 something unknown and no failure."""
    if strict and status in ("warn", "unknown"):
        return ExitCode.FAILED
    return {"fail": ExitCode.FAILED, "unknown": ExitCode.UNKNOWN, "warn": ExitCode.WARNINGS}.get(status, ExitCode.DONE)


def choose_checks(checks: Iterable[Check], tier: Tier, only: list[str], skip: list[str]) -> list[Check]:
    """The checks of this tier and the ones below; a check that --only names is made whatever its tier.

    Raises:
        InputError: an id that is neither a check nor a group.
    """
    from core.doctor.check import GROUPS, TIERS, nearest

    checks = list(checks)
    wanted, unwanted = _names(only), _names(skip)
    known = [check.id for check in checks] + list(GROUPS)
    for name in (*wanted, *unwanted):
        if name not in known:
            hint = nearest(name, known, "`llm-wizard doctor --list` shows them")
            raise InputError(f"there is no check {name!r}", hint)
    allowed = TIERS[: TIERS.index(tier) + 1]
    return [
        check
        for check in checks
        if (check.id in wanted or (check.tier in allowed and (not wanted or check.group in wanted)))
        and check.id not in unwanted
        and check.group not in unwanted
    ]


def gather_needs(options: argparse.Namespace) -> Needs:
    """What the preset (the quickstart's without one) needs of this machine, for the profile asked for or the preset's own."""
    from core.cluster.inventory import expand, read_hostfile
    from core.doctor.examine import probe_timeout
    from core.doctor.needs import needs_for
    from core.facts import facts_for, find_gpus_in_time
    from core.plan import make_plan
    from core.preset_source import load_preset
    from core.runs.directory import RunDirectory

    try:
        python = [f"cluster.python={Path(options.python).expanduser().absolute()}"] if options.python else []
    except RuntimeError as error:  # ~somebody
        raise InputError(f"--python {options.python}: {error}") from None
    loaded = load_preset(options.preset or "quickstart", [*options.set, *python])
    preset, runs_dir = loaded.preset, options.runs_dir.absolute()
    try:
        gpus = find_gpus_in_time(min(15.0, probe_timeout()))
    except StageError:
        gpus = ()  # the checks of the driver say so
    plan = make_plan(preset, loaded.name, facts_for(preset, runs_dir, gpus), RunDirectory(runs_dir / "doctor"))
    slots = read_hostfile(options.hostfile) if options.hostfile else {}
    nodes = expand(options.nodes) if options.nodes else tuple(slots)
    needs = needs_for(plan.document(), options.profile)
    return replace(needs, folder=str(runs_dir), nodes=nodes, slots=slots)


def blocked_stages(findings: Iterable[Finding], needs: Needs) -> dict[str, list[str]]:
    """Each stage of the plan, with the failed checks that stand in its way."""
    from core.doctor.checks import BY_ID
    from core.doctor.needs import TRAINING

    blocked: dict[str, list[str]] = {stage: [] for stage in needs.stages}
    for finding in findings:
        if finding.status != "fail":
            continue
        stages = finding.verdict.stages
        if stages is None:
            reach = BY_ID[finding.id].stages
            stages = {"training": TRAINING, "uploading": needs.uploads, "every": needs.stages}[reach]
        for stage in stages:
            if stage in blocked and finding.id not in blocked[stage]:
                blocked[stage].append(finding.id)
    return blocked


def _examine(needs: Needs, checks: list[Check], node: str, tier: str) -> Iterator[Finding]:
    from core.doctor.accepted import accepted, demoted
    from core.doctor.examine import examine
    from core.doctor.fleet import examine_fleet
    from core.doctor.home import accepted_file

    acceptances, today = accepted(accepted_file()), datetime.date.today()
    imports = tier != "quick"
    found = examine_fleet(needs, checks, imports) if needs.nodes else examine(needs, checks, node, imports)
    for finding in found:
        yield demoted(finding, acceptances, today)


def _fix(options: argparse.Namespace, checks: list[Check], needs: Needs) -> int:
    from core.doctor.check import judge
    from core.doctor.checks import CHECKS
    from core.doctor.examine import observe, wanted_of
    from core.doctor.fleet import examine_fleet
    from core.doctor.home import fixes_folder
    from core.doctor.mend import OBSERVED_BY_SETUP, carry_out, jobs_of, jobs_text, refuse_while_running
    from core.language import tr

    node = os.uname().nodename
    asked = None if options.fix == EVERYTHING else frozenset(_names([options.fix]))

    def look(names: frozenset[str]) -> tuple[list[Finding], Mapping[str, Mapping[str, Any]]]:
        """This machine, whose values decide on the set-up, and all nodes where some are named."""
        imports = options.tier != "quick"
        chosen = [check for check in CHECKS if check.id in names]
        here = [check for check in chosen if not (needs.nodes and check.scope == "pair")]
        seen = {one.id: one for one in observe(needs.python, wanted_of(needs, here, imports), node)}
        values = {name: one.value for name, one in seen.items() if one.value is not None}
        findings = [judge(check, seen.get(check.observation), node, needs) for check in here]
        if needs.nodes:
            findings += examine_fleet(needs, [check for check in chosen if check.scope != "head"], imports)
        return findings, values

    names = frozenset(check.id for check in checks)
    named_checks = (asked or frozenset()) & {check.id for check in CHECKS}
    findings, values = look(names | named_checks | (OBSERVED_BY_SETUP if needs.megatron else frozenset()))
    jobs = jobs_of(findings, values, needs, asked)
    if options.json:
        documents = [{**job.fix.document(), "checks": sorted(job.checks), "title": job.title} for job in jobs]
        _print_document({"schema_version": 1, "fixes": documents})
        return ExitCode.DONE
    if not jobs:
        print(tr("nothing that can be mended from here was found"))
        return ExitCode.DONE
    if options.dry_run:
        print(jobs_text(jobs))
        return ExitCode.DONE
    refuse_while_running(options.runs_dir.absolute())
    left = []
    if asked is None and options.yes:
        # What is the user's to decide (whether a host key is the right one) is no part of a yes to everything.
        left = [job for job in jobs if job.fix.question]
        jobs = [job for job in jobs if job not in left]
        for job in left:
            print(tr("left as it is: {fix}", fix=job.fix.id))
    done = carry_out(jobs, needs, look, options.yes, fixes_folder(), lambda line: print(line, flush=True))
    return ExitCode.DONE if done and not left else ExitCode.FAILED


def _accept(options: argparse.Namespace) -> int:
    from core.doctor.accepted import accept
    from core.doctor.check import nearest
    from core.doctor.checks import BY_ID
    from core.doctor.home import accepted_file
    from core.language import tr

    if options.accept not in BY_ID:
        raise InputError(f"there is no check {options.accept!r}", nearest(options.accept, BY_ID, "see --list"))
    if not options.why or not options.until:
        raise InputError("--accept needs a reason and a last day", "--accept ID --why TEXT --until 2027-01-31")
    one = accept(accepted_file(), options.accept, options.why, options.until)
    print(tr("{id} is accepted until {until} (kept in {file})", id=one.id, until=one.until, file=accepted_file()))
    return ExitCode.DONE


def _list(checks: list[Check], as_json: bool) -> int:
    from core.doctor.text import list_text

    documents = [check.document() for check in checks]
    if as_json:
        _print_document({"schema_version": 1, "checks": documents})
    else:
        print(list_text(documents))
    return ExitCode.DONE


def _refuse_contradictions(options: argparse.Namespace) -> None:
    if options.dry_run and not options.fix:
        raise InputError("--dry-run shows what --fix would do", "add --fix")
    if options.stream and (options.json or options.fix or options.list):
        raise InputError("--stream goes with none of --json, --fix and --list")
    if options.hostfile and options.nodes:
        raise InputError("--hostfile and --nodes both name the nodes", "give one of them")
    if (options.why or options.until) and not options.accept:
        raise InputError("--why and --until go with --accept")
    if options.json and options.fix and not options.dry_run:
        raise InputError("--fix --json shows what would be done", "add --dry-run")


def _ask_for_deep() -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError(
            "the deep tier puts a load on every GPU for minutes", "where nothing else runs there, add --yes"
        )
    from core.language import tr

    try:
        answer = input(tr("The deep tier puts a load on every GPU for minutes. Go on? [y/N] "))
    except EOFError:  # Ctrl-D
        print()
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise InputError("nothing was looked at", "`--tier full` disturbs nobody")


def _names(options: list[str]) -> list[str]:
    return [name.strip() for option in options for name in option.split(",") if name.strip()]


def _print_line(document: Mapping[str, Any]) -> None:
    print(json.dumps(document, ensure_ascii=False), flush=True)


def _print_document(document: Mapping[str, Any]) -> None:
    print(json.dumps(document, ensure_ascii=False, indent=2), flush=True)


class _SlowWarning:
    """Says on stderr, after ten seconds, which checks are still awaited, or from which nodes nothing has come."""

    def __init__(self, checks: list[Check], nodes: tuple[str, ...], quiet: bool) -> None:
        self._checks = {check.id for check in checks}
        self._nodes = set(nodes)
        self._timer = threading.Timer(SLOW_S, self._warn) if not quiet else None

    def seen(self, finding: Finding) -> None:
        self._checks.discard(finding.id)
        self._nodes.discard(finding.node)

    def _warn(self) -> None:
        from core.doctor.fold import nodes_text
        from core.language import tr

        if self._nodes:
            text = tr("still waiting for {nodes}", nodes=nodes_text(sorted(self._nodes)))
        else:
            text = tr("still looking at {checks}", checks=", ".join(sorted(self._checks)[:6]))
        print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> _SlowWarning:
        if self._timer:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
