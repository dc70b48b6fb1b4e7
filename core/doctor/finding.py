"""What a check says about a machine: one finding, in the shape of `doctor --json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.doctor.fix import Fix

Status = Literal["pass", "warn", "fail", "skip", "unknown"]

WORST_FIRST: tuple[Status, ...] = ("fail", "unknown", "warn", "pass", "skip")


@dataclass(frozen=True)
class Observation:
    """What the probe saw: `value`, or `error` ("timeout", "crash", "missing") with its `detail`."""

    id: str
    node: str
    value: Mapping[str, Any] | None = None
    error: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a judge says. `unknown` means that it could not be observed, and is never a pass.

    `stages` are the stages that it stands in the way of, where the judge knows better than its check.
    """

    status: Status
    summary: str
    expected: str = ""
    found: str = ""
    why: str = ""
    fix: Fix | None = None
    stages: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Finding:
    """The verdict of one check on one node; `node` is "all" where nodes were compared and are alike."""

    id: str
    node: str
    group: str
    verdict: Verdict = field(repr=False)

    @property
    def status(self) -> Status:
        return self.verdict.status

    @property
    def is_problem(self) -> bool:
        """Whether it asks for something to be done or looked into."""
        return self.status in ("warn", "fail", "unknown")

    @property
    def summary(self) -> str:
        return self.verdict.summary

    @property
    def fix(self) -> Fix | None:
        return self.verdict.fix

    def document(self) -> dict[str, Any]:
        """One entry of `findings` in `doctor --json`."""
        verdict = self.verdict
        return {
            "id": self.id,
            "node": self.node,
            "status": verdict.status,
            "summary": verdict.summary,
            "expected": verdict.expected,
            "found": verdict.found,
            "why": verdict.why,
            "fix": verdict.fix.document() if verdict.fix else None,
        }


def overall(findings: Iterable[Finding]) -> Status:
    """The worst status among the findings; a skipped check says nothing about the machine."""
    statuses = {finding.status for finding in findings}
    return next((status for status in WORST_FIRST if status in statuses), "unknown")


def report(findings: Iterable[Finding]) -> dict[str, Any]:
    """The document of `doctor --json`."""
    findings = list(findings)
    return {
        "schema_version": 1,
        "status": overall(findings),
        "findings": [finding.document() for finding in findings],
    }
