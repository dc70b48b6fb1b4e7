"""Home: the runs, and the presets to start a new one from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import OptionList, Static

from core.language import tr, tr_later
from core.quantities import duration
from core.text.plain import one_line
from tui.background import in_background
from tui.messages import DraftOpened, PresetsListed, RunsListed, WorkFailed
from tui.screens.base import WizardScreen
from tui.status_marks import mark
from tui.widgets.keyed_list import Item, KeyedList, in_columns

if TYPE_CHECKING:
    from core.runs.directory import RunDirectory
    from tui.run_listing import RunListing, RunRow

REFRESH_S = 2.0
FIRST_LOOK_S = 0.03
"""Between the first frame and the first look at presets and runs."""
PATIENCE_S = 4.0
"""After so long without an answer the screen says that the runs folder does not answer."""
COLUMNS = {"state": 9, "stage": 20, "age": 8, "loss": 6}
"""Cells of each column of the runs but the run's name, which takes what is left."""
SLIM, SLIM_STAGE = 76, 12
"""Below so many columns of the terminal the stage is cut, not the name."""
LONGEST_NAME = 40
PRESET_CELLS = 22, 44
"""The narrowest and the widest column of presets' names."""


class HomeScreen(WizardScreen[None]):
    """Runs above, presets below; Enter opens either."""

    MODE = "home"
    HELP = tr_later("The runs of the runs folder, and the presets to start a new one from.")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "focus_presets", tr_later("New run"), tooltip=tr_later("Go to the presets.")),
        Binding(
            "r",
            "resume",
            tr_later("Resume"),
            tooltip=tr_later("Go on with a run that failed, was stopped or was lost."),
        ),
        Binding("escape", "dismiss_trouble", tr_later("Close the message"), show=False),
        Binding("q", "app.quit", tr_later("Quit"), tooltip=tr_later("Leave; runs go on.")),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, RunRow] = {}
        self._sources: dict[str, str] = {}
        self._listing: RunListing | None = None
        self._asked_at: float | None = None
        """When the runs were last asked for, while there is no answer yet."""
        self._unreadable = ""
        """Why the runs folder cannot be read."""

    def body(self) -> Iterable[Widget]:
        with Vertical(id="runs-box") as runs_box:
            runs_box.border_title = tr("Runs in {folder}", folder=one_line(str(self.wizard.runs_dir)))
            yield Static(id="titles", markup=False)
            yield KeyedList(id="runs")
            yield Static(tr("Reading the runs ..."), id="no-runs", markup=False)
        with Vertical(id="presets-box") as presets_box:
            presets_box.border_title = tr("Start a new run from a preset")
            yield KeyedList(id="presets")
        yield Static(id="trouble", markup=False)

    def on_mount(self) -> None:
        for hidden in ("#runs", "#titles", "#trouble"):
            self.query_one(hidden).display = False
        self.query_one("#presets").focus()
        # Presets bring pydantic and YAML, runs a file system: the first frame waits for neither, nor does the thread that
        # writes it to the terminal, which such imports would keep from Python's one lock.
        self.call_after_refresh(self.set_timer, FIRST_LOOK_S, self._begin)

    def _begin(self) -> None:
        from tui.run_listing import RunListing

        self._listing = RunListing(self.wizard.runs_dir)
        self._read_presets()
        self._read_runs()
        self.set_interval(REFRESH_S, self._read_runs)

    def on_screen_resume(self) -> None:
        if self._listing is not None:
            self._read_presets()
            self._read_runs()

    def _read_presets(self) -> None:
        in_background(self, _presets, "presets")

    def _read_runs(self) -> None:
        """Ask for the runs; while an answer is awaited nothing more is asked, so that nothing piles up."""
        if self._listing is None:
            return
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            listing = self._listing
            in_background(self, lambda: RunsListed(listing.read()), "runs")
        elif (waited := time.monotonic() - self._asked_at) > PATIENCE_S:
            text = tr("The runs folder has not answered for {time}.", time=duration(waited))
            self.query_one("#runs-box", Vertical).border_subtitle = text
            if not self._rows:
                self.query_one("#no-runs", Static).update(text)

    @on(RunsListed)
    def show_runs(self, message: RunsListed) -> None:
        self._asked_at, self._unreadable = None, ""
        self.query_one("#runs-box", Vertical).border_subtitle = ""
        self._rows = {f"run {row.run.name}": row for row in message.rows}
        self._draw_runs()

    @on(PresetsListed)
    def show_presets(self, message: PresetsListed) -> None:
        self._sources = {f"preset {row.source}": row.source for row in message.presets}
        items: list[Item] = []
        least, most = PRESET_CELLS
        cells = min(
            most, self.size.width // 2 - 4, max([least, *(cell_len(one_line(row.source)) for row in message.presets)])
        )
        for row in message.presets:
            # What is wrong with a preset is worth more room than that its column lines up.
            name = Text(one_line(row.source), style="bold")
            line = in_columns(name, least if row.trouble else cells).append("  ")
            if row.trouble:
                line.append_text(mark("fail")).append(f"  {one_line(row.trouble)}")
            else:
                line.append(one_line(tr(row.description)), style="not bold")
            items.append((f"preset {row.source}", line))
        presets = self.query_one("#presets", KeyedList)
        presets.show(items)
        if presets.highlighted is None and items:
            presets.highlighted = 0

    @on(WorkFailed)
    def show_failure(self, message: WorkFailed) -> None:
        if message.name != "runs":
            self._say_trouble(message.reason)
            return
        self._asked_at, self._rows = None, {}
        self._unreadable = tr("The runs cannot be read: {reason}", reason=message.reason)
        self._draw_runs()

    def on_resize(self) -> None:
        self._draw_runs()

    def _draw_runs(self) -> None:
        runs = self.query_one("#runs", KeyedList)
        nothing = self.query_one("#no-runs", Static)
        runs.display = self.query_one("#titles").display = bool(self._rows)
        nothing.display = not self._rows
        if self._listing is not None and self._asked_at is None:
            nothing.update(self._unreadable or tr("No runs yet. Choose a preset below and press Enter."))
        widths = _widths(self.size.width)
        self.query_one("#titles", Static).update(_titles(widths))
        runs.show([(key, _line(row, widths)) for key, row in self._rows.items()])
        if runs.highlighted is None and self._rows:
            runs.highlighted = 0

    @on(OptionList.OptionSelected, "#runs")
    def open_run(self) -> None:
        if (row := self._chosen_run()) is not None:
            self.wizard.open_run(row.run)

    @on(OptionList.OptionSelected, "#presets")
    def open_preset(self) -> None:
        key = self.query_one("#presets", KeyedList).key
        if key is not None:
            in_background(self, partial(_draft, self._sources[key]), "draft")

    @on(DraftOpened)
    def open_draft(self, message: DraftOpened) -> None:
        self.wizard.open_draft(message.draft)

    def _chosen_run(self) -> RunRow | None:
        return self._rows.get(self.query_one("#runs", KeyedList).key or "")

    def action_focus_presets(self) -> None:
        self.query_one("#presets").focus()

    def action_resume(self) -> None:
        from tui.run_actions import RESUMABLE

        row = self._chosen_run()
        if row is None:
            self._say_trouble(tr("There is no run to resume."))
        elif row.state not in RESUMABLE:
            name = one_line(row.run.name)
            self._say_trouble(tr("Run {name} cannot be resumed: it is {state}.", name=name, state=tr(row.state)))
        else:
            self._say_trouble("")
            self.wizard.say(tr("Resuming {name} ...", name=one_line(row.run.name)))
            self.start_again(row.run)

    @work(exclusive=True, group="resume", exit_on_error=False)
    async def start_again(self, run: RunDirectory) -> None:
        """Start the run's supervisor, and watch it."""
        from tui.run_actions import start_again

        if why := await start_again(run):
            self._say_trouble(why)
        else:
            self.wizard.open_run(run)

    def action_dismiss_trouble(self) -> None:
        self._say_trouble("")

    def _say_trouble(self, text: str) -> None:
        trouble = self.query_one("#trouble", Static)
        trouble.display = bool(text)
        trouble.update(mark("fail").append(f"  {text}") if text else "")


def _presets() -> PresetsListed:
    from tui.preset_listing import list_presets

    return PresetsListed(list_presets(Path()))


def _draft(source: str) -> DraftOpened:
    from tui.draft import Draft

    return DraftOpened(Draft.from_preset(source))


def _widths(terminal: int) -> dict[str, int]:
    """Cells of every column; border, cursor and edge of the box take five, the gaps two each."""
    fixed = COLUMNS | ({"stage": SLIM_STAGE} if terminal < SLIM else {})
    return fixed | {"run": min(LONGEST_NAME, max(8, terminal - 5 - sum(fixed.values()) - 2 * len(fixed)))}


def _titles(widths: Mapping[str, int]) -> Text:
    titles = {"state": tr("State"), "run": tr("Run"), "stage": tr("Stage"), "age": tr("Age"), "loss": tr("Loss")}
    return Text("  ").join(in_columns(Text(titles[name], style="bold"), widths[name]) for name in titles)


def _line(row: RunRow, widths: Mapping[str, int]) -> Text:
    cells = {"state": mark(row.state), "run": Text(one_line(row.run.name))}
    if row.trouble:
        parts = [in_columns(cell, widths[name]) for name, cell in cells.items()]
        return Text("  ").join([*parts, Text(one_line(row.trouble), style="bright_black")])
    share = f" {row.share:.0%}" if row.share is not None else ""
    cells["stage"] = Text(one_line(row.stage) + share)
    cells["age"] = Text(duration(time.time() - row.started) if row.started is not None else "")
    cells["loss"] = Text(f"{row.loss:.3f}" if row.loss is not None else "")
    return Text("  ").join(in_columns(cell, widths[name]) for name, cell in cells.items())
