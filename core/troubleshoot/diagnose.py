"""Logs in, a diagnosis out: the function that the command line, the supervisor and the screen share."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.errors import InputError
from core.language import tr
from core.runs.evidence import lines_before
from core.runs.masking import Masker
from core.text.plain import plain
from core.troubleshoot.entries import Entry, entries_of
from core.troubleshoot.excerpt import excerpt_of
from core.troubleshoot.judge import HEALTHY, UNKNOWN, Judgement, judge
from core.troubleshoot.logs import STDIN, Unpacked, find_logs, open_log, origin_of
from core.troubleshoot.matching import Hit, Matcher
from core.troubleshoot.reading import Reading, read_log
from core.troubleshoot.signature import Signature
from core.troubleshoot.signatures import load_signatures

MOST_FINDINGS = 10
TEXT_LENGTH = 500
BEFORE_MATCH = 100
"""Characters shown of a long line before what was found in it."""
_ATTEMPT = re.compile(r"--- attempt \d+, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d$")


@dataclass(frozen=True)
class Finding:
    """One signature that was found. `file` and `line` are where; None where an exit code alone speaks for it. Text is plain and masked."""

    signature: Signature
    file: str | None
    line: int | None
    text: str
    origin: str = ""

    def document(self) -> dict[str, Any]:
        return {
            "id": self.signature.id,
            "role": self.signature.role,
            "file": self.file,
            "line": self.line,
            "text": self.text,
            "cause": self.signature.cause,
            "fix": self.signature.fix,
            "auto_fixable": self.signature.auto_fixable,
            "sources": self.signature.sources,
        }


@dataclass(frozen=True)
class Diagnosis:
    """`verdict` is a signature's id, "unknown" or "healthy"; its finding comes first. `notes` are worth knowing, but no failure."""

    verdict: str
    findings: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()
    excerpt: tuple[str, ...] = ()
    """Where the verdict is unknown: the first exception of the rank that failed first, or the last lines."""
    excerpt_place: str = ""
    """File and line, host and rank of the excerpt."""
    excerpt_line: int | None = None
    failed: bool = False
    unread: tuple[str, ...] = ()
    """Logs of a folder that could not be read, and why."""
    files: int = 0
    lines: int = 0
    """How much was read."""

    def document(self) -> dict[str, Any]:
        """What `diagnose --json` prints; the excerpt is there where the verdict is unknown."""
        document: dict[str, Any] = {
            "schema_version": 1,
            "verdict": self.verdict,
            "findings": [finding.document() for finding in self.findings],
        }
        if self.unread:
            document["unread"] = list(self.unread)
        if self.excerpt:
            document |= {"excerpt": list(self.excerpt), "excerpt_place": self.excerpt_place}
        return document


@lru_cache(maxsize=1)
def _matcher() -> Matcher:
    return Matcher(load_signatures())


def diagnose(
    paths: Sequence[str | Path],
    exit_code: int | None = None,
    stalled_for: float | None = None,
    runs_dir: Path | None = None,
) -> Diagnosis:
    """Say why the run behind these logs failed.

    Args:
        paths: logs, folders, runs' folders or names (with `runs_dir`), or "-" for standard input.
        exit_code: of the process that wrote them; negative or above 128: a signal.
        stalled_for: seconds since the last output of a process that still lives.

    Raises:
        InputError: one of the paths, or every log of a folder, cannot be read; or there is nothing in them to judge by.
    """
    wanted = _matcher().wanted
    entries: list[Entry] = []
    unread: list[str] = []
    named = {Path(path) for path in paths}
    found = find_logs([str(path) for path in paths], runs_dir)
    files = lines = 0
    for path in found:
        name = os.fsencode(path).decode("utf-8", "replace")  # a name that is not UTF-8 cannot be printed as JSON
        try:
            with open_log(path) as stream:
                reading = _last_attempt(read_log(stream, wanted))
                if isinstance(stream, Unpacked) and stream.cut:
                    unread.append(tr("{path}: the end, the gzip file is cut off", path=plain(name)))
        except InputError as error:
            if path in named or len(unread) + 1 == len(found):
                raise
            unread.append(plain(str(error).partition("\n")[0]))
            continue
        files, lines = files + 1, lines + reading.total
        entries += entries_of(name, reading, origin_of(path))
    if exit_code is None and stalled_for is None and not any(entry.text.strip() for entry in entries):
        names = [
            "standard input" if str(path) == STDIN else os.fsencode(path).decode("utf-8", "replace") for path in found
        ]
        raise InputError(
            f"no line stands in {plain(', '.join(names[:3]))}",
            "name the log that the processes themselves wrote (Slurm: --output, torchrun: --log-dir), or say how it ended: --exit-code N",
        )
    return replace(_judged(entries, exit_code, stalled_for), unread=tuple(unread), files=files, lines=lines)


def diagnose_part(log: Path, start: int, exit_code: int | None = None) -> tuple[int, Diagnosis]:
    """The diagnosis of what stands in `log` from byte `start` on, and how many lines stand before that."""
    with log.open("rb") as stream:
        before = lines_before(stream, start)
        reading = read_log(stream, _matcher().wanted)
    return before, _judged(list(entries_of(str(log), reading, origin_of(log))), exit_code, None)


def _judged(entries: list[Entry], exit_code: int | None, stalled_for: float | None) -> Diagnosis:
    matcher = _matcher()
    _put_in_order(entries)
    return _diagnosis(judge(entries, matcher.hits(entries), matcher.signatures, exit_code, stalled_for), entries)


def _last_attempt(reading: Reading) -> Reading:
    """The log of a stage holds all its attempts; the last one is asked about."""
    starts = [
        place for place, (_, text) in enumerate(reading.lines) if text.startswith("--- ") and _ATTEMPT.match(text)
    ]
    return Reading(reading.lines[starts[-1] :], reading.total) if starts else reading


def _put_in_order(entries: Sequence[Entry]) -> None:
    """One order over all files: by time where every file tells it, else as the files were given."""
    files = {entry.file for entry in entries}
    timed = {entry.file for entry in entries if entry.time is not None}
    by_time = len(files) > 1 and timed == files
    first: dict[str, float] = {}
    for entry in entries:
        if entry.time is not None:
            first.setdefault(entry.file, entry.time)
    for index, entry in enumerate(entries):
        # Lines of the same second keep the order of the log.
        entry.order = (entry.time or first[entry.file]) + index * 1e-7 if by_time else float(index)


def _diagnosis(judgement: Judgement, entries: Sequence[Entry]) -> Diagnosis:
    masker = Masker()
    findings = [_finding(hit, masker) for hit in ([judgement.chosen] if judgement.chosen else [])]
    if judgement.signature and not findings:
        findings = [Finding(judgement.signature, None, None, "")]
    findings += [_finding(hit, masker) for hit in judgement.others]
    notes = tuple(_finding(hit, masker) for hit in judgement.notes)
    if judgement.verdict == HEALTHY:
        return Diagnosis(HEALTHY, notes=notes)
    excerpt: tuple[str, ...] = ()
    place, line = "", None
    if judgement.verdict == UNKNOWN and entries:
        chosen, lines = excerpt_of(entries, judgement.unexplained)
        excerpt = tuple(_masked(text, masker)[:TEXT_LENGTH] for text in lines)
        place, line = f"{plain(chosen.file)}:{chosen.number}", chosen.number
        place += f" ({chosen.origin})" if str(chosen.origin) else ""
    return Diagnosis(
        judgement.verdict,
        tuple([*findings, *notes][:MOST_FINDINGS]),
        notes,
        excerpt,
        place,
        line,
        failed=True,
    )


def _finding(hit: Hit, masker: Masker) -> Finding:
    entry, signature = hit.entry, hit.signature
    text = _masked(entry.text.strip(), masker)
    if len(text) > TEXT_LENGTH:
        matches = (pattern.search(text) for pattern in (*signature.strong, *signature.weak, *signature.places))
        begin = max(0, next((match.start() for match in matches if match), 0) - BEFORE_MATCH)
        text = ("…" if begin else "") + text[begin : begin + TEXT_LENGTH - 1]
    return Finding(signature, plain(entry.file), entry.number, text, str(entry.origin))


def _masked(text: str, masker: Masker) -> str:
    return masker.mask(text.encode()).decode("utf-8", "replace")
