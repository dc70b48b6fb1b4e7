"""Reading the samples of a run back: how each node is now, and how it was.

Only what is new in a file is read, and of that only the last sample is parsed: a look at 128 nodes must cost a screen nothing.
The fields of a sample are described in core/cluster/agent.py; the collector adds "restarts" (of the node's agent) and
"clock_ahead" (the node's clock against the head node's, seconds), and sets "time" to the arrival on the head node.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from core.cluster.sample_files import file_stem, history_path, old_ring_path, ring_path
from core.runs.directory import RunDirectory

STALE_PERIODS = 3
LOST_S = 30.0
FULL_RATE_MINUTES = 30.0
"""`history` gives every sample of so many last minutes; of the time before, one averaged a minute."""
TAIL_BYTES = 1 << 17
"""What is read of a file that is looked at first: more than the 30 s between two slow parts."""
_SLOW = b'"slow":{'


@dataclass(frozen=True)
class NodeView:
    """One node as a reader sees it; `error` says how its agent ended, until the next sample comes."""

    host: str
    sample: dict[str, Any] | None
    slow: dict[str, Any] | None
    age_s: float
    status: str
    """"ok", "stale" (3 periods without a sample) or "lost" (30 s)."""
    error: str


def node_view(
    host: str, sample: dict[str, Any] | None, slow: dict[str, Any] | None, since: float, error: str, now: float
) -> NodeView:
    """A node judged by the age of its last sample; `since` stands for its time where there is none."""
    age = max(0.0, now - (sample["time"] if sample else since))
    period = sample["period"] if sample else 0.0
    status = "lost" if age > LOST_S else "stale" if age > STALE_PERIODS * period else "ok"
    return NodeView(host, sample, slow, age, status, error)


@dataclass
class _File:
    """What has been read of one host's ring."""

    host: str
    identity: tuple[int, int] = (0, 0)
    offset: int = 0
    sample: dict[str, Any] | None = None
    slow: dict[str, Any] | None = None
    error: str = ""
    since: float = field(default=0.0)


class NodeSamples:
    """The nodes of one run; keeps where it has read to. Cheap to make, made once by a screen."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._files: dict[str, _File] = {}
        self._listed_at: int | None = None

    def look(self, now: float) -> list[NodeView]:
        """Every node of the run, by name; `now` is the time that ages are counted to (unix seconds)."""
        self._list(now)
        for stem, file in self._files.items():
            self._read(stem, file)
        views = [
            node_view(file.host, file.sample, file.slow, file.since, file.error, now)
            for file in self._files.values()
            if file.sample or file.error
        ]
        return sorted(views, key=lambda view: view.host)

    def history(self, host: str, minutes: float) -> list[dict[str, Any]]:
        """The samples of the last `minutes` that there are of a host, the oldest first.

        The time counts back from the last sample, so that a run that has ended shows its end. Within FULL_RATE_MINUTES of it
        every sample is given, with what slow parts there are; before that, the means over a minute.
        """
        stem = next((stem for stem, file in self._files.items() if file.host == host), file_stem(host))
        recent: list[dict[str, Any]] = []
        start = None
        for sample in self._ring_backwards(stem):
            if start is None:
                start = sample["time"] - 60 * min(minutes, FULL_RATE_MINUTES)
            if sample["time"] < start:
                break
            recent.append(sample)
        if not recent:
            return []
        first, before = recent[-1]["time"], recent[0]["time"] - 60 * minutes
        older = []
        if minutes > FULL_RATE_MINUTES:
            for sample in _samples_backwards(history_path(self._run, stem)):
                if sample["time"] < before:
                    break
                if sample["time"] < first:
                    older.append(sample)
        return [*reversed(older), *reversed(recent)]

    def _list(self, now: float) -> None:
        """Find the files of new nodes; the folder's own time says whether there can be any, once it is a while ago."""
        try:
            changed_at = os.stat(self._run.nodes).st_mtime_ns  # noqa: PTH116 (no Path for a figure a second)
        except OSError:
            return
        if changed_at == self._listed_at and now - changed_at / 1e9 > 2:
            return
        self._listed_at = changed_at
        for name in os.listdir(self._run.nodes):  # noqa: PTH208
            stem = name.removesuffix(".jsonl")
            if stem != name and not stem.endswith((".1", ".history")) and stem not in self._files:
                self._files[stem] = _File(host=stem)

    def _read(self, stem: str, file: _File) -> None:
        """Take in what has been written since the last look."""
        path = ring_path(self._run, stem)
        try:
            status = os.stat(path)  # noqa: PTH116
            identity = (status.st_dev, status.st_ino)
            if identity != file.identity or status.st_size < file.offset:
                file.identity, file.offset = identity, 0
            if status.st_size == file.offset:
                return
            file.offset = max(file.offset, status.st_size - TAIL_BYTES)
            with path.open("rb", buffering=0) as opened:
                data = os.pread(opened.fileno(), status.st_size - file.offset, file.offset)
        except OSError:
            return
        whole = data.rfind(b"\n") + 1  # a line may be in the middle of being written
        file.offset += whole
        self._take(file, data[:whole])

    @staticmethod
    def _take(file: _File, data: bytes) -> None:
        lines = _parsed_backwards(data)
        last = next(lines, None)
        if last is None:
            return
        file.host = str(last.get("host", file.host))
        file.error = ""
        if "error" in last:
            file.error, file.since = str(last["error"]), file.since or last["time"]
            last = next((line for line in lines if "seq" in line), None)
        if last is not None and "seq" in last:
            file.sample = last
        at = data.rfind(_SLOW)
        if at >= 0:
            line = next(_parsed_backwards(data[: data.find(b"\n", at) + 1]), {})
            file.slow = line.get("slow") or file.slow

    def _ring_backwards(self, stem: str) -> Iterator[dict[str, Any]]:
        yield from _samples_backwards(ring_path(self._run, stem))
        yield from _samples_backwards(old_ring_path(self._run, stem))


def _parsed_backwards(data: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects in the lines of `data`, the last first; a line that is damaged is left out."""
    end = len(data)
    while end > 0:
        start = data.rfind(b"\n", 0, end - 1) + 1
        try:
            document = orjson.loads(data[start:end])
        except orjson.JSONDecodeError:
            document = None
        if isinstance(document, dict) and "time" in document:
            yield document
        end = start


def _samples_backwards(path: Path, block: int = 1 << 18) -> Iterator[dict[str, Any]]:
    """The samples in a file, the last first, read in blocks: of a week's history a page mostly wants the last hour."""
    try:
        with path.open("rb", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            held = b""
            while end > 0:
                start = max(0, end - block)
                data = os.pread(file.fileno(), end - start, start) + held
                cut = data.find(b"\n") + 1 if start else 0
                held, end = data[:cut], start
                yield from (document for document in _parsed_backwards(data[cut:]) if "seq" in document)
    except OSError:
        return
