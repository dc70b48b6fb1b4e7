"""Home: the runs, and the presets to start a new one from."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import DataTable, Label, OptionList
from textual.widgets.option_list import Option

from core.language import tr, tr_later
from core.quantities import duration
from core.runs.directory import RunDirectory
from core.runs.state import Status, list_runs, read_status
from core.text.plain import plain
from tui.messages import RunsListed
from tui.screens.base import WizardScreen
from tui.status_marks import mark

REFRESH_S = 2.0


class HomeScreen(WizardScreen):
    """Runs above, presets below; Enter opens either."""

    MODE = "home"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "focus_presets", tr_later("New run")),
        Binding("r", "resume", tr_later("Resume")),
        Binding("q", "app.quit", tr_later("Quit")),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._runs: list[RunDirectory] = []

    def body(self) -> Iterable[Widget]:
        with Vertical(id="runs-box") as runs_box:
            runs_box.border_title = tr("Runs in {folder}", folder=plain(str(self.wizard.runs_dir)))
            yield DataTable(id="runs", cursor_type="row")
            yield Label(tr("No runs yet. Choose a preset below and press Enter."), id="no-runs", markup=False)
        with Vertical(id="presets-box") as presets_box:
            presets_box.border_title = tr("Start a new run from a preset")
            yield OptionList(id="presets", markup=False)

    def on_mount(self) -> None:
        table = self.query_one("#runs", DataTable)
        for key, title, width in (
            ("state", tr("State"), 11),
            ("run", tr("Run"), 24),
            ("stage", tr("Stage"), 18),
            ("age", tr("Age"), 8),
            ("loss", tr("Loss"), 8),
        ):
            table.add_column(title, key=key, width=width)
        table.display = False
        self.list_presets()
        self.read_runs()
        self.set_interval(REFRESH_S, self.read_runs)
        self.query_one("#presets").focus()

    @work(thread=True, exclusive=True, group="runs", exit_on_error=False)
    def read_runs(self) -> None:
        """Read every run's state; a file system that hangs keeps only this worker waiting."""
        self.post_message(RunsListed([read_status(run) for run in list_runs(self.wizard.runs_dir)[:100]]))

    @work(thread=True, exclusive=True, group="presets", exit_on_error=False)
    def list_presets(self) -> None:
        """Presets are read in a worker: the first frame does not wait for YAML."""
        from core.preset_source import load_preset, shipped_presets

        options = []
        for name in shipped_presets():
            prompt = Text(f"{name:<22} ", style="bold").append(tr(load_preset(name).preset.description), style="none")
            options.append(Option(prompt, id=name))
        self.app.call_from_thread(self._show_presets, options)

    def _show_presets(self, options: list[Option]) -> None:
        presets = self.query_one("#presets", OptionList)
        presets.add_options(options)
        presets.highlighted = 0

    @on(RunsListed)
    def show_runs(self, message: RunsListed) -> None:
        table = self.query_one("#runs", DataTable)
        self.query_one("#no-runs").display = not message.statuses
        table.display = bool(message.statuses)
        names = [status.run.name for status in message.statuses]
        if names != [run.name for run in self._runs]:
            table.clear()
            self._runs = [status.run for status in message.statuses]
            for status in message.statuses:
                table.add_row(*_cells(status), key=status.run.name)
            return
        for status in message.statuses:
            for column, cell in zip(("state", "run", "stage", "age", "loss"), _cells(status), strict=True):
                table.update_cell(status.run.name, column, cell)

    @on(DataTable.RowSelected, "#runs")
    def open_run(self, event: DataTable.RowSelected) -> None:
        self.wizard.open_run(RunDirectory(self.wizard.runs_dir / str(event.row_key.value)))

    @on(OptionList.OptionSelected, "#presets")
    def open_preset(self, event: OptionList.OptionSelected) -> None:
        from tui.draft import Draft

        self.wizard.open_draft(Draft.from_preset(str(event.option.id)))

    def action_focus_presets(self) -> None:
        self.query_one("#presets").focus()

    def action_resume(self) -> None:
        table = self.query_one("#runs", DataTable)
        if not self._runs or not table.display:
            return
        run = self._runs[table.cursor_row]
        if read_status(run).state != "running":
            from core.runs.start import start_supervisor

            start_supervisor(run)
        self.wizard.open_run(run)


def _cells(status: Status) -> list[Text]:
    document = status.document
    stage_id = document["stage"] or ""
    entry = document["stages"].get(stage_id, {})
    loss = entry.get("metrics", {}).get("loss")
    started = document.get("started")
    age = duration(time.time() - started) if started else ""
    shown = f"{loss:.3f}" if isinstance(loss, float) else ""
    return [mark(status.state), Text(plain(status.run.name)), Text(stage_id), Text(age), Text(shown)]
