"""The preset's `slurm` section: what a job of `llm-wizard run --submit` asks Slurm for."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from core.section import Section

_NAMES = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,@+-]*")
_CONSTRAINT = re.compile(r"[A-Za-z0-9_\[(][A-Za-z0-9_.,:*&|\[\]()-]*")
_MEMORY = re.compile(r"\d+[KMGT]?")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d{1,2}){0,2})")
_OPTION = re.compile(r"--(?P<name>[a-z][a-z0-9-]*)(?:=.*)?")
_NAME = (_NAMES, "name that Slurm knows: letters, digits and _ . , @ + -")
_FORMS = {
    **dict.fromkeys(("partition", "account", "qos", "reservation"), _NAME),
    "constraint": (_CONSTRAINT, "constraint: names of features with & | , * [ ] ( )"),
    "mem": (_MEMORY, "size: a number with K, M, G or T, such as 370G"),
}
"""What the text of a key must look like, and the words for it."""
FOREVER = ("UNLIMITED", "INFINITE")
OWN_KEYS = (
    "partition", "account", "qos", "time", "nodes", "gpus-per-node", "cpus-per-task", "mem", "constraint", "reservation",
    "comment",
)  # fmt: skip
"""Options that have a key of their own in this section."""
OURS = (
    "signal", "requeue", "no-requeue", "open-mode", "output", "error", "input", "chdir", "job-name", "array", "wrap",
    "parsable", "wait", "test-only",
)  # fmt: skip
"""Options that the job script rests on: with others a job would not save at its time limit, or several would share a run."""


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


NumberOrText = Annotated[str, BeforeValidator(_number_as_text)]
"""`time: 90` and `mem: 0` are numbers in YAML."""


def seconds_of(time: str) -> int | None:
    """Seconds of a time limit in one of sbatch(1)'s forms, such as 90, 12:00:00 or 3-12; None for no limit.

    Raises ValueError.
    """
    if time.upper() in FOREVER:
        return None
    match = _TIME.fullmatch(time)
    if match is None:
        raise ValueError(f"{time!r} is no time: minutes, or hours:minutes:seconds, or days-hours:minutes:seconds")
    parts = [int(part) for part in match["clock"].split(":")]
    if match["days"] is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((24 * int(match["days"]) + hours) * 60 + minutes) * 60 + seconds
    if len(parts) < 3:  # minutes[:seconds]
        parts = [0, *parts, 0][:3]
    return (parts[0] * 60 + parts[1]) * 60 + parts[2]


class SlurmSection(Section):
    """The Slurm job that a submitted run asks for; empty keys are left to the cluster's own defaults."""

    partition: str = ""
    """Partition, or several with commas."""
    account: str = ""
    """Account that the time is charged to."""
    qos: str = ""
    """Quality of service."""
    time: NumberOrText = ""
    """Time limit, such as 12:00:00 or 3-00:00:00; shortly before it the run saves, and the job queues again to go on."""
    nodes: Annotated[int, Field(gt=0)] | None = None
    """How many nodes."""
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    """GPUs of each node."""
    cpus_per_task: Annotated[int, Field(gt=0)] | None = None
    """CPU cores of each node, for all its training processes together. Many clusters give one when empty."""
    mem: NumberOrText = ""
    """Memory of each node, such as 370G; 0 takes all of it."""
    constraint: str = ""
    """Features that the nodes must have."""
    reservation: str = ""
    """A reservation to run in."""
    comment: str = ""
    """A comment for the accounting; everybody can read it."""
    signal_before: Annotated[int, Field(ge=10, le=65535)] = 300
    """Seconds before the time limit at which the run begins to save and stop; more than a checkpoint takes to write."""
    extra: list[str] = []
    """Further sbatch options, each a whole one, such as --exclusive or --gres=gpu:a100:8."""

    @field_validator(*_FORMS)
    @classmethod
    def _has_its_form(cls, value: str, info: ValidationInfo) -> str:
        assert info.field_name is not None
        form, words = _FORMS[info.field_name]
        if value and not form.fullmatch(value):
            raise ValueError(f"{value!r} is no {words}")
        return value

    @field_validator("comment")
    @classmethod
    def _is_one_line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("a comment is one line of printable characters")
        return value

    @field_validator("extra")
    @classmethod
    def _are_options(cls, options: list[str]) -> list[str]:
        for option in options:
            match = _OPTION.fullmatch(option)
            if match is None or not option.isprintable():
                raise ValueError(
                    f"{option!r} is no option of sbatch: each is one whole long option, such as --exclusive"
                )
            if match["name"] in OWN_KEYS:
                raise ValueError(f"{option!r} has a key of its own: slurm.{match['name'].replace('-', '_')}")
            if match["name"] in OURS:
                raise ValueError(f"--{match['name']} is set by llm-wizard: a run saves and queues again by it")
        return options

    @model_validator(mode="after")
    def _has_time_to_save(self) -> SlurmSection:
        limit = seconds_of(self.time) if self.time else None
        if limit is not None and limit <= self.signal_before:
            raise ValueError(
                f"time {self.time} is {limit} s, and the run would begin to save {self.signal_before} s before its end "
                "(signal_before): give more time"
            )
        return self

    def options(self) -> list[tuple[str, str | None]]:
        """The sbatch options of this section, by name; None for one without a value."""
        set_here: list[tuple[str, str | None]] = []
        for name in OWN_KEYS:
            value = getattr(self, name.replace("-", "_"))
            if value not in ("", None):
                set_here.append((name, str(value)))
        for option in self.extra:
            name, equals, text = option[2:].partition("=")
            set_here.append((name, text if equals else None))
        return set_here
