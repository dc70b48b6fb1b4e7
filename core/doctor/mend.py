"""The fixes that findings offer, in their order: shown, asked about, carried out with a log, and checked again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.doctor import setup
from core.doctor.apply import apply
from core.doctor.check import nearest
from core.doctor.checks import BY_ID, CHECKS
from core.doctor.finding import Finding
from core.doctor.fix import Fix, Step
from core.doctor.fold import nodes_text
from core.doctor.home import ELSEWHERE
from core.doctor.needs import Needs
from core.errors import InputError, StageError
from core.language import tr
from core.runs.lock import lock_owner
from core.runs.state import list_runs
from core.text.plain import plain

Again = Callable[[frozenset[str]], tuple[list[Finding], Mapping[str, Mapping[str, Any]]]]
"""Looks again at the checks named: their findings on this machine and on all nodes, and this machine's values."""


@dataclass(frozen=True)
class Job:
    """A fix to carry out, the checks that asked for it, and the set-up step it is, if it is one."""

    fix: Fix
    checks: frozenset[str]
    title: str
    step: setup.SetupStep | None = None


OBSERVED_BY_SETUP = frozenset(
    (
        "python.env",
        "python.pins",
        "python.ld_library_path",
        "cuda.nvcc_vs_torch",
        "build.cxx",
        "megatron.import",
        "megatron.helpers",
        "apex.so",
        "flash.so",
    )
)
"""The checks whose values decide which steps of the set-up are done."""


def jobs_of(
    findings: Iterable[Finding], values: Mapping[str, Mapping[str, Any]], needs: Needs, asked: frozenset[str] | None
) -> list[Job]:
    """What can be mended, in order: the set-up of the profile first, then fixes by their findings.

    `asked` are ids of fixes or checks; None for all.

    Raises:
        InputError: an id is asked for that nothing offers.
    """
    findings = [finding for finding in findings if finding.fix and finding.is_problem]
    by_fix: dict[str, list[Finding]] = {}
    for finding in findings:
        assert finding.fix is not None
        by_fix.setdefault(finding.fix.id, []).append(finding)
    jobs: list[Job] = []
    if needs.megatron:
        for step in setup.missing_steps(values, needs):
            checks = frozenset(finding.id for finding in by_fix.get(step.id, []))
            jobs.append(Job(step.build(needs), checks, tr(step.title), step))
    known = {job.fix.id for job in jobs}
    for fix_id, members in by_fix.items():
        # What is shown as text for another node does not belong to what is done here.
        members = [member for member in members if member.fix and member.fix.runnable] or members
        fix = _together(members)
        if fix_id not in known and fix.runnable:
            jobs.append(Job(fix, frozenset(finding.id for finding in members), members[0].summary))
    if asked is None:
        return jobs
    offered = {name for job in jobs for name in (job.fix.id, *job.checks)}
    if unknown := asked - offered:
        by_hand = [
            finding for finding in findings if finding.id in unknown or (finding.fix and finding.fix.id in unknown)
        ]
        if by_hand:
            where = f", on {nodes_text(sorted({finding.node for finding in by_hand}))}" if needs.nodes else ""
            ids = dict.fromkeys(finding.id for finding in by_hand)
            raise InputError(
                f"{', '.join(sorted(unknown))}: this has to be done by hand{where}",
                f"llm-wizard doctor --only {','.join(ids)} says there what to type",
            )
        known_ids = {*BY_ID, *setup.BY_ID, *(check.fix for check in CHECKS if check.fix)}
        for name in sorted(unknown - known_ids):
            hint = nearest(name, known_ids, "`llm-wizard doctor --list --json` shows them")
            raise InputError(f"there is no check or fix {name!r}", hint)
        raise InputError(
            f"nothing is to be mended by {', '.join(sorted(unknown))}",
            f"what can be mended now: {', '.join(sorted(offered)) or 'nothing'}",
        )
    return [job for job in jobs if asked & {job.fix.id, *job.checks}]


def _together(members: list[Finding]) -> Fix:
    """One fix for what a check found on several nodes: each step and each line of advice once."""
    fixes = [member.fix for member in members if member.fix and member.id == members[0].id]
    steps: list[Step] = []
    for step in (step for fix in fixes for step in fix.steps):
        if step not in steps:
            steps.append(step)
    advice = dict.fromkeys(line for fix in fixes for line in fix.advice)
    return replace(fixes[0], steps=tuple(steps), advice=tuple(advice))


def jobs_text(jobs: list[Job]) -> str:
    """Every command, in order: what --dry-run prints."""
    lines = []
    for number, job in enumerate(jobs, 1):
        lines.append(f"# {number}/{len(jobs)} {job.fix.id} ({job.fix.risk}): {job.title}")
        lines += list(job.fix.preview)
    return plain("\n".join(lines))


def refuse_while_running(runs_dir: Path) -> None:
    """Raises StageError where a run holds its lock: a fix must not change what it runs on."""
    for run in list_runs(runs_dir):
        if owner := lock_owner(run):
            raise StageError(
                f"run {run.name} is running (pid {owner.get('pid', '?')} on {owner.get('host', '?')}): nothing is mended under it",
                f"llm-wizard stop {run.name}, or wait for its end",
            )


def carry_out(jobs: list[Job], needs: Needs, again: Again, yes: bool, logs: Path, say: Callable[[str], None]) -> bool:
    """Do the jobs one after the other; True where each passed its check afterwards, on all nodes where there are some.

    What was done before is passed over, so that the same command goes on where it stopped. Asks before what is not safe.

    Raises:
        InputError: it would have to ask, and there is no terminal.
        StageError: the log cannot be written.
    """
    everywhere = True
    for number, job in enumerate(jobs, 1):
        say(f"# {number}/{len(jobs)} {job.fix.id} ({job.fix.risk}): {job.title}")
        for line in job.fix.preview:
            say(f"  {line}")
        if (job.fix.risk != "safe" or job.fix.question) and not yes and not _agreed(job.fix):
            say(tr("left as it is: {fix}", fix=job.fix.id))
            return False
        log = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{job.fix.id}.log"
        try:
            logs.mkdir(parents=True, exist_ok=True, mode=0o700)
            log.touch()
        except OSError as error:
            raise StageError(f"the log {log} cannot be written: {error}", ELSEWHERE) from None
        try:
            with log.open("w", encoding="utf-8", errors="replace") as file:

                def tell(line: str, file: Any = file) -> None:
                    file.write(line + "\n")
                    file.flush()
                    say("    " + plain(line))

                for step in job.fix.steps:
                    file.write("$ " + "\n$ ".join(step.preview()) + "\n")
                    apply(step, tell)
        except StageError as error:
            say(f"{error}")
            say(tr("the log is {log}; the same command goes on here once it is mended", log=log))
            return False
        say(tr("the log is {log}", log=log))
        findings, values = again(job.checks | (OBSERVED_BY_SETUP if job.step else frozenset()))
        mine = [finding for finding in findings if finding.id in job.checks]
        # Where the set-up stands is decided by values; other nodes that lack it don't hold it up here.
        passed = not any(finding.status in ("fail", "unknown") for finding in mine)
        if job.step is not None and not _is_done(job.step, values, needs):
            say(tr("{fix} ran, but is not done", fix=job.fix.id))
            _tell_of(mine, needs, say)
            return False
        if job.step is not None:
            say(tr("done: {fix}", fix=job.fix.id))
        if job.step is None or needs.nodes:
            _tell_of(mine, needs, say)
            everywhere = everywhere and passed
        if job.step is None and not passed:
            return False
    return everywhere


def _is_done(step: setup.SetupStep, values: Mapping[str, Mapping[str, Any]], needs: Needs) -> bool:
    # conda's installer leaves nothing that the probe sees before the next step has made an environment.
    return step.id == "setup.conda" or step.id not in {undone.id for undone in setup.missing_steps(values, needs)}


def _tell_of(findings: list[Finding], needs: Needs, say: Callable[[str], None]) -> None:
    """The findings after a fix, said once for the nodes that are alike."""
    from core.doctor.text import alike, finding_text

    several = len({finding.node for finding in findings}) > 1
    for nodes, same in alike(findings):
        names = [name for node in nodes for name in (needs.nodes if node == "all" else (node,))]
        for finding in same:
            say(finding_text(finding, nodes=nodes_text(names) if several else ""))


def _agreed(fix: Fix) -> bool:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError(
            f"{fix.id} is to be asked about, and there is no terminal to ask on",
            "look at it with --dry-run, then add --yes",
        )
    try:
        answer = input(fix.question or tr("do this? [y/N] "))
    except (EOFError, KeyboardInterrupt):
        print()
        return False
    return answer.strip().lower() in ("y", "yes")
