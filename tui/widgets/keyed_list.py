"""A list whose lines have keys: it is filled anew as a whole, and the cursor stays on the key that it was on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.widgets import OptionList
from textual.widgets.option_list import Option

Item = tuple[str, Text]
"""(key, line); a key that begins with "#" is a heading, which the cursor passes over."""


class KeyedList(OptionList):
    """One row an item, cut at the right edge."""

    DEFAULT_CSS = """
    KeyedList { border: none; padding: 0; height: 1fr; background: transparent; text-wrap: nowrap; text-overflow: ellipsis; }
    KeyedList:focus { border: none; }
    """

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


def in_columns(text: Text, cells: int) -> Text:
    """The text cut or filled up to a number of cells; a Japanese character takes two."""
    text = text.copy()
    text.truncate(cells, overflow="ellipsis", pad=True)
    return text
