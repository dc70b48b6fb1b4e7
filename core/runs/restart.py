"""Whether a training that failed is started again. A budget, renewed by every checkpoint, and no third try at one failure.

What failed, at which step and what was done is kept in the state of the stage, so that neither the budget nor what was seen is
lost with the supervisor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.records import json_records
from core.train.checkpoint import MANIFEST, step_folders

MOST_AT_ONE_FAILURE = 2
GONE = ("node", "link")
"""Kinds of failure after which the node itself must be waited for or replaced."""
_VARYING = re.compile(r"0x[0-9a-f]+|\d+")


@dataclass(frozen=True)
class Failure:
    """How an attempt ended. `kind`: "exit" (by itself), "rank", "launcher", "node", "link", "hang" or "start" (it never began).

    `step` is the last one that the attempt reported, `checkpoint` the newest that was committed by then.
    """

    kind: str
    text: str
    step: int | None
    checkpoint: int | None
    node: str | None = None
    final: bool = False
    """Whether the same input would fail again whatever happens, such as a preset that cannot be used."""

    @property
    def fingerprint(self) -> str:
        """Equal for two failures with one cause: numbers such as process ids, addresses and times are left out."""
        return f"{self.kind} {self.node or ''} at step {self.step}: {_VARYING.sub('#', self.text)[:300]}"

    def record(self, time: float) -> dict[str, Any]:
        """As it is kept in the state."""
        return {
            "time": time,
            "kind": self.kind,
            "node": self.node,
            "text": self.text,
            "step": self.step,
            "checkpoint": self.checkpoint,
            "fingerprint": self.fingerprint,
        }


def why_not_again(failure: Failure, before: Sequence[Mapping[str, Any]], budget: int) -> str:
    """Why the stage is not started again; empty where it is. `before` are the records of earlier failures, the oldest first."""
    if failure.final or budget == 0:
        return "final"
    # A node that was gone has come back since: that it goes again at the same step says nothing of the step.
    same = 0 if failure.kind in GONE else sum(record["fingerprint"] == failure.fingerprint for record in before)
    if same + 1 >= MOST_AT_ONE_FAILURE:
        at = "before its first step" if failure.step is None else f"at step {failure.step}"
        return f"the same failure {at} for the {_ordinal(same + 1)} time"
    since = sum(record["checkpoint"] == failure.checkpoint for record in before)
    if since >= budget:
        return f"{since} restarts without a new checkpoint (cluster.restarts)"
    return ""


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def newest_committed(folder: Path) -> int | None:
    """The step of the newest checkpoint with a manifest; its content is verified by who loads it."""
    return next((int(path.name[5:]) for path in step_folders(folder) if (path / MANIFEST).is_file()), None)


def last_step(metrics: Path, start: int) -> int | None:
    """The last step that stands in metrics.jsonl from byte `start` on; None where there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(start, file.tell() - (1 << 18)))
            data = file.read()
    except OSError:
        return None
    steps = [record["step"] for record in json_records(data.split(b"\n")) if isinstance(record.get("step"), int)]
    return steps[-1] if steps else None
