"""Text in terminal cells: a wide character takes two, and no layout may break on one."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size


def fitted(text: str, width: int, right: bool = False) -> str:
    """`text` in exactly `width` cells: cut with an ellipsis, or filled with spaces (before it where `right`)."""
    if width <= 0:
        return ""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…"
    fill = " " * (width - length)
    return fill + text if right else text + fill
