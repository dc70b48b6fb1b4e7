"""Logs in which the cause stands among followers, noise and lines that only look like one; and healthy logs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from core.troubleshoot.diagnose import diagnose

MIXED = Path(__file__).parent / "mixed"
HEALTHY = sorted((Path(__file__).parent / "healthy").glob("*.log"))
OWN_RUNS = [path for path in HEALTHY if path.name.startswith(("quickstart_", "ours_"))]


def test_mixed_logs_give_the_verdict_that_was_put_into_them() -> None:
    """At least 95 % right, at most 2 % with a wrong name; `unknown` and `healthy` are not confident."""
    expected = yaml.safe_load((MIXED / "expected.yaml").read_text(encoding="utf-8"))
    assert len(expected) >= 40
    misses = []
    for name, case in expected.items():
        verdict = diagnose([MIXED / name], case.get("exit_code"), case.get("stalled_for")).verdict
        if verdict != case["verdict"]:
            misses.append((name, case["verdict"], verdict))
    confident = [miss for miss in misses if miss[2] not in ("unknown", "healthy")]
    assert len(misses) <= 0.05 * len(expected), misses
    assert len(confident) <= 0.02 * len(expected), confident


def test_every_mixed_log_has_an_expectation() -> None:
    expected = yaml.safe_load((MIXED / "expected.yaml").read_text(encoding="utf-8"))
    assert {path.name for path in MIXED.glob("*.log")} == set(expected)


def test_there_are_at_least_ten_logs_of_real_runs_of_this_project() -> None:
    assert len(OWN_RUNS) >= 10


@pytest.mark.parametrize("path", HEALTHY, ids=lambda path: path.stem)
def test_a_healthy_log_has_no_findings(path: Path) -> None:
    found = diagnose([path])
    assert (found.verdict, found.findings) == ("healthy", ())
    assert diagnose([path], exit_code=0).verdict == "healthy"
