"""A diagnosis in words, for a terminal."""

from __future__ import annotations

import re
import shutil

from core.language import tr, tr_later
from core.text.cells import cells, wrapped
from core.text.plain import plain
from core.troubleshoot.diagnose import Diagnosis, Finding
from core.troubleshoot.judge import HEALTHY, UNKNOWN
from core.troubleshoot.logs import STDIN
from core.troubleshoot.signature import Signature

WIDTH = 100
MOST_EVIDENCE = 5
"""Lines of the terminal for the line of the log that the verdict rests on."""
_ISSUE = re.compile(r"([\w.-]+/[\w.-]+)#(\d+)")
_AFTER_TRACEBACK = tr_later(
    "If the last file above is your own code, mend it there. Otherwise look for the words of the last line among the issues of the "
    "package that the file belongs to. Give all logs of all nodes at once (llm-wizard diagnose FOLDER): another rank may say more."
)
_WITHOUT_TRACEBACK = tr_later(
    "These lines give no reason. Give all logs of all nodes at once (llm-wizard diagnose FOLDER): another rank may say more. Then ask "
    "the scheduler (sacct -j JOB -o state,exitcode,reason) and the node's kernel (dmesg -T | tail) who ended it."
)


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """Verdict, evidence, cause, what to do and sources; never an escape sequence or a secret of the log."""
    lines: list[str] = []
    if diagnosis.verdict == HEALTHY:
        lines.append("✓ " + tr("healthy: no known failure and no exception that ended a process"))
        if diagnosis.lines:
            lines.append("  " + tr("lines read: {lines}, logs: {files}", lines=diagnosis.lines, files=diagnosis.files))
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
    if diagnosis.unread:
        lines += ["", tr("not read:"), *(line for reason in diagnosis.unread for line in _folded("  - ", reason))]
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
    lines.append("  " + tr("sources") + ":")
    lines += [line for source in signature.sources for line in _folded("    ", _address(source))]
    return lines


def _unknown(diagnosis: Diagnosis) -> list[str]:
    lines = ["? " + tr("unknown: it failed, and no known failure explains it")]
    if diagnosis.excerpt:
        lines += ["", tr("the first thing that went wrong, {place}:", place=diagnosis.excerpt_place)]
        for line in diagnosis.excerpt:
            lines += _folded("    ", line)
    raised = any(line.lstrip().startswith(("Traceback", "File ")) for line in diagnosis.excerpt)
    lines += ["", *_paragraph(tr("what to do"), tr(_AFTER_TRACEBACK if raised else _WITHOUT_TRACEBACK))]
    return lines


def _evidence(finding: Finding) -> list[str]:
    if finding.line is None:
        return ["  " + tr("the exit code says so; the logs end without a word")]
    origin = f" ({finding.origin})" if finding.origin else ""
    return [f"  {_place(finding)}{origin}", *_shortened(_folded("    | ", finding.text), MOST_EVIDENCE)]


def _short(finding: Finding) -> list[str]:
    return [f"  - {finding.signature.id}  {_place(finding)}", *_shortened(_folded("      | ", finding.text), 1)]


def _shortened(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + " …"]


def _place(finding: Finding) -> str:
    name = tr("standard input") if finding.file == STDIN else finding.file
    return f"{name}:{finding.line}"


def _address(source: str) -> str:
    """Where a browser finds it: `owner/name#12` is an issue or pull request of GitHub."""
    found = _ISSUE.fullmatch(source)
    return f"https://github.com/{found[1]}/issues/{found[2]}" if found else source


def _width() -> int:
    return max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def _folded(mark: str, text: str) -> list[str]:
    """A log's line as it is, in lines of the terminal's width: between words where a line has a late one, else anywhere."""
    room = _width() - cells(mark) - 2
    lines = []
    while cells(text) > room:
        end = len(text)
        while cells(text[:end]) > room:
            end -= max(1, (cells(text[:end]) - room) // 2)
        space = text.rfind(" ", end // 2, end)
        end = space + 1 if space > 0 else end
        lines.append(mark + text[:end].rstrip())
        text = text[end:]
    return [*lines, mark + text]


def _paragraph(name: str, text: str, indent: str = "  ") -> list[str]:
    first = f"{indent}{name}: " if name else indent
    return wrapped(text, _width(), first, indent + "  ")
