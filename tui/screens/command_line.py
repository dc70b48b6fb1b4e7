"""The draft as a command line: shown to be read or marked with the mouse, and put into the terminal's clipboard."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from core.language import tr, tr_later
from core.runs.default import default_runs_dir
from core.text.plain import plain
from tui.draft import Draft
from tui.screens.base import WizardDialog
from tui.widgets.key_bar import KeyBar


class CommandLineDialog(WizardDialog[None]):
    """Escape, Enter or `q` closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", tr_later("Close"), key_display="esc"),
        Binding("y,ctrl+y", "copy", tr_later("Copy again"), key_display="y"),
    ]

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self._draft = draft

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="command-box") as box:
            box.border_title = tr("The same run from a shell")
            yield Static(plain(self._command()), id="command", markup=False)
            if self._draft.problems():
                yield Static(tr("Some values are still wrong; the command will say so too."), markup=False)
            note = tr("It was sent to the clipboard of your terminal (OSC 52); in tmux: set -g set-clipboard on.")
            yield Static(note, id="note", markup=False)
        yield KeyBar()

    def _command(self) -> str:
        runs_dir = self.wizard.runs_dir
        usual = runs_dir == default_runs_dir().absolute()
        return self._draft.command_line(*([] if usual else ["--runs-dir", str(runs_dir)]))

    def on_mount(self) -> None:
        self.query_one("#command-box").focus()
        self.action_copy()

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self._command())
