"""Hostile text is shown, never obeyed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.text.plain import one_line, plain


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]52;c;Y2FuYXJ5\x1b\\text", "text"),
        ("\x1bP+q544e\x1b\\text", "text"),
        ("\x9b31mred", "red"),
        ("\x9d0;title\x9ctext", "text"),
        ("a\x08\x00b\x7f", "ab"),
        ("10%\r50%\r100%\nnext", "100%\nnext"),
        ("windows\r\nline", "windows\nline"),
        ("\u202etxt.exe", "txt.exe"),
        ("tab\tand 日本語 🙂", "tab\tand 日本語 🙂"),
        ("[@click=app.quit]x[/]", "[@click=app.quit]x[/]"),
    ],
)
def test_control_sequences_are_dropped_and_text_stays(hostile: str, shown: str) -> None:
    assert plain(hostile) == shown


@given(st.text())
def test_no_control_character_survives(text: str) -> None:
    assert not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 for c in plain(text))


def test_a_name_that_is_no_utf8_can_be_printed() -> None:
    assert plain(b"caf\xe9.yaml".decode("utf-8", "surrogateescape")) == "caf?.yaml"
    assert one_line("a\nb\tc") == "a b c"
