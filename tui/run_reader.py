"""Reads a run's files for the screens: state, curves, the log's new lines, events. Never writes, never waits for a node."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from core.runs.directory import RunDirectory
from core.runs.series import Series, extend_series, read_series
from core.runs.state import Status, read_status
from core.text.plain import plain

LOG_LINES = 2000
READ_AT_ONCE = 1 << 20


@dataclass
class RunSnapshot:
    """What a screen shows of a run at one moment."""

    status: Status
    stage_id: str
    series: Series
    log: list[str]
    """The log's last lines."""
    log_dropped: int
    """Lines that came faster than they could be shown; they are in the file."""
    events: list[dict[str, Any]]


class LogTail:
    """The last lines of a file that may grow by tens of thousands of lines a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self.dropped = 0
        self._position = 0
        self._rest = b""

    def read(self) -> bool:
        """Take in what is new; True if anything was. A flood is skipped to its last MiB, and the skipped lines counted."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._position:  # a new file under the old name
                    self._position, self._rest = 0, b""
                    self.lines.clear()
                if size - self._position > READ_AT_ONCE:
                    self._skip(file, size)
                file.seek(self._position)
                data = file.read(READ_AT_ONCE)
        except FileNotFoundError:
            return False
        if not data:
            return False
        self._position += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        self.lines.extend(plain(line.decode("utf-8", "replace")) for line in whole[-LOG_LINES:])
        return True

    def _skip(self, file: Any, size: int) -> None:
        skipped = size - READ_AT_ONCE - self._position
        # Counting a flood of many MiB would cost what skipping saves: the mean line of the last block stands for the rest.
        sample = max(1, (self._rest.count(b"\n") + sum(map(len, self.lines))) // max(1, len(self.lines)))
        self.dropped += skipped // sample
        self._position, self._rest = size - READ_AT_ONCE, b""


@dataclass
class RunReader:
    """Keeps what was read, so that each look costs only what is new."""

    run: RunDirectory
    chosen: str | None = None
    """The stage whose log and curves are shown; the one that runs when None."""
    _series: dict[str, Series] = field(default_factory=dict)
    _logs: dict[str, LogTail] = field(default_factory=dict)
    _events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=200))
    _events_position: int = 0

    def look(self) -> RunSnapshot:
        """The run as it is now."""
        status = read_status(self.run)
        stage_id = self.chosen or status.document["stage"] or next(iter(status.document["stages"]), "")
        series = self._series.get(stage_id)
        if series is None:
            series = self._series[stage_id] = read_series(self.run.metrics(stage_id))
        else:
            extend_series(series, self.run.metrics(stage_id))
        log = self._logs.setdefault(stage_id, LogTail(self.run.log(stage_id)))
        log.read()
        self._read_events()
        return RunSnapshot(status, stage_id, series, list(log.lines), log.dropped, list(self._events))

    def _read_events(self) -> None:
        try:
            with self.run.events.open("rb") as file:
                file.seek(self._events_position)
                data = file.read()
        except FileNotFoundError:
            return
        end = data.rfind(b"\n") + 1
        self._events_position += end
        for line in data[:end].splitlines():
            try:
                self._events.append(orjson.loads(line))
            except orjson.JSONDecodeError:
                continue
