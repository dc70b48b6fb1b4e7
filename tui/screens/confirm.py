"""A question with two answers, above a screen. The answer that changes nothing is the one that Enter takes."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import OptionList, Static

from core.language import tr, tr_later
from tui.screens.base import WizardDialog
from tui.widgets.key_bar import KeyBar
from tui.widgets.keyed_list import ChoiceList


class ConfirmDialog(WizardDialog[bool]):
    """Dismissed with True for `yes`. All texts are already translated and plain."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", tr_later("Yes")),
        Binding("n,escape", "dismiss(False)", tr_later("No")),
    ]

    def __init__(self, question: str, details: str, yes: str, no: str = "") -> None:
        super().__init__()
        self._question, self._details, self._yes, self._no = question, details, yes, no

    def compose(self) -> ComposeResult:
        with Vertical(id="confirm-box"):
            yield Static(self._question, id="question", markup=False)
            yield Static(self._details, id="details", markup=False)
            yield ChoiceList(id="answers")
        yield KeyBar()

    def on_mount(self) -> None:
        answers = self.query_one("#answers", ChoiceList)
        answers.show([("yes", Text(self._yes)), ("no", Text(self._no or tr("No, leave it")))])
        answers.go_to("no")
        answers.focus()

    @on(OptionList.OptionSelected, "#answers")
    def take_answer(self) -> None:
        self.dismiss(self.query_one("#answers", ChoiceList).key == "yes")
