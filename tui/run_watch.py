"""Watches one run for the Run screen: each look happens in a thread and ends as a message.

Never two looks of a kind at once: where the file system hangs, one thread waits, and the screen goes on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

from textual.message import Message
from textual.message_pump import MessagePump

from core.cluster.samples import NodeSamples
from core.runs.directory import RunDirectory
from core.runs.series import WHOLE_LIMIT, Column, Series, read_validations, read_window
from tui.background import in_background
from tui.log_reader import LogTail, Wanted, around, newer, of_rank, older, search
from tui.messages import DetailRead, LogEndRead, LogPartRead, NodesLooked, RunLooked
from tui.node_rows import node_rows
from tui.run_reader import RunReader, RunSnapshot

SAMPLE = 300
"""Lines of the log from which the names of hosts before the ranks are learnt."""

_turns = itertools.count(1)


class RunWatch:
    """Posts what it reads to `screen`. `turn` is in every message; it changes with the run, the stage and the filter of the
    log, so that what was read for an earlier one is known and thrown away.
    """

    def __init__(self, run: RunDirectory, screen: MessagePump) -> None:
        self.run = run
        self.turn = next(_turns)
        self.snapshot: RunSnapshot | None = None
        """The newest one that the screen has taken."""
        self.tail: LogTail | None = None
        """The end of the log, while that is shown."""
        self._screen = screen
        self._reader = RunReader(run)
        self._samples = NodeSamples(run)
        self._wanted: Wanted | None = None
        self._at_work: set[tuple[str, int]] = set()
        self._validations: tuple[str, dict[str, Column]] | None = None
        self._view: tuple[int, int] | None = None

    def is_at_work(self, name: str) -> bool:
        """Whether a look of this kind has not ended."""
        return (name, self.turn) in self._at_work

    def _begin(self, name: str, work: Callable[[], Message | None]) -> None:
        key = (name, self.turn)
        if key in self._at_work:
            return
        self._at_work.add(key)

        def go() -> Message | None:
            try:
                return work()
            finally:
                self._at_work.discard(key)

        in_background(self._screen, go, name)

    # --- the run

    def look(self) -> None:
        """The state, the curves, the events -> RunLooked."""
        turn = self.turn

        def work() -> Message:
            found, self._validations = self._validations, None
            if found is not None:
                self._reader.take_validations(*found)
            return RunLooked(turn, self._reader.look())

        self._begin("run", work)

    def take(self, snapshot: RunSnapshot) -> bool:
        """The screen has this snapshot now; True when it is of another stage than the one before."""
        before, self.snapshot = self.snapshot, snapshot
        if before is None or before.stage_id == snapshot.stage_id:
            return False
        self.turn = next(_turns)
        self.tail = self._wanted = self._view = None
        return True

    def choose(self, stage_id: str) -> None:
        """Show this stage; the one that runs is followed into the next."""
        status = self.snapshot.status if self.snapshot is not None else None
        runs = status is not None and status.state == "running" and stage_id == status.document["stage"]
        self._reader.chosen = None if runs else stage_id
        self.look()

    def look_at_nodes(self) -> None:
        """The nodes -> NodesLooked; of a run that has ended, as they were at its end."""
        if self.snapshot is None:
            return
        status, turn = self.snapshot.status, self.turn
        ended = status.document.get("ended") if status.state != "running" else None
        self._begin("nodes", lambda: NodesLooked(turn, node_rows(self._samples.look(ended or time.time()))))

    # --- the curves

    def look_at_steps(self, view: tuple[int, int] | None) -> None:
        """The records of these steps and of as many on either side -> DetailRead, where the curves are only a sample."""
        self._view = view
        if self.snapshot is None or view is None or self.snapshot.series.size <= WHOLE_LIMIT:
            return
        path, series, turn = self._metrics(self.snapshot), self.snapshot.series, self.turn
        width = view[1] - view[0]
        first, last = view[0] - width, min(view[1] + width, max(view[1], series.span[1]))
        self._begin("detail", lambda: DetailRead(turn, read_window(path, series.anchors, first, last), (first, last)))

    def look_further(self, steps: tuple[int, int]) -> None:
        """Records of these steps have been read: read on if the view has moved out of them meanwhile."""
        view = self._view
        if view is not None and not (steps[0] <= view[0] and view[1] <= steps[1]):
            self.look_at_steps(view)

    def find_validations(self, series: Series) -> None:
        """Search the validations that a sample of a long run leaves out; the next look has them."""
        if self.snapshot is None or not series.sampled or self._validations is not None:
            return
        path, stage_id, turn = self._metrics(self.snapshot), self.snapshot.stage_id, self.turn

        def work() -> None:
            found = read_validations(path, series.size, lambda: turn == self.turn and self._screen.is_running)
            if turn == self.turn:
                self._validations = (stage_id, found)

        self._begin("validations", work)

    def _metrics(self, snapshot: RunSnapshot) -> Path:
        return self.run.metrics(snapshot.stage_id)

    # --- the log

    @property
    def _log(self) -> Path | None:
        return self.run.log(self.snapshot.stage_id) if self.snapshot is not None else None

    def look_at_log(self) -> None:
        """The newest lines, if there are any -> LogEndRead."""
        path, turn = self._log, self.turn
        if path is None:
            return
        if self.tail is None:
            self.tail = LogTail(path, self._wanted)
        tail = self.tail
        self._begin("log", lambda: LogEndRead(turn, list(tail.lines), tail.skipped) if tail.read() else None)

    def only_rank(self, rank: str) -> None:
        """From now on only the lines of this rank; all for ""."""
        known = list(self.tail.lines)[-SAMPLE:] if self.tail is not None else []
        self.turn = next(_turns)
        self._wanted = of_rank(rank, known) if rank else None
        self.tail = None
        self.look_at_log()

    def look_for_more(self, before: int | None, after: int | None) -> None:
        """Lines before or behind the line that begins at a byte -> LogPartRead."""
        path, turn, wanted = self._log, self.turn, self._wanted
        if path is None:
            return
        if before is not None:
            self._begin("older", lambda: LogPartRead(turn, "older", older(path, before, wanted)))
        elif after is not None:
            self._begin("newer", lambda: LogPartRead(turn, "newer", newer(path, after, wanted)))

    def search(self, needle: str, start: int | None, backwards: bool, go_on: Callable[[], bool]) -> None:
        """The next line that holds the needle, from a byte on or from the end -> LogPartRead."""
        path, turn, wanted = self._log, self.turn, self._wanted
        if path is None:
            return

        def work() -> Message:
            begin = path.stat().st_size if start is None else start
            byte = search(path, needle, begin, backwards, lambda: turn == self.turn and go_on(), wanted)
            lines = around(path, byte, wanted) if byte is not None else []
            return LogPartRead(turn, "found", lines, needle, byte, backwards)

        self._begin(f"search {needle}", work)
