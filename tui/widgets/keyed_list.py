"""A list whose lines have keys: it is filled anew as a whole, and the cursor stays on the key that it was on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.strip import Strip
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from core.language import tr_later

Item = tuple[str, Text]
"""(key, line); a key that begins with "#" is a heading, which the cursor passes over."""

CURSOR, LEFT_BEHIND = "›", "-"
"""Before the line under the cursor, while the list has the focus and while it has not: a colour alone would not say it."""


class KeyedList(OptionList):
    """One row an item, cut at the right edge; the first two columns are the cursor's."""

    DEFAULT_CSS = """
    KeyedList { border: none; padding: 0; height: 1fr; background: transparent; text-wrap: nowrap; text-overflow: ellipsis; }
    KeyedList:focus { border: none; }
    KeyedList > .option-list--option { padding: 0 0 0 2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", tr_later("Open"), key_display="enter", tooltip=tr_later("Open or choose the line.")),
    ]

    def __init__(self, id: str) -> None:
        super().__init__(id=id, markup=False)
        self._items: list[Item] = []

    @property
    def key(self) -> str | None:
        """The key under the cursor."""
        return self._items[self.highlighted][0] if self.highlighted is not None else None

    def show(self, items: Sequence[Item]) -> None:
        """Show these lines. The same keys in the same order cost only the lines that changed."""
        items = list(items)
        if [key for key, _ in items] == [key for key, _ in self._items]:
            for place, ((_, old), (_, new)) in enumerate(zip(self._items, items, strict=True)):
                if old != new:
                    self.replace_option_prompt_at_index(place, new)
            self._items = items
            return
        kept, top = self.key, self.scroll_offset.y
        self._items = items
        self.set_options(Option(line, disabled=key.startswith("#")) for key, line in items)
        if kept is not None:
            self.go_to(kept)
        self.scroll_to(y=top, animate=False)

    def go_to(self, key: str) -> None:
        """Put the cursor on a key; where it is gone, on the first line that can be chosen."""
        keys = [key for key, _ in self._items]
        free = next((place for place, key in enumerate(keys) if not key.startswith("#")), None)
        self.highlighted = keys.index(key) if key in keys else free

    def render_line(self, y: int) -> Strip:
        strip = super().render_line(y)
        if self.scroll_offset.y + y != self.highlighted or not strip:
            return strip
        style = next(iter(strip)).style
        return Strip.join([Strip([Segment(CURSOR if self.has_focus else LEFT_BEHIND, style)], 1), strip.crop(1)])


class ChoiceList(KeyedList):
    """Things to do or answers to a question, not things to open."""

    DEFAULT_CSS = "ChoiceList { height: auto; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter", "select", tr_later("Choose"), key_display="enter", tooltip=tr_later("Open or choose the line.")
        ),
    ]


def in_columns(text: Text, cells: int) -> Text:
    """The text cut or filled up to a number of cells; a Japanese character takes two."""
    text = text.copy()
    text.truncate(cells, overflow="ellipsis", pad=True)
    return text
