"""What `diagnose --json` says and what is known of a failure, as texts to show, to search and to copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from core.language import tr, tr_later
from core.text.plain import plain
from tui.sections import add_section
from tui.status_marks import mark

if TYPE_CHECKING:
    from core.troubleshoot.signature import Signature

ROLES = {
    "root": tr_later("a cause"),
    "cascade": tr_later("follows another failure; the cause is elsewhere"),
    "advisory": tr_later("worth knowing, but no failure by itself"),
    "info": tr_later("normal output; it counts only where nothing else happened"),
}


@dataclass(frozen=True)
class Evidence:
    """One finding of a diagnosis. Texts are plain, cause and fix not yet translated."""

    id: str
    role: str
    file: str
    line: int | None
    text: str
    cause: str
    fix: str
    sources: tuple[str, ...]

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.line is not None else self.file


@dataclass(frozen=True)
class Diagnosis:
    """`verdict` is the id of a known failure, whose evidence comes first, or "unknown" or "healthy"."""

    verdict: str
    evidence: tuple[Evidence, ...]
    excerpt: tuple[str, ...]
    """Where the verdict is unknown: the lines that a person would want to see first."""
    excerpt_place: str

    @property
    def state(self) -> str:
        """The state whose mark stands for the verdict."""
        return self.verdict if self.verdict in ("healthy", "unknown") else "failed"


def read_diagnosis(document: Any) -> Diagnosis | None:
    """The document of `diagnose --json`; None for anything else."""
    if not isinstance(document, Mapping) or not isinstance(document.get("verdict"), str):
        return None
    findings = document.get("findings")
    evidence = [_evidence(one) for one in findings if isinstance(one, Mapping)] if isinstance(findings, list) else []
    return Diagnosis(
        plain(document["verdict"]),
        tuple(evidence),
        _texts(document.get("excerpt")),
        plain(str(document.get("excerpt_place") or "")),
    )


def _evidence(finding: Mapping[str, Any]) -> Evidence:
    line = finding.get("line")
    return Evidence(
        **{name: plain(str(finding.get(name) or "")) for name in ("id", "role", "file", "text", "cause", "fix")},
        line=line if isinstance(line, int) else None,
        sources=_texts(finding.get("sources")),
    )


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(plain(str(value)) for value in values) if isinstance(values, list) else ()


def fix_command(signature: Signature | None) -> str:
    """What to type to have it mended or checked; empty where there is nothing."""
    if signature is not None and signature.doctor_fix and signature.role in ("root", "info"):
        return f"llm-wizard doctor --fix {signature.doctor_fix}"
    return f"llm-wizard doctor --only {signature.check}" if signature is not None and signature.check else ""


def evidence_text(evidence: Evidence, signature: Signature | None, is_verdict: bool) -> Text:
    """All of one finding."""
    text = (
        Text().append_text(mark("failed" if is_verdict else evidence.role)).append(f"  {evidence.id}\n", style="bold")
    )
    if evidence.role in ROLES and not is_verdict:
        text.append(f"{tr(ROLES[evidence.role])}\n", style="bright_black")
    if evidence.file:
        add_section(text, tr("Evidence"), f"{evidence.place}\n{evidence.text}")
    else:
        add_section(text, tr("Evidence"), tr("The exit code says so; the logs end without a word."))
    _add_what_to_do(text, evidence, signature)
    return text


def signature_text(signature: Signature) -> Text:
    """All that is known of a failure."""
    text = Text().append(f"{signature.id}\n", style="bold")
    text.append(f"{signature.category}, {tr(ROLES[signature.role])}\n", style="bright_black")
    add_section(text, tr("It reads like this"), plain(signature.sample).strip())
    _add_what_to_do(text, signature, signature)
    return text


def verdict_text(diagnosis: Diagnosis) -> Text:
    """What is said where no known failure is the verdict."""
    text = Text().append_text(mark(diagnosis.state)).append("\n")
    if diagnosis.verdict == "healthy":
        return text.append(f"\n{tr('No known failure, and no exception that ended a process.')}\n")
    text.append(f"\n{tr('It failed, and no known failure explains it.')}\n")
    if diagnosis.excerpt:
        heading = tr("The first thing that went wrong, {place}", place=diagnosis.excerpt_place)
        add_section(text, heading, "\n".join(diagnosis.excerpt))
    text.append(f"\n{tr('/ searches the known failures by a word of the message.')}\n")
    return text


def _add_what_to_do(text: Text, known: Evidence | Signature, signature: Signature | None) -> None:
    """The cause, the fix and where both come from; the commands that mend it are the signature's."""
    add_section(text, tr("Cause"), tr(known.cause))
    add_section(text, tr("What to do"), tr(known.fix))
    if command := fix_command(signature):
        add_section(text, tr("Type, or press d"), command)
    if signature is not None and signature.auto_fix:
        add_section(text, tr("What the tool can change"), "\n".join(signature.auto_fix))
    add_section(text, tr("Sources"), "\n".join(known.sources))


def search(signatures: Iterable[Signature], words: str) -> list[Signature]:
    """The failures in which every word stands: in the id, the category, the cause, the fix or the sample, in either language."""
    wanted = words.lower().split()
    return [one for one in signatures if all(word in _haystack(one) for word in wanted)]


def _haystack(one: Signature) -> str:
    texts: Sequence[str] = (one.id, one.category, one.cause, one.fix, tr(one.cause), tr(one.fix), one.sample)
    return "\n".join(texts).lower()
