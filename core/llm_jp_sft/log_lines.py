"""What a log of transformers' Trainer says: pure parsing, from the bytes of the log to facts.

The Trainer prints a dictionary for each logged step (transformers 4.36: `{'loss': 2.1234, 'learning_rate': 1e-05, 'epoch': 0.01}`; 5.x
prints the values as strings, `{'loss': '2.123', 'grad_norm': '1.2', ...}`) and at the end one with train_runtime. None says at which
step: they come every --logging_steps. How many there will be is seen on the progress bar, ` 10%|#  | 30/308 [00:40<06:12,  1.3s/it]`.
Bars are rewritten with carriage returns, so one line of the log holds many; launchers put `host: ` or `[rank0]: ` before lines, and what
another rank prints may stand in the same line. So a fact is looked for anywhere between two line ends of either kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Logged:
    """A logged step: means since the one before. `values` are numbers by the Trainer's own names."""

    values: Mapping[str, float]

    @property
    def loss(self) -> float:
        return self.values["loss"]


@dataclass(frozen=True)
class Begun:
    """train.py begins to train: progress bars before this are those of loading."""


@dataclass(frozen=True)
class Bar:
    """A progress bar: `step` of `total` are done."""

    step: int
    total: int


@dataclass(frozen=True)
class Finished:
    """The training has reached its last step; what follows is saving. `values` hold train_runtime (s) and train_loss."""

    values: Mapping[str, float]


@dataclass(frozen=True)
class Saving:
    """train.py begins to save the model."""


@dataclass(frozen=True)
class NoAnswer:
    """A conversation of which nothing counts, because the template was not found in its tokens."""

    template: str
    """instruction or response."""


Fact = Begun | Logged | Bar | Finished | Saving | NoAnswer

_NUMBER = r"[+-]?(?:\d[\d.]*(?:[eE][+-]?\d+)?|nan|inf)"
_DICTIONARY = re.compile(r"\{'[^{}]*\}")
_ENTRY = re.compile(rf"'(\w+)': (?:'({_NUMBER})'|({_NUMBER}))(?=[,}}])", re.IGNORECASE)
_BAR = re.compile(r"\b\d{1,3}%\|[^|]*\| (\d+)/(\d+) \[")
_NO_ANSWER = re.compile(r"Could not find (instruction|response) key ")
_PHASE = re.compile(r"__main__:\d+: INFO: (Training|Saving model)\s*$")
_LINE_END = re.compile(rb"[\r\n]")


def facts_in(data: bytes) -> list[Fact]:
    """The facts of whole lines, in their order. A line that is none of them is passed over."""
    return [fact for line in _LINE_END.split(data) for fact in _facts_in_line(line.decode("utf-8", "replace"))]


def whole_lines(data: bytes) -> int:
    """How many bytes of `data` are whole lines; what follows may still grow."""
    return max(data.rfind(b"\n"), data.rfind(b"\r")) + 1


def _facts_in_line(line: str) -> list[Fact]:
    found: list[tuple[int, Fact]] = []
    if "}" in line:
        for match in _DICTIONARY.finditer(line):
            values = {entry[1]: float(entry[2] or entry[3]) for entry in _ENTRY.finditer(match[0])}
            if "train_runtime" in values:
                found.append((match.start(), Finished(values)))
            elif "loss" in values and "learning_rate" in values:
                found.append((match.start(), Logged(values)))
    if "%|" in line:
        found += [(match.start(), Bar(int(match[1]), int(match[2]))) for match in _BAR.finditer(line)]
    if said := _NO_ANSWER.search(line):
        found.append((said.start(), NoAnswer(said[1])))
    if said := _PHASE.search(line):
        found.append((said.start(), Begun() if said[1] == "Training" else Saving()))
    return [fact for _, fact in sorted(found, key=lambda one: one[0])]
