"""Text in exactly so many terminal cells."""

from __future__ import annotations

from core.text.cells import cells, cut, padded


def fitted(text: str, width: int, right: bool = False) -> str:
    """`text` in exactly `width` cells: cut with an ellipsis, or filled with spaces (before it where `right`)."""
    if width <= 0:
        return ""
    kept = cut(text, width)
    return " " * (width - cells(kept)) + kept if right else padded(kept, width)
