"""Text in terminal cells: a Chinese, Japanese or full-width character takes two, and lines may break between any two."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_WIDE = r"\u3041-\u3096\u30a1-\u30fa\u3400-\u9fff\uf900-\ufaff\uff10-\uff19\uff21-\uff3a\uff41-\uff5a"
_STOPS = "、。，．・：；？！"
_NOT_FIRST = rf"(?:[{_STOPS}」』）］｝】〕〉》ー々ゝヽぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ]|[)\]}},.:;!?%](?![A-Za-z0-9]))"
"""What no line begins with (JIS X 4051's rules, the common part)."""
_NOT_LAST = r"「『（［｛【〔〈《(\[{"
"""What no line ends with."""
_UNIT = rf"\s*(?:[{_NOT_LAST}]*(?:[{_WIDE}]|[^\s{_WIDE}]+?(?=[\s{_WIDE}{_NOT_LAST}{_STOPS}]|$)){_NOT_FIRST}*|\S)\s*"
_WORD = r"\s*\S+\s*"


def cells(text: str) -> int:
    """The cells that the text takes in a terminal; the text is free of control characters."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def padded(text: str, width: int) -> str:
    """The text with spaces behind it up to `width` cells; a longer one as it is."""
    return text + " " * (width - cells(text))


def cut(text: str, width: int) -> str:
    """The text in at most `width` cells; an ellipsis stands for what is left out."""
    if cells(text) <= width:
        return text
    kept, room = [], width - 1
    for character in text:
        room -= cells(character)
        if room < 0:
            break
        kept.append(character)
    return "".join(kept) + "…"


def units(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and text of each piece that a line may not break inside of, with the white space around it.

    A word between spaces, or one wide character with the punctuation that belongs to it. Together they are the text.
    """
    # Compiled, and kept by re, when first needed: the first frame of an English screen does without the long one.
    position, pattern = 0, re.compile(_WORD if text.isascii() else _UNIT)
    while match := pattern.match(text, position):
        start, position = match.span()
        yield start, position, match.group()


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """The text in lines of at most `width` cells, the first line after `first`, the others after `rest`.

    A unit longer than a line stands in a line of its own.
    """
    lines, line, empty = [], first, True
    for _, _, unit in units(text.strip()):
        if not empty and cells(line + unit.rstrip()) > width:
            lines.append(line.rstrip())
            line, empty = rest, True
        line, empty = line + (unit.lstrip() if empty else unit), False
    return [*lines, line.rstrip()]
