"""From the lines that match to one verdict.

The order of belief: a cause that is stated by an exception or an outright error line, the earliest of all ranks and nodes; then a
cause that is only warned of; then lines that point to a cause, if the end itself is one that follows other failures; then those
followers themselves. An exception that nobody has described, in the rank that failed first, beats the last two: that is `unknown`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from core.troubleshoot.entries import Entry
from core.troubleshoot.matching import Hit
from core.troubleshoot.signature import Signature

HEALTHY, UNKNOWN = "healthy", "unknown"

STEPS_OWN, STEPS_OTHER = 3, 5
"""Training steps after a line, told by its own stream or by others, that show the run went on."""
STALL_LINES = 200
"""The announcement of the step that hangs is among so many last lines."""
KILLED = -9
STALLED_S = 120.0
"""Without output for so long, a log without findings is not called healthy."""

_TRIED_AGAIN = re.compile(
    r"\bretry|retrying|will (?:try|retry)|trying (?:again|another|next)|attempt \d+ ?(?:/|of) ?\d+|falling back|fall back|fallback"
    r"|thrown while requesting|\bignor(?:ed|ing)\b|recovered|skipping this|continuing without|disabled for this run|\(handled\)",
    re.IGNORECASE,
)
_WARNING = re.compile(
    r"^\W{0,3}(?:\w+Warning: |warnings?\b)|\bW(?:ARN(?:ING)?)\b[\]: |]|/\S+\.py:\d+: \w*Warning|^\[?W\d{4} ",
    re.IGNORECASE,
)
_NCCL = re.compile(r"\bNCCL WARN\b")
_ENDED_BADLY = (
    r"exits with return code = -?[1-9]|\(exitcode: -?[1-9]\d*\)|srun: error: .{0,200}(?:Exited with exit code|Killed|Aborted|Segmentation)"
    r"|Segmentation fault|\(core dumped\)|Fatal Python error|terminate called after throwing|torch\.distributed\.elastic\.multiprocessing\.errors"
    r"|mpirun noticed that process|prterun noticed"
)
_CANCELLED = r"\*\*\* (?:JOB|STEP) \S{1,40} ON \S{1,80} CANCELLED AT "
"""Without a reason: by a person, or by Slurm after another task's failure. No success, but no cause either."""
_INTERRUPTED = r"^(?:KeyboardInterrupt|(?:\w+\.){0,8}SignalException)\b"
_STOPPED = re.compile(r"KeyboardInterrupt|SystemExit|SignalException|StageStopped|GeneratorExit")


@dataclass
class Judgement:
    """The verdict, the hit that stands for it, other findings (causes first), notes, and an exception that nothing explains."""

    verdict: str
    chosen: Hit | None = None
    others: list[Hit] = field(default_factory=list)
    notes: list[Hit] = field(default_factory=list)
    unexplained: Entry | None = None
    signature: Signature | None = None
    """Of the verdict, also where an exit code alone speaks for it."""


def judge(
    entries: Sequence[Entry],
    hits: Sequence[Hit],
    signatures: Sequence[Signature],
    exit_code: int | None = None,
    stalled_for: float | None = None,
) -> Judgement:
    """The verdict on a log. `exit_code` is the process's (negative, or 128 + n: signal n); `stalled_for` seconds without output."""
    case = _Case(entries, hits, stalled_for)
    causes, followers, unexplained = case.causes(), case.followers(), case.unexplained()
    signal = _signal(exit_code)
    ended_badly = bool(followers or case.last_bad or signal) or (stalled_for or 0) >= STALLED_S
    by_code = next((s for s in signatures if signal is not None and signal in s.exit_codes), None)
    told = [hit for hit in case.counted if hit.signature.role == "info"]
    chosen: Hit | None = None
    if causes and not (unexplained and causes[0].signature.match_when.alone):
        chosen = causes[0]
    elif unexplained:
        chosen = next((hit for hit in reversed(case.warned) if _leads_to(hit, unexplained)), None)
    elif case.warned and (ended_badly or not case.steps):
        chosen = case.warned[0]
    elif case.pointers and ended_badly:
        chosen = case.pointers[0]
    elif case.left_behind and ended_badly:
        chosen = case.left_behind[0]
    elif followers and not (by_code and signal == KILLED):
        chosen = followers[0]
    elif told and not by_code and not ended_badly:
        chosen = told[0]

    rest = [*causes, *followers, *told]
    notes = _first_of_each(hit for hit in case.counted if hit.signature.role == "advisory")
    if chosen:
        others = _first_of_each(hit for hit in rest if hit.signature is not chosen.signature)
        return Judgement(chosen.signature.id, chosen, others, notes, signature=chosen.signature)
    if by_code and not unexplained:
        return Judgement(by_code.id, None, _first_of_each(rest), notes, signature=by_code)
    stopped = case.stopped()
    if unexplained or ended_badly or stopped:
        return Judgement(UNKNOWN, None, _first_of_each(rest), notes, unexplained or case.last_bad or stopped)
    return Judgement(HEALTHY, notes=notes)


class _Case:
    """The hits sorted by what they are worth."""

    def __init__(self, entries: Sequence[Entry], hits: Sequence[Hit], stalled_for: float | None) -> None:
        self.entries = entries
        self.stalled_for = stalled_for
        self.steps: list[int] = []
        """Places of the lines that tell of training steps, in all streams; `own_steps` has them by stream."""
        self.own_steps: dict[str, list[int]] = {}
        self._ends: dict[str, tuple[int | None, int]] = {}
        """Of each stream the chain that its last lines belong to, and where those begin."""
        for index, entry in enumerate(entries):
            if entry.step:
                self.steps.append(index)
                self.own_steps.setdefault(entry.stream, []).append(index)
            if entry.text.strip() and self._ends.get(entry.stream, (-1, 0))[0] != entry.chain:
                self._ends[entry.stream] = (entry.chain, index)
        self._found: dict[str, list[int]] = {}
        self.counted: list[Hit] = []
        self.warned: list[Hit] = []
        self.pointers: list[Hit] = []
        self.left_behind: list[Hit] = []
        """Causes that ended a rank of which nothing more was heard, though lines of other ranks tell of steps afterwards:
        output that was held back, or the last steps before the others waited in vain."""
        bad = [index for index in self._places(_ENDED_BADLY) if not self.went_on_after(index)]
        self.last_bad = entries[bad[0]] if bad else None
        counts = Counter(hit.signature.id for hit in hits)
        for hit in sorted(hits, key=_order):
            self._sort(hit, counts[hit.signature.id])

    def _places(self, pattern: str) -> list[int]:
        """Where a pattern matches; looked for once."""
        if pattern not in self._found:
            search = re.compile(pattern).search
            self._found[pattern] = [index for index, entry in enumerate(self.entries) if search(entry.text)]
        return self._found[pattern]

    def went_on_after(self, index: int) -> bool:
        """Whether training steps follow the line at this place."""
        stream = self.entries[index].stream
        mine = self.own_steps.get(stream, [])
        own = _count_after(mine, index)
        if mine and len(self.own_steps) > 1:
            return own >= STEPS_OWN
        return own >= STEPS_OWN or _count_after(self.steps, index) - own >= STEPS_OTHER

    def _sort(self, hit: Hit, count: int) -> None:
        signature, when = hit.signature, hit.signature.match_when
        if hit.entry.ignored and signature.role == "root":
            return
        if when.ended_by and not hit.in_stack and self._ended_well(hit):
            return
        if when.stalled_for is not None and not hit.in_stack and not self._hangs(hit):
            return
        if count < when.min_count:
            return
        went_on = not signature.persists and self.went_on_after(hit.index)
        if signature.role == "advisory" or (when.asked and self._places(when.asked)):
            self.counted.append(hit)
        elif went_on:
            if hit.firm and hit.entry.kind == "exception" and signature.role == "root" and self._was_last_heard(hit):
                self.left_behind.append(hit)
        elif signature.role == "root":
            self._worth(hit).append(hit)
        elif hit.entry.kind == "exception" or not _TRIED_AGAIN.search(hit.entry.text):
            self.counted.append(hit)

    def _was_last_heard(self, hit: Hit) -> bool:
        chain, begin = self._ends[hit.entry.stream]
        return len(self._ends) > 1 and chain == hit.entry.chain and begin <= hit.index

    def stopped(self) -> Entry | None:
        """The line that says that somebody stopped it: no success, though no failure of its own either."""
        cancelled = self._places(_CANCELLED)
        interrupted = (
            index
            for index in self._places(_INTERRUPTED)
            if self.entries[index].kind == "exception" and not self.entries[index].ignored
        )
        found = next((index for index in (*cancelled, *interrupted) if not self.went_on_after(index)), None)
        return None if found is None else self.entries[found]

    def _worth(self, hit: Hit) -> list[Hit]:
        """Where a root belongs: stated outright, warned of, or only pointed to."""
        when, text = hit.signature.match_when, hit.entry.text
        if not hit.firm or (when.raised and hit.entry.kind not in ("exception", "message")):
            return self.pointers
        if hit.entry.kind == "exception" or hit.in_stack or when.warns:
            return self.counted
        if _TRIED_AGAIN.search(text):
            return self.pointers
        if _WARNING.search(text) and not _NCCL.search(text):
            return self.warned
        return self.counted

    def _hangs(self, hit: Hit) -> bool:
        """Whether nothing came after the line that shows the step it announces to be over."""
        needed = hit.signature.match_when.stalled_for
        if self.stalled_for is None or needed is None or self.stalled_for < needed:
            return False
        return len(self.entries) - hit.index <= STALL_LINES and not _count_after(self.steps, hit.index)

    def _ended_well(self, hit: Hit) -> bool:
        """Whether a later line says that what the line announces is over, for all ranks that announced it."""
        when = hit.signature.match_when
        endings = _count_after(self._places(when.ended_by or ""), hit.index)
        if not when.each:
            return endings > 0
        return endings >= max(1, len(self._places(hit.signature.log_regex[0])))

    def causes(self) -> list[Hit]:
        """Root hits, the one that is believed first; what another of them brings about comes after all others."""
        roots = [hit for hit in self.counted if hit.signature.role == "root"]
        present = {hit.signature.id for hit in roots}
        brought_about = {
            other for hit in roots for other in hit.signature.explains if other in present and other != hit.signature.id
        }
        chain_ends = self._final_chains()

        def belief(hit: Hit) -> tuple[bool, bool, bool, float]:
            handled = hit.entry.chain is not None and hit.entry.chain not in chain_ends
            return (hit.signature.id in brought_about, hit.signature.match_when.alone, handled, hit.entry.order)

        return sorted(roots, key=belief)

    def followers(self) -> list[Hit]:
        """Cascade hits: the most telling first, a launcher's summary last."""
        found = [hit for hit in self.counted if hit.signature.role == "cascade"]
        brought_about = {other for hit in found for other in hit.signature.explains}
        return sorted(
            found,
            key=lambda hit: (hit.signature.severity == "info", hit.signature.id in brought_about, hit.entry.order),
        )

    def _final_chains(self) -> set[int]:
        """Chains of exceptions after which their stream says nothing but what belongs to its end."""
        last: dict[str, int] = {}
        for entry in self.entries:
            if entry.kind == "exception" and entry.chain is not None and not entry.ignored:
                last[entry.stream] = entry.chain
        return set(last.values())

    def unexplained(self) -> Entry | None:
        """The earliest exception that ended a stream and that no signature speaks for.

        Where the last exception of a stream is explained by a cause, those before it were caught. Where it is one that follows other
        failures, an earlier one may be what it follows. After such a follower an exception of the same rank is its consequence;
        in lines without a rank it may be another rank's.
        """
        causes = {hit.entry.chain for hit in [*self.counted, *self.warned] if hit.signature.role == "root"}
        following: dict[int | None, int] = {}
        for hit in self.counted:
            if hit.signature.role == "cascade" and hit.entry.chain is not None and hit.entry.kind == "exception":
                following.setdefault(hit.entry.chain, hit.index)
        streams: dict[str, list[tuple[int, Entry]]] = {}
        for index, entry in enumerate(self.entries):
            if entry.kind == "exception" and not entry.ignored:
                streams.setdefault(entry.stream, []).append((index, entry))
        candidates: list[Entry] = []
        for exceptions in streams.values():
            for index, entry in reversed(exceptions):
                if entry.chain in causes or self.went_on_after(index):
                    break
                if entry.chain in following:
                    if entry.origin.rank is not None:
                        candidates = [kept for kept in candidates if kept.stream != entry.stream]
                    continue
                if not _STOPPED.match(entry.text.strip()):
                    candidates.append(entry)
                    if not following:
                        break
        return min(candidates, key=lambda entry: entry.order, default=None)


def _count_after(places: Sequence[int], index: int) -> int:
    return len(places) - bisect_right(places, index)


def _leads_to(hit: Hit, exception: Entry) -> bool:
    pattern = hit.signature.match_when.leads_to
    return pattern is not None and hit.entry.order < exception.order and re.search(pattern, exception.text) is not None


def _order(hit: Hit) -> float:
    return hit.entry.order


def _first_of_each(hits: Iterable[Hit]) -> list[Hit]:
    first: dict[str, Hit] = {}
    for hit in hits:
        first.setdefault(hit.signature.id, hit)
    return list(first.values())


def _signal(exit_code: int | None) -> int | None:
    """An exit code that stands for signal n, 128 + n from a shell or 256 - n from Python, as -n. 255 is ssh's own failure."""
    if exit_code is not None and 128 < exit_code < 160:
        return 128 - exit_code
    if exit_code is not None and 224 < exit_code < 255:
        return exit_code - 256
    return exit_code
