"""Which language and which encoding a user gets, and what `tr` makes of a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.encoding import is_utf8, named_encoding
from core.language import choose_language, language, set_language, tr


@pytest.fixture(autouse=True)
def _english_afterwards() -> Iterator[None]:
    yield
    set_language("en")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.eucJP"}, "ja"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": ""}, "ja"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "ja_JP.UTF-8"}, "ja"),
    ],
)
def test_the_locale_names_the_language(environment: dict[str, str], expected: str) -> None:
    assert choose_language(None, environment) == expected


def test_the_option_stands_above_the_locale() -> None:
    assert choose_language("en", {"LANG": "ja_JP.UTF-8"}) == "en"
    assert choose_language("ja", {"LANG": "C"}) == "ja"


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1", "no-such-codec", "", None])
def test_an_encoding_without_the_characters_gets_english(encoding: str | None) -> None:
    assert choose_language(None, {"LANG": "ja_JP.UTF-8"}, encoding) == "en"
    assert choose_language("ja", {}, encoding) == "en"


@pytest.mark.parametrize("encoding", ["utf-8", "euc_jp", "shift_jis"])
def test_a_japanese_encoding_gets_japanese(encoding: str) -> None:
    assert choose_language(None, {"LANG": "ja_JP.eucJP"}, encoding) == "ja"


def test_tr_translates_and_fills_in() -> None:
    assert tr("Runs in {folder}", folder="a{b}") == "Runs in a{b}"
    set_language("ja")
    assert language() == "ja"
    assert tr("Runs in {folder}", folder="a{b}") == "a{b} のラン"
    assert tr("") == ""
    assert tr("a sentence that no catalogue holds") == "a sentence that no catalogue holds"
    set_language("en")
    assert tr("Quit") == "Quit"


@pytest.mark.parametrize(
    ("environment", "utf8_mode", "expected"),
    [
        ({"LANG": "ja_JP.eucJP"}, False, "euc_jp"),
        ({"LANG": "ja_JP.UTF-8"}, False, "utf-8"),
        ({"LANG": "de_DE.ISO-8859-15@euro"}, False, "iso8859-15"),
        ({"LANG": "ja_JP.eucJP", "LC_ALL": "C"}, False, ""),
        ({"LANG": "ja_JP.eucJP", "LC_CTYPE": "C.UTF-8"}, False, "utf-8"),
        ({"LANG": "ja_JP.eucJP", "LC_CTYPE": "C.UTF-8"}, True, "euc_jp"),
        ({"LANG": "xx_XX.no-such-codec"}, False, ""),
        ({}, False, ""),
    ],
)
def test_the_locale_names_the_encoding(environment: dict[str, str], utf8_mode: bool, expected: str) -> None:
    assert named_encoding(environment, utf8_mode) == expected


def test_is_utf8_knows_every_spelling() -> None:
    assert all(is_utf8(name) for name in ("utf-8", "UTF8", "utf_8"))
    assert not any(is_utf8(name) for name in ("ascii", "euc_jp", "", None, "no-such-codec"))


def test_a_character_that_the_encoding_lacks_is_a_question_mark_and_no_traceback(tmp_path: Path) -> None:
    """A preset's description is printed by `presets list`; a check mark is not in EUC-JP."""
    folder = tmp_path / "✔.yaml"
    folder.write_text("model: {size: 125M}\npretrain: {steps: 1}\n")
    ended = subprocess.run(
        [sys.executable, "-m", "core.cli", "presets", "check", folder.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONIOENCODING": "euc_jp"},
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(b"? ")
