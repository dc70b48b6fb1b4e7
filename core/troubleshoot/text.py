"""A diagnosis in words, for a terminal."""

from __future__ import annotations

import shutil

from core.language import tr
from core.text.cells import wrapped
from core.text.plain import plain
from core.troubleshoot.diagnose import Diagnosis, Finding
from core.troubleshoot.judge import HEALTHY, UNKNOWN
from core.troubleshoot.signature import Signature

WIDTH = 100


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """Verdict, evidence, cause, what to do and sources; never an escape sequence or a secret of the log."""
    lines: list[str] = []
    if diagnosis.verdict == HEALTHY:
        lines.append(tr("✓ healthy: no known failure and no exception that ended a process"))
    elif diagnosis.verdict == UNKNOWN:
        lines += _unknown(diagnosis)
    else:
        lines += _verdict(diagnosis.findings[0])
    shown = 0 if diagnosis.verdict in (HEALTHY, UNKNOWN) else 1
    rest = [finding for finding in diagnosis.findings[shown:] if finding not in diagnosis.notes]
    if rest:
        lines += ["", tr("also found, which may follow from it:") if shown else tr("found, but none of it says why:")]
        lines += [line for finding in rest for line in _short(finding)]
    if diagnosis.notes:
        lines += ["", tr("worth knowing, though no failure:")]
        for note in diagnosis.notes:
            lines += [*_short(note), *_paragraph("", tr(note.signature.fix), "    ")]
    return plain("\n".join(lines)) + "\n"


def fix_command(signature: Signature) -> str | None:
    """What to type to have it mended; None where nothing may be, or only by hand."""
    if signature.doctor_fix is None or signature.role not in ("root", "info"):
        return None
    return f"llm-wizard doctor --fix {signature.doctor_fix}"


def _verdict(finding: Finding) -> list[str]:
    signature = finding.signature
    lines = [f"✗ {signature.id}"]
    lines += _evidence(finding)
    lines += _paragraph(tr("cause"), tr(signature.cause))
    lines += _paragraph(tr("what to do"), tr(signature.fix))
    if command := fix_command(signature):
        lines += _paragraph(tr("type"), command)
    elif signature.check:
        lines += _paragraph(tr("check"), f"llm-wizard doctor --only {signature.check}")
    lines += _paragraph(tr("sources"), ", ".join(signature.sources))
    return lines


def _unknown(diagnosis: Diagnosis) -> list[str]:
    lines = ["? " + tr("unknown: it failed, and no known failure explains it")]
    if diagnosis.excerpt:
        lines += ["", tr("the first thing that went wrong, {place}:", place=diagnosis.excerpt_place)]
        lines += [f"    {line}" for line in diagnosis.excerpt]
    return lines


def _evidence(finding: Finding) -> list[str]:
    if finding.line is None:
        return ["  " + tr("the exit code says so; the logs end without a word")]
    origin = f" ({finding.origin})" if finding.origin else ""
    return [f"  {finding.file}:{finding.line}{origin}", f"    | {finding.text}"]


def _short(finding: Finding) -> list[str]:
    return [f"  - {finding.signature.id}  {finding.file}:{finding.line}", f"      | {finding.text[:160]}"]


def _paragraph(name: str, text: str, indent: str = "  ") -> list[str]:
    first = f"{indent}{name}: " if name else indent
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    return wrapped(text, width, first, indent + "  ")
