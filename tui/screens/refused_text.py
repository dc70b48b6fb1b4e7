"""What came back from the editor and cannot be taken over: every problem with its line; nothing of it is lost."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import OptionList, Static

from core.language import tr, tr_later
from core.text.plain import plain
from tui.screens.base import WizardDialog
from tui.status_marks import mark
from tui.widgets.key_bar import KeyBar
from tui.widgets.keyed_list import ChoiceList


class RefusedTextDialog(WizardDialog[bool]):
    """Dismissed with True to open the editor again."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(False)", tr_later("Later"))]

    def __init__(self, problems: str, text: str) -> None:
        super().__init__()
        self._problems = problems.splitlines()
        self._text = text

    def compose(self) -> ComposeResult:
        with Vertical(id="refused-box") as box:
            box.border_title = tr("This text is not a right preset")
            with VerticalScroll(id="problems"):
                yield Static(self._list(), markup=False)
            yield Static(tr("The fields are as they were; the text is kept until it is right."), markup=False)
            yield ChoiceList(id="answers")
        yield KeyBar()

    def _list(self) -> Text:
        """Each problem, and below it the line of the text that it names."""
        lines = self._text.splitlines()
        text = Text()
        for problem in self._problems:
            text.append_text(mark("fail")).append(f"  {problem}\n")
            number = next((part for part in problem.split(":")[1:2] if part.isdigit()), "")
            if number and int(number) <= len(lines):
                text.append(f"    {number} | {plain(lines[int(number) - 1])}\n", style="bright_black")
        return text

    def on_mount(self) -> None:
        answers = self.query_one("#answers", ChoiceList)
        answers.show([("again", Text(tr("Open the editor again"))), ("later", Text(tr("Later")))])
        answers.go_to("again")
        answers.focus()

    @on(OptionList.OptionSelected, "#answers")
    def take_answer(self) -> None:
        self.dismiss(self.query_one("#answers", ChoiceList).key == "again")
