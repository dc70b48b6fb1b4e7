"""Padding and line breaks count cells, and Japanese lines break where Japanese lines may."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from textual.content import Content

from core.text.cells import cells, cut, padded, units, wrapped
from tui.line_breaks import use_line_breaks

JAPANESE = (
    "1 ステップが GPU のメモリに収まらないか、別のプロセスがその一部を使っています (`Process N has ... in use`)。"
)


@pytest.mark.parametrize("text", ["", "abc", "事前学習", "ﾃﾞｰﾀ", "Ａ１", "か\u3099", "e\u0301", "✔ 合格"])
def test_cells_agree_with_the_screen(text: str) -> None:
    assert cells(text) == cell_len(text)


def test_padding_aligns_words_of_both_languages() -> None:
    assert {cell_len(padded(word, 7)) for word in ("PASS", "合格", "不合格", "")} == {7}
    assert padded("長すぎる語", 4) == "長すぎる語"


def test_a_cut_text_has_room_for_its_ellipsis() -> None:
    assert cut("事前学習", 8) == "事前学習"
    assert cut("事前学習", 7) == "事前学…"
    assert cut("事前学習", 6) == "事前…"
    assert cut("abc", 2) == "a…"


@given(st.text(alphabet="aB3 .,()[]「」（）、。ッーデ学習\n\u3000"))
def test_the_units_together_are_the_text(text: str) -> None:
    found = list(units(text))
    assert "".join(unit for _, _, unit in found) == (text if text.strip() else "")
    assert all(text[start:end] == unit for start, end, unit in found)


@given(st.text(alphabet="ab c"), st.integers(5, 40))
def test_english_breaks_as_textwrap_breaks_it(text: str, width: int) -> None:
    words = " ".join(text.split())
    if max(map(len, words.split()), default=0) <= width:
        assert wrapped(words, width) == (textwrap.wrap(words, width) or [""])


@pytest.mark.parametrize("width", range(14, 60))
def test_japanese_lines_are_full_and_begin_and_end_as_they_may(width: int) -> None:
    lines = wrapped(JAPANESE, width, first="  原因: ", rest="    ")
    assert all(cell_len(line) <= width for line in lines)
    assert not [line for line in lines[1:] if line.strip()[0] in "、。)っー"]
    assert not [line for line in lines if line[-1] in "(「"]
    if width >= 30:  # the longest unit has 8 cells
        assert all(cell_len(line) > width - 12 for line in lines[:-1])


def test_the_screen_breaks_lines_so_too() -> None:
    use_line_breaks()
    lines = [line.plain.rstrip() for line in Content(JAPANESE).wrap(40)]
    assert lines == wrapped(JAPANESE, 40)
    assert [line.plain.rstrip() for line in Text(JAPANESE).wrap(Console(), 40)] == lines
