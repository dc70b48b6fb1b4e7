"""The environment stage: the probe under the training Python, every check judged, a report, and a stop where one fails."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.doctor.checks import CHECKS, judge
from core.doctor.finding import Finding, Observation, overall, report, text
from core.doctor.needs import Needs, needs_of
from core.errors import StageError
from core.files import read_json, write_json
from core.stages.base import Outcome, StageContext

PROBE = Path(__file__).with_name("probe.py")
TORCH_TIMEOUT_S = 120.0
"""For importing torch, which takes a minute from a cold network disk; LLM_WIZARD_PROBE_TIMEOUT (seconds) changes it."""


def examine(context: StageContext) -> Outcome:
    """Judge this machine by what the plan's stages need; the findings go to the log and to report.json.

    Metrics: how many checks came out as pass, warn, fail, skip and unknown.

    Raises:
        StageError: a check failed.
    """
    plan = read_json(context.run.plan)
    needs, node = needs_of(plan), os.uname().nodename
    observations = run_probe(needs, context.run.root, node)
    findings = [judge(check, observations.get(check.id), node, needs) for check in CHECKS]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a glyph must not end the stage where the locale has none
    for finding in findings:
        print(text(finding), flush=True)
    path = Path(context.plan["outputs"]["report"])
    write_json(path, report(findings))
    if overall(findings) == "fail":
        raise StageError(summary_of(findings), f"mend it and start again; the report is {path}")
    counts = Counter[str](finding.status for finding in findings)
    return Outcome(outputs={"report": str(path)}, metrics=dict(counts))


def run_probe(needs: Needs, folder: Path, node: str) -> dict[str, Observation]:
    """What the probe sees under the training Python, by check id; what it did not get to is absent.

    A Python that does not even run the probe is an observation too: python.env, with the error.
    """
    limit = float(os.environ.get("LLM_WIZARD_PROBE_TIMEOUT", TORCH_TIMEOUT_S))
    wanted = {"packages": list(needs.packages), "folder": str(folder), "torch": needs.torch, "timeout": limit}
    try:
        # Piped in as it will be over ssh, so that nothing of ours lies on the training Python's path.
        process = subprocess.Popen(
            [needs.python, "-", json.dumps(wanted)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return _no_python(needs, node, str(error))
    try:
        output, _ = process.communicate(PROBE.read_text("utf-8"), timeout=limit + 60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    observations = parse_lines(output, node)
    if not observations:
        return _no_python(needs, node, (output.strip().splitlines() or ["it printed nothing"])[-1])
    return observations


def _no_python(needs: Needs, node: str, error: str) -> dict[str, Observation]:
    return {"python.env": Observation("python.env", node, {"executable": needs.python, "error": error})}


def parse_lines(output: str, node: str) -> dict[str, Observation]:
    """The probe's lines; anything else on its output (a site hook's greeting, a warning) is passed over."""
    found = {}
    for line in output.splitlines():
        try:
            document: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, Mapping) and isinstance(document.get("id"), str):
            value = document.get("value")
            found[document["id"]] = Observation(
                document["id"],
                node,
                value if isinstance(value, Mapping) else None,
                str(document.get("error", "" if isinstance(value, Mapping) else "unreadable")),
                str(document.get("detail", "")),
            )
    return found


def summary_of(findings: list[Finding]) -> str:
    """The failed checks in one line."""
    failed = [finding for finding in findings if finding.status == "fail"]
    return "; ".join(f"{finding.id}: {finding.summary}" for finding in failed)
