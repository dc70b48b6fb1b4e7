"""Watching a training stage while it runs: small guards over its metrics that say when something goes wrong.

Each guard is fed the records of metrics.jsonl, one a step, and has a `trouble` as long as there is one.
"""

from __future__ import annotations

import math
import re
import shutil
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from core.language import tr
from core.runs.records import json_records

Record = Mapping[str, Any]
CHECKPOINT_FOLDER = re.compile(r"(?:step-|global_step)\d+")
"""Of our own trainer and of Megatron-DeepSpeed."""
COMPILERS = frozenset(
    [
        "nvcc",
        "cicc",
        "ptxas",
        "cudafe++",
        "fatbinary",
        "cc1plus",
        "cc1",
        "c++",
        "g++",
        "gcc",
        "clang",
        "clang++",
        "ld",
        "ninja",
        "collect2",
        "as",
    ]
)


@dataclass(frozen=True)
class Trouble:
    """`verdict` names what was seen (a signature's id where there is one), `text` says it with its numbers."""

    verdict: str
    text: str


@dataclass
class NotFinite:
    """The loss or the gradient norm is NaN or infinite; it does not pass."""

    trouble: Trouble | None = None

    def feed(self, record: Record) -> None:
        bad = [name for name in ("loss", "grad_norm", "val_loss") if _is_bad(record, name)]
        if bad and not self.trouble:
            step, names = record.get("step"), ", ".join(bad)
            self.trouble = Trouble(
                "loss-nan", tr("step {step}: {names} is not a finite number", step=step, names=names)
            )


def _is_bad(record: Record, name: str) -> bool:
    # JSON has no NaN: a record that has the name with null in it had one.
    if name not in record:
        return False
    value = record[name]
    return value is None or (isinstance(value, float) and not math.isfinite(value))


@dataclass
class Spike:
    """The loss stays far above that of the last steps: `steps` times running by more than `sigmas` of their spread and `least` nats.

    One step alone may be one odd batch. The spread is 1.4826 times the median distance from the median, a normal distribution's
    standard deviation (Rousseeuw and Croux 1993), which a spike hardly moves.
    """

    window: int = 50
    sigmas: float = 8.0
    least: float = 0.5
    steps: int = 3
    trouble: Trouble | None = None
    losses: deque[float] = field(default_factory=deque)
    high: int = 0

    def feed(self, record: Record) -> None:
        loss = record.get("loss")
        if not isinstance(loss, (int, float)) or not math.isfinite(loss):
            return
        if len(self.losses) < self.window:
            self.losses.append(loss)
            return
        middle = statistics.median(self.losses)
        spread = 1.4826 * statistics.median(abs(value - middle) for value in self.losses)
        if loss - middle <= max(self.least, self.sigmas * spread):
            self.losses.popleft()
            self.losses.append(loss)
            self.high, self.trouble = 0, None
            return
        self.high += 1
        if self.high == self.steps:
            text = tr(
                "step {step}: loss {loss:.3f}; the {count} steps before had {middle:.3f}",
                step=record.get("step"),
                loss=float(loss),
                count=self.window,
                middle=middle,
            )
            self.trouble = Trouble("loss-spike", text)
        elif self.high >= self.window:  # it stays: this is the level now
            self.losses.clear()
            self.high, self.trouble = 0, None


@dataclass
class OverflowLoop:
    """Steps that fp16's loss scaling leaves out, one after another (`skipped_steps` in the records counts them)."""

    most: int = 5
    trouble: Trouble | None = None
    before: int | None = None
    running: int = 0

    def feed(self, record: Record) -> None:
        skipped = record.get("skipped_steps")
        if not isinstance(skipped, int):
            return
        grew = 0 if self.before is None else skipped - self.before
        self.before = skipped
        self.running = self.running + grew if grew > 0 else 0
        if self.running < self.most:
            self.trouble = None
        elif not self.trouble:
            text = tr("{count} steps in a row were left out because of overflow", count=self.running)
            self.trouble = Trouble("fp16-overflow-skip", text)


@dataclass
class SlowRank:
    """A rank whose own forward pass takes `times` as long as the others' (`forward_ms` in the records, one value a rank).

    Compared are medians over `window` records: one slow page fault or garbage collection is not a slow rank.
    """

    times: float = 1.5
    window: int = 20
    trouble: Trouble | None = None
    recent: deque[list[float]] = field(default_factory=deque)

    def feed(self, record: Record) -> None:
        per_rank = record.get("forward_ms")
        if not isinstance(per_rank, list) or len(per_rank) < 2:
            return
        if self.recent and len(self.recent[0]) != len(per_rank):
            self.recent.clear()  # resumed with another number of processes
        self.recent.append(per_rank)
        if len(self.recent) < self.window:
            return
        middles = [statistics.median(values) for values in zip(*self.recent, strict=True)]
        self.recent.popleft()
        slowest = max(range(len(middles)), key=middles.__getitem__)
        others = statistics.median(value for rank, value in enumerate(middles) if rank != slowest)
        if middles[slowest] <= self.times * others:
            self.trouble = None
        elif not self.trouble:
            text = tr(
                "rank {rank} takes {own:.1f} ms for its forward pass, the other ranks {others:.1f} ms",
                rank=slowest,
                own=middles[slowest],
                others=others,
            )
            self.trouble = Trouble("slow-rank", text)


@dataclass
class Stalled:
    """No step for `times` the median step time, and at least `least` seconds, while no compiler runs.

    The step time is that between records as they come, validation and saving included. Until there are three, `first` seconds
    are allowed: loading and compiling take that long.
    """

    times: float = 10.0
    least: float = 120.0
    first: float = 1800.0
    trouble: Trouble | None = None
    last: float | None = None
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=50))

    def feed(self, now: float) -> None:
        """A record came."""
        if self.last is not None:
            self.gaps.append(now - self.last)
        self.last, self.trouble = now, None

    def look(self, now: float, started: float, compiles: Callable[[], bool]) -> None:
        """Judge the silence until now (seconds of the same clock as `feed`)."""
        silent = now - (self.last if self.last is not None else started)
        allowed = max(self.least, self.times * statistics.median(self.gaps)) if len(self.gaps) >= 3 else self.first
        if not self.trouble and silent > allowed and not compiles():
            self.trouble = Trouble(
                "stalled", tr("no step for {seconds:.0f} s, and no compiler is at work", seconds=silent)
            )


@dataclass
class DiskFilling:
    """Less room on the run's disk than the next checkpoint takes: 1.2 times the newest, or `floor` bytes before there is one."""

    factor: float = 1.2
    floor: int = 1 << 30
    trouble: Trouble | None = None

    def look(self, free: int, checkpoint: int) -> None:
        """`free` and `checkpoint` are bytes; a checkpoint of 0 is not known yet."""
        needed = int(self.factor * checkpoint) if checkpoint else self.floor
        if free >= needed:
            self.trouble = None
        elif not self.trouble:
            text = tr(
                "{free:.1f} GiB free on the run's disk; the next checkpoint needs {needed:.1f} GiB",
                free=free / 2**30,
                needed=needed / 2**30,
            )
            self.trouble = Trouble("disk-full", text)


class MetricsTail:
    """The new complete records of a growing metrics.jsonl, from where it ends now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0

    def read(self) -> list[Record]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                data = file.read(4 << 20)
        except OSError:
            return []
        end = data.rfind(b"\n") + 1
        self._position += end
        return list(json_records(data[:end].split(b"\n")))


class Watch:
    """All guards over one attempt at a stage. `look` may be called at any rate; it works once in `every` seconds."""

    def __init__(
        self, metrics: Path, checkpoints: Path, now: float, every: float = 2.0, disk_every: float = 30.0
    ) -> None:
        self._tail = MetricsTail(metrics)
        self._checkpoints = checkpoints
        self._started = self._looked = self._disk_looked = now
        self._every, self._disk_every = every, disk_every
        self._stalled, self._disk = Stalled(), DiskFilling()
        self._of_records = (NotFinite(), Spike(), OverflowLoop(), SlowRank())

    @property
    def troubles(self) -> list[Trouble]:
        """What is wrong at present."""
        return [guard.trouble for guard in (*self._of_records, self._stalled, self._disk) if guard.trouble]

    def look(self, now: float, pid: int | None) -> list[Trouble]:
        """What is wrong since this look. `now` is a monotonic clock's time, `pid` the stage's process."""
        if now - self._looked < self._every:
            return []
        self._looked = now
        before = self.troubles
        risen = []
        for record in self._tail.read():
            if "step" in record:
                self._stalled.feed(now)
            for guard in self._of_records:
                known = guard.trouble
                guard.feed(record)
                if guard.trouble and guard.trouble is not known:
                    risen.append(guard.trouble)  # also one that has passed again by the last record
        self._stalled.look(now, self._started, lambda: compiler_runs(pid))
        if now - self._disk_looked >= self._disk_every:
            self._disk_looked = now
            self._look_at_disk()
        return risen + [trouble for trouble in self.troubles if trouble not in before and trouble not in risen]

    def _look_at_disk(self) -> None:
        try:
            self._disk.look(shutil.disk_usage(self._checkpoints).free, newest_checkpoint_size(self._checkpoints))
        except OSError:
            return


def compiler_runs(pid: int | None) -> bool:
    """Whether a compiler is among the processes below `pid`; of a stage on other nodes (None), below this one."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return False
    for process in below:
        try:
            if process.name() in COMPILERS:
                return True
        except psutil.Error:
            continue
    return False


def newest_checkpoint_size(folder: Path) -> int:
    """Bytes of the newest checkpoint's files; 0 where there is none."""
    found = [path for path in folder.glob("*step*") if CHECKPOINT_FOLDER.fullmatch(path.name) and path.is_dir()]
    if not found:
        return 0
    newest = max(found, key=lambda path: path.stat().st_mtime)
    return sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
