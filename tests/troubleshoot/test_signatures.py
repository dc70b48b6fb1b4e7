"""The signatures as data: each is well formed, and speaks for its own sample before any other does."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from core.doctor.checks import CHECKS
from core.doctor.setup import STEPS
from core.troubleshoot.literals import normalise, required_literals
from core.troubleshoot.signature import Signature
from core.troubleshoot.signatures import FOLDER, load_signatures
from core.yaml_source import read_yaml_file

from .conftest import DiagnoseText

SIGNATURES = load_signatures()
PATTERNS = [(s.id, pattern) for s in SIGNATURES for pattern in (*s.log_regex, *s.hints, *s.stack)]


def test_there_are_at_least_130_with_different_ids() -> None:
    ids = Counter(signature.id for signature in SIGNATURES)
    assert len(SIGNATURES) >= 130
    assert [name for name, count in ids.items() if count > 1] == []


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.id)
def test_its_own_sample_gives_its_verdict(signature: Signature, diagnose_text: DiagnoseText) -> None:
    found = diagnose_text(signature.sample, stalled_for=signature.match_when.stalled_for)
    if signature.role == "advisory":
        assert found.verdict == "healthy"
        assert [note.signature.id for note in found.notes][:1] == [signature.id]
    else:
        assert found.verdict == signature.id
        assert found.findings[0].signature is signature


@pytest.mark.parametrize("signature", [s for s in SIGNATURES if s.exit_codes], ids=lambda signature: signature.id)
def test_an_exit_code_alone_speaks_for_it(signature: Signature, diagnose_text: DiagnoseText) -> None:
    for code in (signature.exit_codes[0], 128 - signature.exit_codes[0]):
        assert diagnose_text("step 1/9  loss 4.0\n", exit_code=code).verdict == signature.id


def test_the_files_follow_the_strict_rules_of_presets_too() -> None:
    for path in FOLDER.glob("*.yaml"):
        assert isinstance(read_yaml_file(path).value, list)


def test_no_advisory_and_no_cascade_is_mended_automatically() -> None:
    assert [s.id for s in SIGNATURES if s.auto_fixable and s.role in ("advisory", "cascade")] == []
    data = SIGNATURES[0].model_dump() | {"role": "cascade", "auto_fixable": True, "auto_fix": ["x"]}
    with pytest.raises(ValueError, match="must not be mended automatically"):
        Signature.model_validate(data)


def test_what_they_name_exists() -> None:
    ids = {signature.id for signature in SIGNATURES}
    assert len(ids) == len(SIGNATURES)
    checks = {check.id for check in CHECKS}
    fixes = checks | {check.fix for check in CHECKS} | {step.id for step in STEPS}
    for signature in SIGNATURES:
        assert set(signature.explains) <= ids - {signature.id}, signature.id
        assert signature.check is None or signature.check in checks, signature.id
        assert signature.doctor_fix is None or signature.doctor_fix in fixes, signature.id


@pytest.mark.parametrize(("name", "pattern"), PATTERNS)
def test_a_text_without_regular_expressions_is_in_every_match(name: str, pattern: str) -> None:
    assert required_literals(pattern), name


def test_the_texts_looked_for_first_are_in_the_samples() -> None:
    for signature in SIGNATURES:
        lines = [normalise(line) for line in signature.sample.splitlines()]
        assert any(text in line for line in lines for text in signature.literals), signature.id


HOSTILE = """
import re, sys, time
from core.troubleshoot.signatures import load_signatures
for signature in load_signatures():
    texts = ["a" * 100_000, " " * 100_000, "1" * 100_000, "ab.c-d/" * 14_000, "A1_:[('" * 14_000, "\\u3042" * 50_000]
    texts += [(line[: len(line) // 2] * (100_000 // max(1, len(line) // 2) + 1))[:100_000] for line in signature.sample.splitlines()[:6]]
    texts += [(line + " ") * (100_000 // (len(line) + 1)) for line in signature.sample.splitlines()[:3]]
    conditions = [p for p in (signature.match_when.after, signature.match_when.ended_by, signature.match_when.asked, signature.match_when.leads_to) if p]
    for pattern in (*signature.log_regex, *signature.hints, *signature.stack, *conditions):
        compiled = re.compile(pattern)
        worst = 0.0
        for text in texts:
            started = time.process_time()
            compiled.search(text)
            worst = max(worst, time.process_time() - started)
        print(f"{worst:.4f} {signature.id} {pattern}", flush=True)
"""


def test_no_pattern_takes_long_over_100_kb_of_hostile_text() -> None:
    """Bounded by the time limit of the process: one pattern that backtracks would need hours.

    `python -c` of the same text prints the seconds of each pattern; docs/measurements.md has the worst.
    """
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    assert len(done.stdout.splitlines()) >= len(PATTERNS)
