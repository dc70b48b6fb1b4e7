"""What the doctor has said so far, as lines to show: filled in record by record, equal findings of several nodes in one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.doctor.fold import nodes_text
from core.language import tr
from core.text.plain import plain

WORST_FIRST = ("fail", "unknown", "warn", "waiting", "pass", "skip")
PROBLEMS = ("fail", "unknown", "warn")
EVERY_NODE = "all"
"""The node of a finding that compares all of them."""


@dataclass(frozen=True)
class FixOffer:
    """A fix as `doctor --json` describes it."""

    id: str
    risk: str
    preview: tuple[str, ...]
    runnable: bool


@dataclass(frozen=True)
class Answer:
    """What one check found on one node; nodes with the same answer share a line."""

    status: str
    summary: str
    expected: str = ""
    found: str = ""
    why: str = ""
    fix: FixOffer | None = None


@dataclass(frozen=True)
class Line:
    """One line of the list: a check, and the nodes whose answer it is."""

    key: str
    check: str
    title: str
    group: str
    answer: Answer
    nodes: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        return self.answer.status


WAITING = Answer("waiting", "")


@dataclass
class _Entry:
    title: str
    group: str
    answers: dict[str, Answer] = field(default_factory=dict)


class DoctorBoard:
    """Takes the records of `doctor --stream` in any order; what it cannot read it refuses."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._made: set[str] = set()
        """Checks that were announced since the last report."""
        self._stages: dict[str, list[str]] = {}
        """Each stage of the plan, with the failed checks that stand in its way."""

    def take(self, record: Any) -> bool:
        """Take one record; False if it is none that is known."""
        if not isinstance(record, Mapping):
            return False
        kind, check = record.get("kind"), record.get("id")
        if kind == "report":
            self._take_stages(record.get("stages"))
            return True
        if not isinstance(check, str) or not check:
            return False
        if kind == "check":
            self._entries[check] = _Entry(_text(record, "title") or check, _text(record, "group"))
            self._made.add(check)
            return True
        if kind == "finding":
            entry = self._entries.setdefault(check, _Entry(check, _text(record, "group")))
            entry.answers[_text(record, "node")] = _answer(record)
            return True
        return False

    def _take_stages(self, stages: Any) -> None:
        """A report on a few checks says nothing of the others: what those stand in the way of stays."""
        if isinstance(stages, Mapping):
            for stage, checks in stages.items():
                others = [check for check in self._stages.get(stage, []) if check not in self._made]
                self._stages[plain(str(stage))] = others + [plain(str(check)) for check in checks]
        self._made = set()

    def readiness(self) -> tuple[list[str], dict[tuple[str, ...], list[str]]]:
        """The stages that can run, and by the checks that stand in their way those that can't; both empty before a report."""
        ready = [stage for stage, checks in self._stages.items() if not checks]
        blocked: dict[tuple[str, ...], list[str]] = {}
        for stage, checks in self._stages.items():
            if checks:
                blocked.setdefault(tuple(checks), []).append(stage)
        return ready, blocked

    def close(self, reason: str) -> None:
        """The doctor has ended: what it has not answered is unknown, and why."""
        for entry in self._entries.values():
            if not entry.answers:
                entry.answers[""] = Answer("unknown", reason)

    def lines(self, only_problems: bool = False) -> list[Line]:
        """Every check in the doctor's order, the worst answer of each first."""
        several = len({node for entry in self._entries.values() for node in entry.answers} - {EVERY_NODE, ""}) > 1
        lines = []
        for check, entry in self._entries.items():
            folded: dict[Answer, list[str]] = {}
            for node, answer in entry.answers.items():
                folded.setdefault(answer, []).append(node)
            if not folded:
                folded[WAITING] = []
            for place, answer in enumerate(sorted(folded, key=lambda answer: WORST_FIRST.index(answer.status))):
                nodes = tuple(folded[answer]) if several else ()
                lines.append(Line(f"{check}#{place}", check, entry.title, entry.group, answer, nodes))
        return [line for line in lines if line.status in PROBLEMS] if only_problems else lines

    def counts(self) -> dict[str, int]:
        """How many checks have each status, by the worst answer of each; the worst status first."""
        worst = [
            min((answer.status for answer in entry.answers.values()), key=WORST_FIRST.index, default="waiting")
            for entry in self._entries.values()
        ]
        return {status: worst.count(status) for status in WORST_FIRST if status in worst}

    def mended_by(self, fix_id: str) -> list[str]:
        """The checks that offer a fix: all of them are looked at again when it has run."""
        return [
            check
            for check, entry in self._entries.items()
            if any(answer.fix and answer.fix.id == fix_id for answer in entry.answers.values())
        ]

    def has(self, check: str) -> bool:
        return check in self._entries

    def is_empty(self) -> bool:
        return not self._entries


def nodes_label(nodes: Iterable[str]) -> str:
    """`6 nodes`, a node's name, or nothing where there is only one machine."""
    nodes = list(nodes)
    if nodes == [EVERY_NODE]:
        return tr("all nodes")
    if len(nodes) == 1:
        return nodes[0]
    return tr("{count} nodes", count=len(nodes)) if nodes else ""


def all_nodes(nodes: Iterable[str]) -> str:
    """The nodes by name, for the details."""
    nodes = list(nodes)
    return tr("all nodes") if nodes == [EVERY_NODE] else nodes_text(nodes)


def _answer(record: Mapping[str, Any]) -> Answer:
    status = _text(record, "status")
    return Answer(
        status=status if status in WORST_FIRST else "unknown",
        summary=_text(record, "summary"),
        expected=_text(record, "expected"),
        found=_text(record, "found"),
        why=_text(record, "why"),
        fix=_fix(record.get("fix")),
    )


def _fix(fix: Any) -> FixOffer | None:
    if not isinstance(fix, Mapping) or not fix.get("id"):
        return None
    preview = fix.get("preview")
    lines = tuple(plain(str(line)) for line in preview) if isinstance(preview, list) else ()
    return FixOffer(_text(fix, "id"), _text(fix, "risk"), lines, fix.get("runnable") is True)


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    return plain(str(value)) if value is not None else ""
