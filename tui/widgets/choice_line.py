"""One of a few words: all of them in one row with the chosen one in brackets, so that no colour is needed to see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from core.language import tr_later
from tui.widgets.cells import fitted


class ChoiceLine(Widget, can_focus=True):
    """Left, right and space choose; where the words do not fit, only the chosen one is shown, with its place."""

    DEFAULT_CSS = "ChoiceLine { height: 1; } ChoiceLine:focus { text-style: bold; background: $surface-lighten-1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "choose(-1)", tr_later("Previous"), show=False, tooltip=tr_later("Choose the word before.")),
        Binding("right,space", "choose(1)", tr_later("Next"), show=False, tooltip=tr_later("Choose the next word.")),
        Binding("enter", "submit", tr_later("Next field"), show=False, tooltip=tr_later("Go to the next field.")),
    ]
    value: reactive[str] = reactive("", init=False)

    class Changed(Message):
        """The user has chosen another word."""

        def __init__(self, line: ChoiceLine) -> None:
            super().__init__()
            self.line = line

    class Submitted(Message):
        """The user is done here."""

    def __init__(self, choices: Sequence[str], value: str, nothing: str) -> None:
        """`nothing` is how the choice of no value is shown, already translated."""
        super().__init__()
        self._nothing = nothing
        # A value that is none of the choices (a preset with a mistake) is shown too, until another is chosen.
        self.choices = list(choices) if value in choices else [value, *choices]
        self.set_reactive(ChoiceLine.value, value)

    def render(self) -> Text:
        words = self._words()
        if sum(map(cell_len, words)) <= self.size.width:
            text = Text("".join(words), no_wrap=True)
            left = sum(len(word) for word in words[: self._place])
            text.stylize("reverse", left, left + len(words[self._place]))
            return text
        place = f"{self._place + 1}/{len(self.choices)}"
        room = self.size.width - cell_len(place) - 5
        word = self.value or self._nothing
        return Text(f"‹ {fitted(word, min(room, cell_len(word)))} › {place}", no_wrap=True)

    @property
    def _place(self) -> int:
        return self.choices.index(self.value) if self.value in self.choices else 0

    def _words(self) -> list[str]:
        return [
            f"[{choice or self._nothing}]" if place == self._place else f" {choice or self._nothing} "
            for place, choice in enumerate(self.choices)
        ]

    def show(self, value: str) -> None:
        """Show a value without telling anybody."""
        if value not in self.choices:
            self.choices.insert(0, value)
        self.value = value

    def _take(self, place: int) -> None:
        if self.choices[place] != self.value:
            self.value = self.choices[place]
            self.post_message(self.Changed(self))

    def action_choose(self, by: int) -> None:
        self._take((self._place + by) % len(self.choices))

    def action_submit(self) -> None:
        self.post_message(self.Submitted())

    def on_click(self, event: Click) -> None:
        words = self._words()
        if sum(map(cell_len, words)) > self.size.width:
            self.action_choose(1)
            return
        left = 0
        for place, word in enumerate(words):
            left += cell_len(word)
            if event.x < left:
                self._take(place)
                return
