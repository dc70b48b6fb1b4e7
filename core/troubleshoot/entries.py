"""The lines of a log with what they are: where each comes from, and which part of a traceback it is, rank by rank."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Literal

from core.text.plain import plain
from core.troubleshoot.prefixes import Origin, Prefixes
from core.troubleshoot.reading import Reading

Kind = Literal["plain", "header", "frame", "source", "exception", "message"]

HEADER = "Traceback (most recent call last)"
MESSAGE_LINES = 25
OPEN_LINES = 400
"""A traceback whose exception does not come within so many lines of its stream is given up."""

NEAR = 6
"""Lines of a stream within which a deeper line still belongs to a frame."""

_FRAME = re.compile(r"\s*File \"[^\"]{1,500}\", line \d+")
_REPEATED = re.compile(r"\s*(?:\[Previous line repeated|[~^]+\s*$|\.\.\. <\d+ lines>)")
_NATIVE_FRAME = re.compile(r"\s*(?:frame #\d+: |#\d+ +0x[0-9a-f]+ )")
_ECHO = re.compile(r"\+{1,3} [\w./]|(?:\[[^\]]{1,80}\] ){0,4}cmd = ")
"""A command that is shown before it runs: what stands in it has not happened."""
_DOCTOR = re.compile(r"[✓!✗?-] (?:pass|warn|fail|skip|unknown|[^\x00-\x7f]{2,6}) +[a-z0-9]+(?:[._][a-z0-9_]+)* ")
"""A finding of `llm-wizard doctor`; below it, indented, what it explains. Nothing of it has happened in this log."""
_NAME = r"(?:[A-Za-z_]\w*\.){0,12}"
_EXCEPTION = re.compile(rf"{_NAME}[A-Z]\w{{2,80}}(?=:|\s*$)")
_BARE = re.compile(
    rf"{_NAME}[A-Z]?\w{{0,80}}(?:Error|Exception|Interrupt|Failure)(?=:|\s*$)|(?:[a-z_]\w*\.){{2,12}}[A-Z]\w{{2,80}}(?=: |\s*$)|error: "
)
"""An exception without a traceback before it: its name must say so, or a path of modules before it."""
_NOT_ONE = re.compile(
    rf"{_NAME}\w*Warning|Note|Hint|Usage|Example|Step|Epoch|INFO|WARNING|ERROR|DEBUG|CRITICAL|Exception ignored"
)
_LINKS = (
    "During handling of the above exception, another exception occurred",
    "The above exception was the direct cause of the following exception",
)
_GROUP_MARK = re.compile(r"\s+(?:\| |\+-[+-]*-* ?)")
_NEW_STATEMENT = re.compile(
    r"\[?\d{4}-\d\d-\d\d|\[?\d\d:\d\d:\d\d|\[?[IWEF](?:\d{3,4}|) \S|\[?(?:INFO|WARNING|ERROR|DEBUG|CRITICAL)\b|[=*-]{5}|>{1,3} |srun:|slurmstepd:"
    r"|[\w.-]{1,60}:\d+:\d+ \[\d+\] NCCL|wandb: |huggingface/|\S{1,200}\.py:\d+: |[\w.]{1,60} (?:INFO|WARNING|ERROR) "
)
_STEP = re.compile(
    r"\biteration\s+\d+\s*/|\bsteps?[ =:]{1,3}\d[\d,]*\s*(?:/|,|:|\|)?.{0,40}\bloss\b|'loss': ?['\d]|\bloss[:= ]{1,3}\d+\.\d"
    r"|\bglobal_step[=:/ ]|RunningAvgSamplesPerSec|samples/sec"
)
_FOLDED = re.compile(re.escape(HEADER) + r":?\\{1,4}n")
_FOLD = re.compile(r"\\{1,4}n")
_CLOCK = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)")
PROGRESS_TEXTS = ("iteration ", "step", "loss", "samplespersec", "samples/sec")
"""Each line that tells of a training step holds one of these."""


@dataclass
class Entry:
    """One line. `stream` names the rank or host whose lines belong together; `chain` numbers linked tracebacks."""

    file: str
    number: int
    text: str
    origin: Origin
    stream: str
    kind: Kind = "plain"
    chain: int | None = None
    ignored: bool = False
    """Part of an exception that the interpreter itself passed over (in a destructor)."""
    step: bool = False
    """Tells that training goes on."""
    time: float | None = None
    order: float = 0.0
    """Where the line stands among those of all files."""


@dataclass
class _Stream:
    open: int = 0
    header_indent: int = 0
    frame_indent: int | None = None
    last_indent: int = 0
    since_frame: int = 1000
    message: int = 0
    chain: int = -1
    linked: bool = False
    ignored: bool = False
    box: bool = False
    """Inside a traceback that the rich library drew as a box."""
    finding: bool = False
    """Inside a finding of the doctor."""
    tangled: bool = False
    """Tracebacks of several ranks stand line by line in one another: which exception is whose cannot be told."""
    since_open: int = 0
    introduces: bool = False
    """The line before is an exception that announces another as its reason: `BackendCompilerFailed: ... raised:`."""


@dataclass
class _Annotator:
    streams: dict[str, _Stream] = field(default_factory=dict)
    chains: int = 0

    def leave_all(self) -> None:
        """Lines are missing: what was open is not known to go on."""
        for stream in self.streams.values():
            stream.open, stream.frame_indent, stream.message, stream.box = 0, None, 0, False
            stream.finding = False

    def annotate(self, entry: Entry) -> None:
        stream = self.streams.setdefault(entry.stream, _Stream())
        text = entry.text
        introduced = stream.introduces
        stream.introduces = introduced and not text.strip()
        if found := _GROUP_MARK.match(text):
            text = text[found.end() :]
        if stream.box:
            entry.kind, entry.chain = "source", stream.chain
            stream.box = not text.lstrip().startswith("╰")
            return
        stream.finding = _DOCTOR.match(text) is not None or (stream.finding and text.startswith("    "))
        if stream.finding:
            entry.kind = "source"
            return
        if (at := text.find(HEADER)) >= 0:
            stream.box = text.lstrip().startswith("╭")
            if at and text[:at].strip():
                entry.text = text = text[at:]  # a progress bar stood before it on the line
            self._open(stream, entry, len(text) - len(text.lstrip()))
            return
        indent = len(text) - len(text.lstrip())
        stream.since_open += 1
        if stream.open and stream.since_open > OPEN_LINES:
            stream.open = 0
        if _FRAME.match(text):
            entry.kind, entry.chain, entry.ignored = "frame", stream.chain, stream.ignored
            stream.frame_indent, stream.message = indent, 0
            stream.last_indent, stream.since_frame = indent, 0
            return
        stream.since_frame += 1
        if not text.strip():
            stream.message = max(0, stream.message - 5)
            return
        inside = stream.frame_indent is not None and indent > stream.frame_indent
        if not stream.message and stream.since_frame <= NEAR and indent > max(3, stream.last_indent):
            inside = True  # another rank's lines stand between the frame and its source
        if (
            inside
            or (stream.open and indent >= stream.header_indent + 4)
            or _NATIVE_FRAME.match(text)
            or _ECHO.match(text)
        ):
            entry.kind = "source"
            return
        if stream.frame_indent is not None and _REPEATED.match(text):
            entry.kind = "source"
            return
        self._outside_frames(stream, entry, text.strip(), indent, introduced)

    def _open(self, stream: _Stream, entry: Entry, indent: int) -> None:
        if not stream.linked and not stream.open:
            self.chains += 1
            stream.chain = self.chains
        entry.kind, entry.chain, entry.ignored = "header", stream.chain, stream.ignored
        stream.tangled |= stream.open > 0
        stream.open += 1
        stream.header_indent, stream.frame_indent, stream.linked = indent, None, False
        stream.since_open = stream.message = 0

    def _outside_frames(self, stream: _Stream, entry: Entry, text: str, indent: int, introduced: bool) -> None:
        if text.startswith(_LINKS):
            stream.linked, stream.message = True, 0
            return
        if text.startswith("Exception ignored in"):
            stream.ignored, entry.ignored, stream.message = True, True, 0
            return
        pattern = _EXCEPTION if stream.open else _BARE
        if pattern.match(text) and not _NOT_ONE.match(text) and (stream.open or not indent):
            if (not stream.open or stream.tangled) and not introduced:
                self.chains += 1
                stream.chain = self.chains
                stream.ignored &= stream.open > 0
            entry.kind, entry.chain, entry.ignored = "exception", stream.chain, stream.ignored
            stream.open = max(0, stream.open - 1)
            stream.frame_indent = None
            stream.message = MESSAGE_LINES
            stream.introduces = text.endswith(":")
            if not stream.open:
                stream.ignored = stream.tangled = False
        elif stream.message and not _NEW_STATEMENT.match(text) and not entry.step:
            entry.kind, entry.chain = "message", stream.chain
            stream.message -= 1
        else:
            stream.message = 0


def entries_of(name: str, reading: Reading, origin: Origin) -> Iterator[Entry]:
    """The lines of one log, annotated. `origin` is what the file's own name says (`rank3.log`)."""
    lines = [(number, part) for number, text in reading.lines for part in _unfolded(plain(text))]
    prefixes = Prefixes(text for _, text in lines)
    annotator = _Annotator()
    last = 0
    clocks: dict[str, float | None] = {}
    for number, raw in lines:
        text, where = prefixes.split(raw, origin)
        stream = str(where) or "-"
        entry = Entry(name, number, text, where, stream, step=_STEP.search(text) is not None)
        if found := _CLOCK.search(raw[:80]):
            clocks[stream] = _seconds(found)
        entry.time = clocks.get(stream)
        if number > last + 1:
            annotator.leave_all()
        annotator.annotate(entry)
        last = number
        yield entry


def _unfolded(text: str) -> list[str]:
    """The lines of a traceback that stands in one line: a JSON log, torchrun's error file, the repr of an exception."""
    found = _FOLDED.search(text)
    if found is None:
        return [text]
    first, *rest = _FOLD.split(text[found.start() :])
    return [text[: found.start()] + first, *(part.replace('\\"', '"') for part in rest)]


def _seconds(found: re.Match[str]) -> float | None:
    try:
        return datetime(*map(int, found.groups()), tzinfo=timezone.utc).timestamp()  # type: ignore[misc, arg-type]
    except ValueError:
        return None
