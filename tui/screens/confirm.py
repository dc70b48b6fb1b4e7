"""A question with two answers, above a screen. The answer that changes nothing is the one that Enter takes."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Footer, OptionList, Static
from textual.widgets.option_list import Option

from core.language import tr, tr_later
from tui.screens.base import WizardDialog


class ConfirmDialog(WizardDialog[bool]):
    """Dismissed with True for `yes`. All texts are already translated and plain."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", tr_later("Yes")),
        Binding("n,escape", "answer(False)", tr_later("No")),
    ]

    def __init__(self, question: str, details: str, yes: str, no: str = "") -> None:
        super().__init__()
        self._question, self._details, self._yes, self._no = question, details, yes, no

    def compose(self) -> ComposeResult:
        with Vertical(id="confirm-box"):
            yield Static(self._question, id="question", markup=False)
            yield Static(self._details, id="details", markup=False)
            yield OptionList(
                Option(self._yes, id="yes"), Option(self._no or tr("No, leave it"), id="no"), id="answers", markup=False
            )
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        answers = self.query_one("#answers", OptionList)
        answers.highlighted = 1
        answers.focus()

    @on(OptionList.OptionSelected, "#answers")
    def take_answer(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id == "yes")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)
