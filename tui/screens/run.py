"""Run: one run as it goes: stages, curves, nodes, log and events. It reads files and leaves requests, nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, Vertical
from textual.events import Resize, ScreenResume, ScreenSuspend
from textual.reactive import Reactive
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from core.language import tr, tr_later
from core.quantities import count
from core.runs.directory import RunDirectory
from core.text.plain import plain
from tui.background import in_background
from tui.messages import DetailRead, LogEndRead, LogPartRead, NodesLooked, RunFound, RunLooked, WorkFailed
from tui.run_actions import RESUMABLE, ask_to_stop, checkpoint, resume
from tui.run_reader import RunSnapshot, run_to_watch
from tui.run_watch import RunWatch
from tui.run_words import head_line, no_loss, notice, stage_rows, values_line
from tui.screens.base import WizardScreen
from tui.widgets.events import EventList
from tui.widgets.log_pane import LogPane
from tui.widgets.log_view import LogView
from tui.widgets.loss_chart import LossChart
from tui.widgets.node_grid import NodeGrid
from tui.widgets.pane_bar import PaneBar
from tui.widgets.small_chart import SmallChart
from tui.widgets.stage_rail import StageRail

RUN_S = 1.0
LOG_S = 0.35
PANES = (
    ("curves", "c", tr_later("Curves"), "#values"),
    ("log", "l", tr_later("Log"), "#log-view"),
    ("nodes", "g", tr_later("GPUs"), "#node-grid"),
    ("events", "e", tr_later("Events"), "#events"),
)
"""Id, key, title, and what in it gets the focus."""
SMALL = (
    ("lr", "lr", "magenta", "{:.2e}"),
    ("grad_norm", "grad norm", "yellow", "{:.3g}"),
    ("tokens_per_s", tr_later("tokens/s"), "cyan", ""),
    ("mfu", "MFU", "green", "{:.1%}"),
)
"""Name in the metrics, title, colour, form of the newest value."""
MOST_NODES = 10
"""Rows of the grid where it stands beside the other parts."""


class RunScreen(WizardScreen[None]):
    """The run that `wizard.watched` names; else the newest one that runs."""

    MODE = "run"
    HELP = tr_later(
        "The run goes on whatever you do here; leaving the screen never touches it. Tab moves between the parts; where they do "
        "not fit at once, c, l, g and e choose one."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "stop", tr_later("Stop"), tooltip=tr_later("Stop the run; it saves its work first.")),
        Binding("r", "resume", tr_later("Resume"), tooltip=tr_later("Go on from the last checkpoint.")),
        Binding(
            "x", "checkpoint", tr_later("Checkpoint"), tooltip=tr_later("Save a checkpoint at the end of this step.")
        ),
        Binding(
            "t",
            "app.open_mode('troubleshoot')",
            tr_later("Why?"),
            tooltip=tr_later("Look for the cause of a failure."),
        ),
        Binding("w", "wandb", "W&B", tooltip=tr_later("Copy the address of the run in Weights & Biases.")),
        Binding(
            "z",
            "enlarge",
            tr_later("Enlarge"),
            show=False,
            tooltip=tr_later("One part in the whole window, or all of them."),
        ),
        *(Binding(key, f"show_pane('{pane}')", title, show=False) for pane, key, title, _ in PANES),
        Binding("q", "app.quit", tr_later("Quit"), tooltip=tr_later("Leave; runs go on.")),
    ]

    focused: Reactive[Widget | None] = Reactive(None, repaint=False)
    """As Textual has it, but for the repaint of the whole screen; what has and what had the focus repaint themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.run_watch: RunWatch | None = None
        self.pane = "curves"
        """The part that is shown where there is room for one only."""
        self._enlarged = False
        self._clocks: list[Timer] = []
        self._drawn: tuple[int, int, int] | None = None
        self._said: Text | str | None = None

    @property
    def snapshot(self) -> RunSnapshot | None:
        """What is shown of the run."""
        return self.run_watch.snapshot if self.run_watch is not None else None

    def body(self) -> Iterable[Widget]:
        yield Static(id="run-head", markup=False)
        yield Static(id="run-values", markup=False)
        yield Static(id="run-notice", markup=False)
        with Container(id="run-main"):
            with Vertical(id="run-side"):
                yield StageRail(id="stages")
                yield PaneBar([(pane, key, tr(title)) for pane, key, title, _ in PANES], id="panes-bar")
                yield EventList(id="events", classes="pane")
            with Vertical(id="run-panes"):
                with Vertical(id="curves", classes="pane"):
                    yield LossChart(id="loss")
                    with Horizontal(id="small-charts"):
                        for name, title, colour, _ in SMALL:
                            yield SmallChart(tr(title), id=f"small-{name}", colour=colour, from_zero=name != "lr")
                with Vertical(id="nodes", classes="pane"):
                    yield Static(tr("No node has reported yet."), id="no-nodes", markup=False)
                    yield NodeGrid(id="node-grid")
                yield LogPane(id="log", classes="pane")

    def on_mount(self) -> None:
        self._title("stages", tr("Stages"))
        self._title("curves", tr("Curves"))
        self._title("nodes", tr("Nodes, the worst first"))
        self._title("log", tr("Log"))
        self._title("events", tr("Events"))
        self.query_one("#run-notice").display = False
        self.query_one("#node-grid").display = False
        self.query_one("#small-charts").display = False
        self._clocks = [
            self.set_interval(RUN_S, self._look, pause=True),
            self.set_interval(LOG_S, self._look_at_log, pause=True),
        ]

    # --- which run

    @on(ScreenResume)
    def look_again(self) -> None:
        """The screen is shown: perhaps with another run than before."""
        for clock in self._clocks:
            clock.resume()
        self._arrange()
        watched = self.wizard.watched
        if watched is not None and (self.run_watch is None or watched != self.run_watch.run):
            self._watch(watched)
        elif self.run_watch is None:
            in_background(self, partial(_find_run, self.wizard.runs_dir), "find")
        self._look()
        self._look_at_log()

    @on(ScreenSuspend)
    def rest(self) -> None:
        """Another screen is shown: nothing is read meanwhile."""
        for clock in self._clocks:
            clock.pause()

    @on(RunFound)
    def show_found(self, message: RunFound) -> None:
        """The run that runs, where none was chosen."""
        if self.run_watch is not None:
            return
        if message.run is not None:
            self._watch(message.run)
            self._look()
            return
        self._say(
            tr(
                "No run is running in {folder}. Press 1 for Home: Enter on a preset begins a new run, Enter on a run shows it.",
                folder=plain(str(self.wizard.runs_dir)),
            )
        )

    def _watch(self, run: RunDirectory) -> None:
        self.run_watch = RunWatch(run, self)
        self.query_one(NodeGrid).show([])
        self._forget()

    def _forget(self) -> None:
        """Another run or another stage: nothing that was drawn holds any more."""
        self._drawn = None
        pane = self.query_one(LogPane)
        pane.rank = ""
        pane.clear()
        self.query_one(LossChart).clear()

    # --- reading

    def _look(self) -> None:
        if self.run_watch is not None:
            self.run_watch.look()
            if self._is_shown("nodes"):
                self.run_watch.look_at_nodes()

    def _look_at_log(self) -> None:
        if self.run_watch is None:
            return
        if self._is_shown("log"):
            self.run_watch.look_at_log()
        else:
            self.run_watch.tail = None  # what comes meanwhile does not count as skipped

    @on(WorkFailed)
    def say_failure(self, message: WorkFailed) -> None:
        """A file could not be read, or a supervisor not be started."""
        self._say(tr("The run cannot be read: {reason}", reason=message.reason))

    def _is_old(self, turn: int) -> bool:
        return self.run_watch is None or turn != self.run_watch.turn

    @on(RunLooked)
    def show_run(self, message: RunLooked) -> None:
        """Draw what is new of the run."""
        watch = self.run_watch
        if watch is None or self._is_old(message.turn):
            return
        before, snapshot = watch.snapshot, message.snapshot
        if watch.take(snapshot):
            self._forget()
        now = time.time()
        self.query_one("#run-head", Static).update(head_line(snapshot, now, self.size.width), layout=False)
        self.query_one("#run-values", Static).update(values_line(snapshot), layout=False)
        self._say(notice(snapshot, now))
        self.query_one(StageRail).show(stage_rows(snapshot, now), snapshot.stage_id)
        self._title("log", tr("Log of {stage}", stage=snapshot.stage_id))
        self._title("curves", tr("Curves of {stage}", stage=snapshot.stage_id))
        self._draw()
        watch.find_validations(snapshot.series)
        if before is None:
            self._look()
            self._look_at_log()
        if before is None or before.status.state != snapshot.status.state or before.stage_id != snapshot.stage_id:
            self.refresh_bindings()

    def _draw(self) -> None:
        """The curves and the events, if they are shown and have changed."""
        snapshot = self.snapshot
        if snapshot is None or self.run_watch is None:
            return
        if self._is_shown("events"):
            self.query_one(EventList).show(snapshot.events)
        drawn = (self.run_watch.turn, snapshot.series_number, len(snapshot.checkpoints))
        if drawn != self._drawn and self._is_shown("curves"):
            self._drawn = drawn
            chart = self.query_one(LossChart)
            chart.show(snapshot.series, snapshot.checkpoints, no_loss(snapshot.stage_id))
            self.query_one("#small-charts").display = not chart.is_empty
            self._draw_small(snapshot)

    def _draw_small(self, snapshot: RunSnapshot) -> None:
        first, last = self.query_one(LossChart).seen
        for name, _, _, form in SMALL:
            value = snapshot.series.last.get(name)
            shown = "-"
            if isinstance(value, (int, float)):
                shown = form.format(value) if form else count(value)
            _, values = snapshot.series.column(name).part(first, last)
            self.query_one(f"#small-{name}", SmallChart).show(shown, values)

    def _title(self, part: str, title: str) -> None:
        widget = self.query_one(f"#{part}")
        if widget.border_title != title:  # a new one redraws all that is within
            widget.border_title = title

    def _say(self, text: Text | str | None) -> None:
        """The notice below the head; a new one is a new layout of the whole screen."""
        if text != self._said:
            self._said = text
            said = self.query_one("#run-notice", Static)
            said.display = bool(text)
            said.update(text or "")

    @on(NodesLooked)
    def show_nodes(self, message: NodesLooked) -> None:
        """Draw what is new of the nodes."""
        if self._is_old(message.turn):
            return
        grid = self.query_one(NodeGrid)
        grid.display = bool(message.rows)
        self.query_one("#no-nodes").display = not message.rows
        if len(message.rows) != len(grid.rows):
            self.query_one("#nodes").styles.height = self._height_of_nodes(len(message.rows))
        grid.show(message.rows)

    # --- the curves in detail

    @on(LossChart.ViewChanged)
    def show_steps(self, message: LossChart.ViewChanged) -> None:
        """Other steps are seen: read their records."""
        if self.run_watch is not None and self.snapshot is not None:
            self._draw_small(self.snapshot)
            self.run_watch.look_at_steps(message.steps)

    @on(DetailRead)
    def show_detail(self, message: DetailRead) -> None:
        """The records of some steps have been read."""
        if self.run_watch is not None and not self._is_old(message.turn):
            self.query_one(LossChart).show_detail(message.series, message.steps)
            self.run_watch.look_further(message.steps)

    # --- the log

    @on(LogEndRead)
    def show_end_of_log(self, message: LogEndRead) -> None:
        """The newest lines."""
        if not self._is_old(message.turn):
            self.query_one(LogPane).show_end(message.lines, message.skipped)

    @on(LogView.MoreWanted)
    def look_for_more(self, message: LogView.MoreWanted) -> None:
        """One has come near the edge of the lines that are at hand."""
        if self.run_watch is not None:
            self.run_watch.look_for_more(message.before, message.after)

    @on(LogPane.SearchWanted)
    def search_log(self, message: LogPane.SearchWanted) -> None:
        """Search the whole log."""
        if self.run_watch is not None:
            view, needle = self.query_one(LogView), message.needle
            self.run_watch.search(needle, message.byte, message.backwards, lambda: view.needle == needle)

    @on(LogPartRead)
    def show_part_of_log(self, message: LogPartRead) -> None:
        """Lines that were asked for."""
        if self._is_old(message.turn):
            return
        pane = self.query_one(LogPane)
        if message.part == "found":
            pane.show_found(message.needle, message.lines, message.byte, message.backwards)
        else:
            pane.view.add(message.part, message.lines)

    @on(LogPane.FollowWanted)
    def follow_log(self) -> None:
        """The end is wanted before the next new line comes."""
        watch = self.run_watch
        if watch is not None and watch.tail is not None and not watch.is_at_work("log"):
            self.query_one(LogPane).show_end(list(watch.tail.lines), watch.tail.skipped)

    @on(LogPane.RankWanted)
    def filter_log(self, message: LogPane.RankWanted) -> None:
        """Only the lines of one rank, or all."""
        if self.run_watch is not None:
            self.run_watch.only_rank(message.rank)

    # --- where things stand

    @on(Resize)
    def _arrange(self) -> None:
        """All parts at once where the window is large enough, else one of them."""
        self.call_after_refresh(self._arrange_now)

    def _arrange_now(self) -> None:
        everything = self.has_class("-wide") and self.has_class("-tall") and not self._enlarged
        self.set_class(everything, "-all")
        rail = self.query_one(StageRail)
        if rail.in_one_column != everything:
            rail.in_one_column = everything
            rail.refresh(layout=True)
        self.query_one("#nodes").styles.height = self._height_of_nodes(len(self.query_one(NodeGrid).rows))
        # Display and height of single widgets: a class of the screen would restyle all that is on it.
        for pane, *_ in PANES:
            self.query_one(f"#{pane}").display = everything or pane == self.pane
        self.query_one("#run-panes").display = everything or self.pane != "events"
        self.query_one("#run-side").styles.height = "1fr" if everything or self.pane == "events" else "auto"
        self.query_one(PaneBar).show(self.pane)
        self.call_after_refresh(self._draw_what_is_shown)

    def _draw_what_is_shown(self) -> None:
        self._draw()
        if self.run_watch is not None and self._is_shown("nodes"):
            self.run_watch.look_at_nodes()
        self._look_at_log()

    def _is_shown(self, pane: str) -> bool:
        return self.has_class("-all") or self.pane == pane

    def _height_of_nodes(self, rows: int) -> str | int:
        if not self.has_class("-all"):
            return "1fr"
        return min(max(1, rows + (rows > 0)), MOST_NODES, max(4, self.size.height // 4)) + 2

    def action_show_pane(self, pane: str) -> None:
        inside = self.query_one(next(inside for name, _, _, inside in PANES if name == pane))
        self.pane = pane
        if self.has_class("-all"):
            self.set_focus(inside)
        else:
            self._arrange_now()
            self.call_after_refresh(inside.focus)

    def action_enlarge(self) -> None:
        """The part with the focus in the whole window, or all parts again."""
        self._enlarged = not self._enlarged
        within = self.focused.ancestors_with_self if self.focused is not None else []
        self.pane = next((pane for pane, *_ in PANES if self.query_one(f"#{pane}") in within), self.pane)
        self._arrange_now()

    @on(StageRail.Chosen)
    def show_stage(self, message: StageRail.Chosen) -> None:
        """Another stage's curves and log."""
        if self.run_watch is not None:
            self.run_watch.choose(message.stage_id)

    @on(NodeGrid.Opened)
    def open_node(self, message: NodeGrid.Opened) -> None:
        """A node in detail."""
        from tui.screens.node import NodeScreen

        if self.run_watch is not None:
            self.app.push_screen(NodeScreen(self.run_watch.run, message.host))

    # --- requests

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action not in ("stop", "resume", "checkpoint"):
            return True
        if self.snapshot is None:
            return False
        document, state = self.snapshot.status.document, self.snapshot.status.state
        if action == "resume":
            return state in RESUMABLE
        return state == "running" and (action == "stop" or document["stage"] == "pretrain")

    def action_stop(self) -> None:
        if self.snapshot is not None:
            asked = notice(self.snapshot, time.time()) if self.snapshot.stop else None
            ask_to_stop(self.wizard, self.snapshot.status.run, asked.plain if asked else "")

    def action_checkpoint(self) -> None:
        if self.snapshot is not None:
            checkpoint(self.wizard, self.snapshot.status.run)

    def action_resume(self) -> None:
        if self.snapshot is not None:
            self._say(tr("Starting the run again ..."))
            again = resume(self.wizard, self.snapshot.status.run)
            self.run_worker(again, group="resume", exclusive=True, exit_on_error=False)

    def action_wandb(self) -> None:
        event = self.snapshot.wandb if self.snapshot is not None else None
        if event is None:
            self.wizard.say(tr("This run does not report to Weights & Biases: wandb.mode is off in its preset."))
            return
        if event.get("url"):
            copied = plain(str(event["url"]))
            words = tr("Copied: {words}", words=copied)
        else:
            copied = plain(f"wandb sync {event.get('folder', '')}")
            words = tr("This run writes for W&B offline. Copied the command that sends it: {words}", words=copied)
        self.app.copy_to_clipboard(copied)
        self.wizard.say(words)


def _find_run(runs_dir: Path) -> RunFound:
    return RunFound(run_to_watch(runs_dir))
