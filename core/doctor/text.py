"""Findings as text: a line a group where all is well; found, expected, why and what to type where not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from core.doctor.check import GROUPS
from core.doctor.finding import WORST_FIRST, Finding, Status, overall
from core.doctor.fold import nodes_text
from core.language import tr, tr_later
from core.text.cells import cells, cut, padded, wrapped
from core.text.plain import plain

COMMAND = "llm-wizard doctor"
GLYPHS: dict[Status, str] = {"pass": "✓", "warn": "!", "fail": "✗", "skip": "-", "unknown": "?"}
COLOURS: dict[Status, str] = {"pass": "32", "warn": "33", "fail": "31", "skip": "90", "unknown": "35"}
WORDS: dict[Status, str] = {
    "pass": tr_later("pass"),
    "warn": tr_later("warn"),
    "fail": tr_later("fail"),
    "skip": tr_later("skip"),
    "unknown": tr_later("unknown"),
}


def status_text(status: Status, colour: bool = False) -> str:
    """Glyph and word, in seven columns."""
    text = f"{GLYPHS[status]} {padded(tr(WORDS[status]), 7)}"
    return f"\x1b[{COLOURS[status]}m{text}\x1b[0m" if colour else text


def finding_text(
    finding: Finding, colour: bool = False, indent: str = "", nodes: str = "", command: str = COMMAND, width: int = 0
) -> str:
    """One line where all is well; found, expected, why and what to type below it where not. Names and output are made plain.

    `command` is the doctor as it was called, to which `--fix` is added. Sentences are broken at `width` cells, where it is given;
    what is to be typed never is.
    """
    where = f" [{nodes}]" if nodes else ""
    words = plain(f"{finding.id:<22} {finding.summary}{where}")
    start = f"{indent}{status_text(finding.status)} "
    # Broken as it is seen, without the escape sequences of colours.
    head = wrapped(words, width, start, f"{indent}      ") if width else [start + words]
    head[0] = f"{indent}{status_text(finding.status, colour)} {head[0][len(start) :]}"
    lines = []
    if finding.is_problem:
        verdict = finding.verdict
        parts = {tr("found"): verdict.found, tr("expected"): verdict.expected, tr("why"): verdict.why}
        for name, value in parts.items():
            if value:
                said = plain(f"{name}: {' / '.join(value.splitlines())}")
                lines += wrapped(said, width - len(indent) - 4, "", "  ") if width else [said]
        if finding.fix:
            mends = f"{command} --fix {finding.fix.id}" if finding.fix.runnable else ""
            lines += [f"{tr('type')}: {mends}"] if mends else []
            word = tr("which does") if mends else tr("type")
            lines += [f"{word}: {line}" for line in finding.fix.preview]
    return "\n".join([*head, *(f"{indent}    {plain(line)}" for line in lines)])


def report_text(findings: Iterable[Finding], colour: bool = False, command: str = COMMAND, width: int = 130) -> str:
    """All findings by group, in lines of at most `width` cells except for what is to be typed."""
    findings = list(findings)
    several = len({finding.node for finding in findings}) > 1
    lines = []
    by_group: dict[str, list[Finding]] = {}
    silent = {f.node for f in findings if f.id == "ssh.batch" and f.status in ("fail", "unknown")}
    for finding in findings:
        # A node that cannot be reached is said once, by ssh.batch, and not again by every check.
        if finding.node not in silent or finding.status != "unknown" or finding.id == "ssh.batch":
            by_group.setdefault(finding.group, []).append(finding)
    for group, title in GROUPS.items():
        members = by_group.get(group)
        if not members:
            continue
        problems = [finding for finding in members if finding.is_problem]
        status = overall(members)
        said = list(dict.fromkeys(finding.summary for finding in members if finding.status == "pass"))
        said = said or list(dict.fromkeys(finding.summary for finding in members if finding.status == "skip"))
        count = len({finding.id for finding in members if finding.status != "skip"})
        number = len(alike(problems))
        several_problems = tr("{count} problems", count=number) if number > 1 else tr("1 problem")
        detail = several_problems if problems else plain("; ".join(said[:3]))
        start = f"{status_text(status)} {padded(tr(title), 26)} {count:>2}  "
        lines.append(
            start.replace(status_text(status), status_text(status, colour)) + cut(detail, width - cells(start))
        )
        order = {status: number for number, status in enumerate(WORST_FIRST)}
        problems.sort(key=lambda finding: order[finding.status])
        for nodes, same in alike(problems):
            where = nodes_text(nodes) if several and nodes != ["all"] else ""
            lines.append(finding_text(same[0], colour, "    ", where, command, width))
            if len(same) > 1:
                others = tr("likewise: {checks}", checks=", ".join(f.id for f in same[1:]))
                lines += wrapped(others, width, "        ", "          ")
    return "\n".join(lines)


def alike(problems: list[Finding]) -> list[tuple[list[str], list[Finding]]]:
    """Problems said once: the same verdict on several nodes, and what could not be observed for one and the same reason.

    Each with its nodes, and one finding a check.
    """
    by_verdict: dict[object, list[Finding]] = {}
    for finding in problems:
        said = (finding.id, finding.status, finding.summary, finding.verdict.expected, finding.verdict.found)
        by_verdict.setdefault(said, []).append(finding)
    groups: dict[object, tuple[list[str], list[Finding]]] = {}
    for verdict, findings in by_verdict.items():
        nodes = [finding.node for finding in findings]
        first = findings[0]
        unseen = first.status == "unknown" and first.verdict.found and not first.fix
        key = (tuple(sorted(nodes)), first.verdict.found) if unseen else verdict
        groups.setdefault(key, (nodes, []))[1].append(first)
    return list(groups.values())


def counts_text(findings: Iterable[Finding]) -> str:
    """12 pass, 1 warn, 30 skip."""
    counts = Counter(finding.status for finding in findings)
    return ", ".join(f"{counts[status]} {tr(WORDS[status])}" for status in WORDS if counts[status])


def stages_text(stages: dict[str, list[str]], width: int = 130) -> str:
    """What stands in the way of which stage, in lines of at most `width` cells."""
    ready = [stage for stage, checks in stages.items() if not checks]
    blocked: dict[tuple[str, ...], list[str]] = {}
    for stage, checks in stages.items():
        if checks:
            blocked.setdefault(tuple(checks), []).append(stage)
    lines = [tr("ready: {stages}", stages=", ".join(ready))] if ready else []
    lines += [
        tr("not ready: {stages} ({checks})", stages=", ".join(names), checks=", ".join(checks))
        for checks, names in blocked.items()
    ]
    return "\n".join(part for line in lines for part in wrapped(line, width, "", "  "))


def list_text(rows: Sequence[dict[str, object]]) -> str:
    """The table of --list."""
    return "\n".join(f"{row['id']!s:<24} {row['tier']!s:<6} {row['scope']!s:<6} {row['title']}" for row in rows)
