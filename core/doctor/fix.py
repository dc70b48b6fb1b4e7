"""What would mend a finding: exact steps that can be shown as they are, and run as they were shown.

A fix is a value. Nothing here touches the machine: `core.doctor.mend` carries steps out.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Risk = Literal["safe", "rebuild", "destructive"]
"""safe adds something that can be taken away again; rebuild replaces what was built, for minutes; destructive takes away."""


@dataclass(frozen=True)
class Command:
    """One process. `creates` is a path whose existence means that it ran already: it is then passed over."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    creates: str = ""

    def preview(self) -> tuple[str, ...]:
        words = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        # In a shell a variable before the command is for that command alone, as it is here.
        line = " ".join([*words, shlex.join(self.argv)])
        return (f"cd {shlex.quote(self.cwd)} && {line}" if self.cwd else line,)


@dataclass(frozen=True)
class WriteFile:
    """The whole of a file; one that was there with other content is kept beside it."""

    path: str
    text: str

    def preview(self) -> tuple[str, ...]:
        return (f"+++ {self.path}", *(f"+{line}" for line in self.text.splitlines()))


@dataclass(frozen=True)
class Block:
    """Lines between two marks in a text file: put at its top, or replaced where they are there already."""

    path: str
    name: str
    lines: tuple[str, ...]

    @property
    def marks(self) -> tuple[str, str]:
        return f"# >>> llm-wizard {self.name} >>>", f"# <<< llm-wizard {self.name} <<<"

    def preview(self) -> tuple[str, ...]:
        begin, end = self.marks
        return (f"+++ {self.path}", *(f"+{line}" for line in (begin, *self.lines, end)))


@dataclass(frozen=True)
class AddLines:
    """Lines that a text file gets at its end, those that are not in it."""

    path: str
    lines: tuple[str, ...]

    def preview(self) -> tuple[str, ...]:
        return (f"+++ {self.path}", *(f"+{line}" for line in self.lines))


@dataclass(frozen=True)
class RemoveLines:
    """Lines of a text file that are there again: (number from 1, text). A line that has changed since stays."""

    path: str
    lines: tuple[tuple[int, str], ...]

    def preview(self) -> tuple[str, ...]:
        return (f"--- {self.path}", *(f"-{text}    (line {number})" for number, text in self.lines))


@dataclass(frozen=True)
class MoveAside:
    """Rename a file or folder to NAME.bak-TIME; nothing is deleted."""

    path: str

    def preview(self) -> tuple[str, ...]:
        path = shlex.quote(self.path)
        return (f'mv {path} {path}.bak-"$(date +%Y%m%d-%H%M%S)"',)


Step = Command | WriteFile | Block | AddLines | RemoveLines | MoveAside


@dataclass(frozen=True)
class Fix:
    """`steps` are what `doctor --fix ID` does; a fix without steps is `advice`, which the user or an administrator types.

    `question` is asked before a fix that is safe and still the user's to decide.
    """

    id: str
    risk: Risk
    steps: tuple[Step, ...] = ()
    advice: tuple[str, ...] = ()
    question: str = ""

    @property
    def preview(self) -> tuple[str, ...]:
        return (*(line for step in self.steps for line in step.preview()), *self.advice)

    @property
    def runnable(self) -> bool:
        return bool(self.steps)

    def document(self) -> dict[str, Any]:
        return {"id": self.id, "risk": self.risk, "preview": list(self.preview), "runnable": self.runnable}


def advice(fix_id: str, *commands: str) -> Fix:
    """A fix that only says what to type."""
    return Fix(fix_id, "safe", advice=commands)
