"""A training that no longer takes steps: found by its silence, and what every process was doing is saved before it is ended."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from core.runs.directory import RunDirectory

ANSWER_S = 3.0
"""faulthandler answers at once, whatever the process waits in; one that does not is stopped, or in the kernel."""
_FRAME = re.compile(r'  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.*)')


@dataclass
class Silence:
    """How long metrics.jsonl has not grown."""

    metrics: Path
    limit: float | None
    """Seconds; None for a stage that is never taken as hung."""
    _size: int = -1
    _since: float = field(default_factory=time.monotonic)

    def is_over(self) -> bool:
        """Whether the silence has lasted too long."""
        if self.limit is None:
            return False
        try:
            size = self.metrics.stat().st_size
        except OSError:
            size = 0
        now = time.monotonic()
        if size != self._size:
            self._size, self._since = size, now
        return now - self._since > self.limit


@dataclass
class Stacks:
    """The stacks that the ranks of a stage write when asked (SIGUSR1; core/stages/entry.py), told from those of earlier times."""

    run: RunDirectory
    stage_id: str
    ranks: int
    _before: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = {rank: self._size(rank) for rank in range(self.ranks)}

    def missing(self) -> list[int]:
        """The ranks that have not answered."""
        return [rank for rank in range(self.ranks) if self._size(rank) <= self._before[rank]]

    def describe(self) -> str:
        """Where each rank stands, equal ones together: `ranks 0, 2: all_reduce (distributed_c10d.py:2810); rank 1 does not answer`."""
        places: dict[str, list[int]] = {}
        missing = self.missing()
        for rank in range(self.ranks):
            if rank not in missing:
                places.setdefault(self._place(rank), []).append(rank)
        said = [f"{_ranks(ranks)}: {place}" for place, ranks in places.items()]
        if missing:
            said.append(f"{_ranks(missing)}: no answer (stopped, gone, or held in the kernel)")
        return "; ".join(said)

    def _path(self, rank: int) -> Path:
        return self.run.stacks(self.stage_id) / f"rank-{rank}.txt"

    def _size(self, rank: int) -> int:
        try:
            return self._path(rank).stat().st_size
        except OSError:
            return 0

    def _place(self, rank: int) -> str:
        """The innermost call of the main thread, which faulthandler prints last."""
        with self._path(rank).open("rb") as file:
            file.seek(self._before[rank])
            text = file.read(1 << 20).decode("utf-8", "replace")
        main = text[max(text.rfind("Current thread"), text.rfind("Thread 0x"), 0) :]
        frame = _FRAME.search(main)
        return f"{frame['function']} ({Path(frame['file']).name}:{frame['line']})" if frame else "?"


def _ranks(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:16])) + (f" and {len(numbers) - 16} more" if len(numbers) > 16 else "")
    return f"rank {shown}" if len(numbers) == 1 else f"ranks {shown}"
