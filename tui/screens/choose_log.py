"""What to diagnose: one of the runs, or a log or folder by its path."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, OptionList, Static

from core.language import tr, tr_later
from core.quantities import duration
from core.text.plain import plain
from tui.run_listing import RunRow
from tui.screens.base import WizardDialog
from tui.status_marks import mark
from tui.widgets.key_bar import KeyBar
from tui.widgets.keyed_list import ChoiceList, Item, in_columns


class ChooseLogDialog(WizardDialog[Path]):
    """Dismissed with the path of a run's folder, or the path that was typed; with None where nothing was chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", tr_later("Close"))]

    def __init__(self, rows: Sequence[RunRow]) -> None:
        super().__init__()
        self._rows = list(rows)

    def compose(self) -> ComposeResult:
        with Vertical(id="choose-box") as box:
            box.border_title = tr("Which run or log?")
            yield Static(tr("The path of a log or of a folder with logs (.gz too):"), markup=False)
            yield Input(id="path", compact=True)
            yield Static(tr("Or a run:") if self._rows else tr("There are no runs yet."), id="or", markup=False)
            yield ChoiceList(id="runs")
        yield KeyBar()

    def on_mount(self) -> None:
        runs = self.query_one("#runs", ChoiceList)
        runs.show([_item(row) for row in self._rows])
        if self._rows:
            runs.highlighted = 0
            runs.focus()
        else:
            self.query_one("#path").focus()

    @on(Input.Submitted, "#path")
    def take_path(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self.dismiss(Path(event.value.strip()).expanduser().absolute())

    @on(OptionList.OptionSelected, "#runs")
    def take_run(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._rows[event.option_index].run.root)


def _item(row: RunRow) -> Item:
    age = duration(max(0.0, time.time() - row.started)) if row.started is not None else ""
    line = in_columns(mark(row.state), 12).append_text(in_columns(Text(plain(row.run.name)), 34)).append(f"  {age}")
    return str(row.run.root), line
