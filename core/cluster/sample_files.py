"""Samples on the disk of the head node: a ring of two files a host for the last hours, and means for all of the run's time.

nodes/<host>.jsonl          as they came; at 4 MiB it becomes nodes/<host>.1.jsonl, and the one before is dropped
nodes/<host>.history.jsonl  means over 60 s (of temperatures the maximum), without the slow part; at 16 MiB the lines of its older
                            half are put together, so that it never grows over that: the longer a run, the coarser its beginning

Where nothing comes from a node, the ring has {"time", "host", "error", "restarts"} instead of a sample.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from core.cluster.thinning import GPU_MEANS, MEANS, thin
from core.runs.directory import RunDirectory

if TYPE_CHECKING:  # screens read what is written here; they start no agents
    from core.cluster.agent_stream import Interruption

RING_BYTES = 4 << 20
HISTORY_BYTES = 16 << 20
"""A week or more of a node with eight GPUs before its first thinning (docs/measurements.md)."""
THIN_EVERY_S = 10.0
"""One thinning takes up to a second, and the histories of all nodes get full at the same time."""
HISTORY_S = 60.0


def file_stem(host: str) -> str:
    """The name of a host's files without their endings.

    A name that could leave the folder, or be taken for the ring or the history of another host (`10.0.0.1`), is changed and
    carries a hash of what it was.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", host)[:100]
    safe = re.sub(r"^[.-]", "_", safe) or "_"
    if safe == host and not safe.endswith((".1", ".history")):
        return safe
    return f"{safe}-{hashlib.sha256(host.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def ring_path(run: RunDirectory, stem: str) -> Path:
    return run.nodes / f"{stem}.jsonl"


def old_ring_path(run: RunDirectory, stem: str) -> Path:
    return run.nodes / f"{stem}.1.jsonl"


def history_path(run: RunDirectory, stem: str) -> Path:
    return run.nodes / f"{stem}.history.jsonl"


class SampleFiles:
    """Where the collector puts what it gets. A disk that is full costs samples, never the run."""

    def __init__(self, run: RunDirectory, event: Callable[..., None]) -> None:
        """`event` gets kind "agent" with `node`, `state` and `text` where a node is lost or comes back."""
        self._run = run
        self._event = event
        self._minutes: dict[str, Minute] = {}
        self._failing = False
        self._thinned_at = 0.0

    def sample(self, host: str, sample: Mapping[str, Any]) -> None:
        """Take one sample of the node agent."""
        stem = file_stem(host)
        self._append(ring_path(self._run, stem), sample, old_ring_path(self._run, stem))
        minute = self._minutes.setdefault(host, Minute())
        if minute.is_over(sample["time"]):
            self._append_history(stem, minute)
            minute = self._minutes[host] = Minute()
        minute.add(sample)

    def interruption(self, what: Interruption) -> None:
        """Take that nothing comes from a node."""
        error = f"{what.kind}: {what.words}"
        line = {"time": what.time, "host": what.host, "error": error, "restarts": what.restarts}
        stem = file_stem(what.host)
        self._append(ring_path(self._run, stem), line, old_ring_path(self._run, stem))
        if what.is_news:
            self._event("agent", node=what.host, state=what.kind, text=what.text)

    def back(self, host: str, away_s: float) -> None:
        """Take that a node is heard of again; its samples say so on disk."""
        self._event("agent", node=host, state="back", text=f"node {host} is heard of again after {away_s:.0f} s")

    def close(self) -> None:
        """Write the minutes that are not over yet."""
        for host, minute in self._minutes.items():
            if minute.count:
                self._append_history(file_stem(host), minute)
        self._minutes.clear()

    def _append_history(self, stem: str, minute: Minute) -> None:
        path = history_path(self._run, stem)
        means = minute.mean()
        self._append(path, means)
        if abs(means["time"] - self._thinned_at) < THIN_EVERY_S:
            return
        with contextlib.suppress(OSError):  # later again; that the disk is full is said where lines are appended
            if path.stat().st_size > HISTORY_BYTES:
                self._thinned_at = means["time"]
                thin(path, HISTORY_BYTES)

    def _append(self, path: Path, document: Mapping[str, Any], old: Path | None = None) -> None:
        try:
            line = orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)
            try:
                append_line(path, line, old)
            except FileNotFoundError:  # the first line of a run
                path.parent.mkdir(mode=0o700, exist_ok=True)
                append_line(path, line, old)
        except (OSError, TypeError) as error:
            if not self._failing:
                self._say(f"samples of the nodes are not written: {error}")
            self._failing = True
            return
        if self._failing:
            self._say("samples of the nodes are written again")
        self._failing = False

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def append_line(path: Path, line: bytes, old: Path | None = None) -> None:
    """Append in one write; with `old`, the file is first renamed to it where it would grow past RING_BYTES.

    The file is opened for each line: 128 nodes then hold no descriptors, and readers over NFS see a line once it is written.
    """
    descriptor = _open(path)
    try:
        size = os.fstat(descriptor).st_size
        if old is not None and size and size + len(line) > RING_BYTES:
            path.replace(old)
            os.close(descriptor)
            descriptor = _open(path)
            size = 0
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # the disk was full in the middle of the line before
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


class Minute:
    """Sums over the samples of one minute, kept instead of the samples: 128 nodes have thousands."""

    def __init__(self) -> None:
        self.count = 0
        self._began = 0.0
        self._last: Mapping[str, Any] = {}
        self._sums: dict[tuple[int | None, str], tuple[float, int]] = {}
        self._hottest: dict[int, float] = {}
        self._blocked = 0.0

    def is_over(self, now: float) -> bool:
        return self.count > 0 and not 0 <= now - self._began < HISTORY_S

    def add(self, sample: Mapping[str, Any]) -> None:
        if not self.count:
            self._began = sample["time"]
        self.count += 1
        self._last = sample
        self._blocked = max(self._blocked, sample["nvml_blocked_s"])
        for name in MEANS:
            self._add(None, name, sample[name])
        for gpu in sample["gpus"]:
            for name in GPU_MEANS:
                self._add(gpu["index"], name, gpu[name])
            if gpu["temperature"] is not None:
                self._hottest[gpu["index"]] = max(self._hottest.get(gpu["index"], -1e9), gpu["temperature"])

    def _add(self, gpu: int | None, name: str, value: float | None) -> None:
        if value is not None:
            total, count = self._sums.get((gpu, name), (0.0, 0))
            self._sums[gpu, name] = (total + value, count + 1)

    def mean(self) -> dict[str, Any]:
        """A sample with the means; None where no sample had a value."""
        last = self._last
        gpus = [
            {
                **gpu,
                **{name: self._mean(gpu["index"], name) for name in GPU_MEANS},
                "temperature": self._hottest.get(gpu["index"]),
            }
            for gpu in last["gpus"]
        ]
        means = {name: self._mean(None, name) for name in MEANS}
        return {
            **last,
            **means,
            "gpus": gpus,
            "period": HISTORY_S,
            "nvml_blocked_s": self._blocked,
            "slow": None,
            "samples": self.count,
        }

    def _mean(self, gpu: int | None, name: str) -> float | None:
        if (gpu, name) not in self._sums:
            return None
        total, count = self._sums[gpu, name]
        value = total / count
        return round(value) if abs(value) >= 1000 else round(value, 2)
