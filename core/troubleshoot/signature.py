"""What is known of one failure: how its lines read, when they count, why it happens and what mends it."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Literal

from pydantic import Field, model_validator

from core.section import Section
from core.troubleshoot.literals import required_literals

Role = Literal["root", "cascade", "advisory", "info"]
Severity = Literal["blocker", "error", "warning", "info"]


class Conditions(Section):
    """What must be true besides a matching line."""

    stalled_for: float | None = None
    """Seconds without output from which on the line counts; on a run that goes on it is normal."""
    ended_by: str | None = None
    """A later line that matches this shows that what the line announces came to a good end."""
    each: bool = False
    """Every rank announces and ends for itself: as many lines of `ended_by` as of the first pattern."""
    asked: str | None = None
    """With a line that matches this anywhere in the log, the failure stands even where training goes on."""
    warns: bool = False
    """The line is worded as a warning and names a failure all the same."""
    min_count: int = 1
    """So many matching lines, with no training step after the last."""
    raised: bool = False
    """Only an exception, or its message, is the failure; elsewhere the line is a notice of something that is tried again."""
    leads_to: str | None = None
    """An exception that reads like this follows from a line that is only a warning."""
    after: str | None = None
    """An earlier line of the same log must match this."""
    alone: bool = False
    """The line says how a process ended, not why: an earlier exception that nothing explains takes it back."""


class Signature(Section):
    """One known failure. Patterns are searched in single lines without colours, rank and host prefixes."""

    id: str = Field(pattern=r"[a-z0-9]+(-[a-z0-9]+)*")
    category: str
    """The name of the file that it stands in."""
    role: Role
    """root: a cause; cascade: follows another failure, so a root is looked for first; advisory: worth knowing, never
    the verdict; info: the verdict only where nothing failed."""
    log_regex: list[str] = []
    """Any of these names the failure."""
    hints: list[str] = []
    """Lines that point to the failure but also stand in logs of runs that go on: they count where nothing else explains the end."""
    stack: list[str] = []
    """Places in a traceback (`file.py", line N, in function`) that name it."""
    exit_codes: list[int] = []
    """Exit codes that speak for it where no line does; negative ones are signals."""
    match_when: Conditions = Conditions()
    explains: list[str] = []
    """Failures that this one brings about: found together, this is the cause, whichever line came first."""
    persists: bool = False
    """Still true when training goes on after the line."""
    sample: str
    """Lines as they were reported."""
    cause: str
    fix: str
    auto_fixable: bool = False
    """Whether the tool may mend it: by a fix of the doctor, or with other settings for the next attempt."""
    auto_fix: list[str] = []
    """The commands or settings that do; {names} are filled in."""
    check: str | None = None
    """The doctor's check that finds the same trouble before a run."""
    doctor_fix: str | None = None
    """The fix of `llm-wizard doctor --fix`."""
    severity: Severity
    sources: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Signature:
        if not (self.log_regex or self.stack or self.exit_codes):
            raise ValueError("nothing to recognise it by: log_regex, stack or exit_codes")
        if self.auto_fixable and self.role not in ("root", "info"):
            raise ValueError(f"a {self.role} must not be mended automatically: the cause is elsewhere")
        if self.auto_fixable != bool(self.auto_fix):
            raise ValueError("auto_fixable and auto_fix go together")
        return self

    @cached_property
    def strong(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(pattern) for pattern in self.log_regex)

    @cached_property
    def weak(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(pattern) for pattern in self.hints)

    @cached_property
    def places(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(pattern) for pattern in self.stack)

    @cached_property
    def literals(self) -> frozenset[str]:
        """Texts of which every matching line holds at least one: lower case, without digits."""
        found: set[str] = set()
        for pattern in (*self.log_regex, *self.hints, *self.stack):
            found |= required_literals(pattern)
        return frozenset(found)
