"""What a check says about a machine: one finding, in the shape of `doctor --json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["pass", "warn", "fail", "skip", "unknown"]

WORST_FIRST: tuple[Status, ...] = ("fail", "unknown", "warn", "pass", "skip")
GLYPHS: dict[Status, str] = {"pass": "✓", "warn": "!", "fail": "✗", "skip": "-", "unknown": "?"}


@dataclass(frozen=True)
class Observation:
    """What the probe saw: `value`, or `error` ("timeout", "crash", "missing") with its `detail`."""

    id: str
    node: str
    value: Mapping[str, Any] | None = None
    error: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Fix:
    """What would mend it: `preview` is the exact commands, which the user types (nothing is run here)."""

    id: str
    risk: Literal["safe", "rebuild", "destructive"]
    preview: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """The verdict of one check on one node. `unknown` means that it could not be observed, and is never a pass."""

    id: str
    node: str
    status: Status
    summary: str
    expected: str = ""
    found: str = ""
    why: str = ""
    fix: Fix | None = None


def overall(findings: Iterable[Finding]) -> Status:
    """The worst status among the findings; a skipped check says nothing about the machine."""
    statuses = {finding.status for finding in findings}
    return next((status for status in WORST_FIRST if status in statuses), "unknown")


def report(findings: Iterable[Finding]) -> dict[str, Any]:
    """The document of `doctor --json`."""
    findings = list(findings)
    return {"schema_version": 1, "status": overall(findings), "findings": [asdict(finding) for finding in findings]}


def text(finding: Finding) -> str:
    """One line where all is well; found, expected, why and what to type below it where not."""
    lines = [f"{GLYPHS[finding.status]} {finding.status:<7} {finding.id:<20} {finding.summary}"]
    if finding.status in ("warn", "fail", "unknown"):
        parts = {"found": finding.found, "expected": finding.expected, "why": finding.why}
        lines += [f"    {name}: {value}" for name, value in parts.items() if value]
        lines += [f"    type: {command}" for command in (finding.fix.preview if finding.fix else ())]
    return "\n".join(lines)
