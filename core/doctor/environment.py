"""The environment stage: this machine, or the plan's nodes, judged by what its stages need; a report, and a stop where a check fails."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from core.doctor.checks import CHECKS
from core.doctor.examine import examine as examine_machine
from core.doctor.finding import Finding, overall, report
from core.doctor.fleet import examine_fleet
from core.doctor.needs import environments_of
from core.doctor.text import finding_text
from core.errors import StageError
from core.files import read_json, write_json
from core.stages.base import Outcome, StageContext

BEFORE_A_RUN = tuple(check for check in CHECKS if check.tier == "quick" or check.id == "cuda.torch_sees_gpu")
"""Whatever takes an instant, and the one slow look that a training cannot do without."""
SAID = 3
"""Failed checks that the error spells out; the log and the report have all."""
OF_AN_ENVIRONMENT = ("python.env", "python.pins", "python.numpy_abi")
"""What is looked at in each further environment that stages run in; the machine is looked at once."""


def examine(context: StageContext) -> Outcome:
    """The findings go to the log and to report.json.

    Metrics: how many checks came out as pass, warn, fail, skip and unknown.

    Raises:
        StageError: a check failed.
    """
    first, *others = (
        replace(one, folder=str(context.run.root)) for one in environments_of(read_json(context.run.plan))
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a glyph must not end the stage where the locale has none
    findings = []
    for needs in (first, *others):
        checks = (
            BEFORE_A_RUN if needs is first else tuple(check for check in BEFORE_A_RUN if check.id in OF_AN_ENVIRONMENT)
        )
        if needs.nodes:
            found = examine_fleet(needs, list(checks))
        else:
            found = examine_machine(needs, checks, os.uname().nodename)
        if others:
            print(needs.python, flush=True)
        for finding in found:
            findings.append(finding)
            print(finding_text(finding, nodes=finding.node if needs.nodes else ""), flush=True)
    path = Path(context.plan["outputs"]["report"])
    write_json(path, report(findings))
    if overall(findings) == "fail":
        raise StageError(summary_of(findings), f"mend it and start again; the report is {path}")
    counts = Counter[str](finding.status for finding in findings)
    return Outcome(outputs={"report": str(path)}, metrics=dict(counts))


def summary_of(findings: list[Finding]) -> str:
    """The failed checks in one line, those first that the doctor cannot mend: what it can may follow from them. Many are only named."""
    here = os.uname().nodename
    failed = sorted((finding for finding in findings if finding.status == "fail"), key=_can_be_mended)
    said = [
        f"{finding.id}{'' if finding.node in (here, 'all') else f' on {finding.node}'}: {finding.summary}"
        for finding in failed[:SAID]
    ]
    if more := dict.fromkeys(finding.id for finding in failed[SAID:]):
        said.append(f"and {len(failed) - SAID} more: {', '.join(more)}")
    return "; ".join(said)


def _can_be_mended(finding: Finding) -> bool:
    return finding.fix is not None and finding.fix.runnable
