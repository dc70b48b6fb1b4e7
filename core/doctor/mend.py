"""The fixes that findings offer, in their order: shown, asked about, carried out with a log, and checked again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.doctor import setup
from core.doctor.apply import apply
from core.doctor.finding import Finding
from core.doctor.fix import Fix
from core.doctor.needs import Needs
from core.errors import InputError, StageError
from core.language import tr
from core.runs.lock import lock_owner
from core.runs.state import list_runs
from core.text.plain import plain

Again = Callable[[frozenset[str]], tuple[list[Finding], Mapping[str, Mapping[str, Any]]]]
"""Looks again at the checks named: their findings and values."""


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
    """What can be mended, in order: the set-up of the original profile first, then fixes by their findings.

    `asked` are ids of fixes or checks; None for all.

    Raises:
        InputError: an id is asked for that nothing offers.
    """
    findings = [finding for finding in findings if finding.fix and finding.status in ("warn", "fail", "unknown")]
    by_fix: dict[str, list[Finding]] = {}
    for finding in findings:
        assert finding.fix is not None
        by_fix.setdefault(finding.fix.id, []).append(finding)
    jobs: list[Job] = []
    if needs.original:
        for step in setup.missing_steps(values, needs):
            checks = frozenset(finding.id for finding in by_fix.get(step.id, []))
            jobs.append(Job(step.build(needs), checks, tr(step.title), step))
    known = {job.fix.id for job in jobs}
    for fix_id, members in by_fix.items():
        fix = members[0].fix
        if fix_id not in known and fix is not None and fix.runnable:
            jobs.append(Job(fix, frozenset(finding.id for finding in members), members[0].summary))
    if asked is None:
        return jobs
    offered = {name for job in jobs for name in (job.fix.id, *job.checks)}
    if unknown := asked - offered:
        only_text = [
            finding.id for finding in findings if finding.id in unknown or (finding.fix and finding.fix.id in unknown)
        ]
        if only_text:
            raise InputError(
                f"{', '.join(sorted(unknown))}: this has to be done by hand",
                f"llm-wizard doctor --only {','.join(only_text)} says what to type",
            )
        raise InputError(
            f"nothing is to be mended by {', '.join(sorted(unknown))}",
            f"what can be mended now: {', '.join(sorted(offered)) or 'nothing'}",
        )
    return [job for job in jobs if asked & {job.fix.id, *job.checks}]


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
    """Do the jobs one after the other; True where each passed its check afterwards.

    What was done before is passed over, so that the same command goes on where it stopped. Asks before what is not safe.

    Raises:
        InputError: it would have to ask, and there is no terminal.
    """
    for number, job in enumerate(jobs, 1):
        say(f"# {number}/{len(jobs)} {job.fix.id} ({job.fix.risk}): {job.title}")
        for line in job.fix.preview:
            say(f"  {line}")
        if job.fix.risk != "safe" and not yes and not _agreed(job.fix):
            say(tr("left as it is: {fix}", fix=job.fix.id))
            return False
        log = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{job.fix.id}.log"
        logs.mkdir(parents=True, exist_ok=True, mode=0o700)
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
        if not _passes(job, needs, again, say):
            return False
    return True


def _passes(job: Job, needs: Needs, again: Again, say: Callable[[str], None]) -> bool:
    from core.doctor.text import finding_text

    findings, values = again(job.checks | (OBSERVED_BY_SETUP if job.step else frozenset()))
    mine = [finding for finding in findings if finding.id in job.checks]
    if job.step is not None:
        undone = {step.id for step in setup.missing_steps(values, needs)}
        # conda's installer leaves nothing that the probe sees before the next step has made an environment.
        if job.step.id in undone and job.step.id != "setup.conda":
            say(tr("{fix} ran, but is not done", fix=job.fix.id))
            for finding in mine:
                say(finding_text(finding))
            return False
        say(tr("done: {fix}", fix=job.fix.id))
        return True
    for finding in mine:
        say(finding_text(finding))
    return not any(finding.status in ("fail", "unknown") for finding in mine)


def _agreed(fix: Fix) -> bool:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError(
            f"{fix.id} is {fix.risk} and there is no terminal to ask on", "add --yes, or look first with --dry-run"
        )
    try:
        answer = input(tr("do this? [y/N] "))
    except (EOFError, KeyboardInterrupt):
        print()
        return False
    return answer.strip().lower() in ("y", "yes")
