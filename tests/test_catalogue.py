"""Every sentence has its translation, and the catalogue that is read is that of the .po that is edited."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from core.language import LANGUAGES

SCRIPT = Path(__file__).parent.parent / "scripts" / "catalogue.py"
TRANSLATED = [language for language in LANGUAGES if language != "en"]


@pytest.fixture(scope="module")
def catalogue() -> ModuleType:
    spec = importlib.util.spec_from_file_location("catalogue", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def edited(catalogue: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Japanese .po of a copy of the catalogues, which a test may spoil."""
    shutil.copytree(catalogue.LOCALE, tmp_path / "locale")
    monkeypatch.setattr(catalogue, "LOCALE", tmp_path / "locale")
    path: Path = catalogue.po_path("ja")
    return path


def test_every_sentence_is_translated() -> None:
    ended = subprocess.run([sys.executable, SCRIPT, "check"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stdout}{ended.stderr}\nSee docs/translations.md."


@pytest.mark.parametrize("language", TRANSLATED)
def test_no_sentence_is_left_that_nobody_shows(catalogue: ModuleType, language: str) -> None:
    shown = {message.id for message in catalogue.template()}
    assert {message.id for message in catalogue.read(language)} <= shown, "run `python scripts/catalogue.py update`"


def test_sentences_come_from_every_source(catalogue: ModuleType) -> None:
    places = {sentence.place.partition("/")[0] + Path(sentence.place).suffix for sentence in catalogue.sentences()}
    assert {"core.py", "tui.py", "core.yaml", "presets.yaml"} <= places
    texts = {sentence.text for sentence in catalogue.sentences()}
    assert "Peak learning rate." in texts, "help of a key"
    assert "Start a new run from a preset" in texts, "tr"
    assert "Troubleshoot" in texts, "tr_later"
    assert "The allocation's time was over. The run itself did not fail." in texts, "cause of a signature"


def test_a_missing_translation_is_found(catalogue: ModuleType, edited: Path) -> None:
    edited.write_text(edited.read_text(encoding="utf-8").replace('msgstr "終了"', 'msgstr ""'), encoding="utf-8")
    assert any("not translated: 'Quit'" in problem for problem in catalogue.problems("ja"))


def test_a_fuzzy_translation_is_found(catalogue: ModuleType, edited: Path) -> None:
    text = edited.read_text(encoding="utf-8")
    edited.write_text(text.replace('msgid "Quit"', '#, fuzzy\nmsgid "Quit"'), encoding="utf-8")
    assert any("fuzzy: 'Quit'" in problem for problem in catalogue.problems("ja"))


def test_another_placeholder_is_found(catalogue: ModuleType, edited: Path) -> None:
    text = edited.read_text(encoding="utf-8")
    edited.write_text(text.replace('msgstr "{folder} のラン"', 'msgstr "{ folder } のラン"'), encoding="utf-8")
    assert any("['folder']" in problem for problem in catalogue.problems("ja"))


def test_a_catalogue_that_was_not_compiled_again_is_found(catalogue: ModuleType, edited: Path) -> None:
    assert not any("is not that of the .po" in problem for problem in catalogue.problems("ja"))
    text = edited.read_text(encoding="utf-8")
    edited.write_text(text.replace('msgstr "終了"', 'msgstr "やめる"'), encoding="utf-8")
    assert any("is not that of the .po" in problem for problem in catalogue.problems("ja"))
    catalogue.main("compile")
    assert not any("is not that of the .po" in problem for problem in catalogue.problems("ja"))


def test_update_keeps_translations_and_changes_nothing_twice(catalogue: ModuleType, edited: Path) -> None:
    before = {message.id: message.string for message in catalogue.read("ja")}
    catalogue.main("update")
    once = edited.read_bytes()
    assert {message.id: message.string for message in catalogue.read("ja")} == before
    catalogue.main("update")
    assert edited.read_bytes() == once
    text = once.decode().replace('msgid "Quit"', 'msgid "Not shown anywhere"')
    edited.write_text(text, encoding="utf-8")
    catalogue.main("update")
    assert '#~ msgid "Not shown anywhere"' in edited.read_text(encoding="utf-8")
    assert any("not translated: 'Quit'" in problem for problem in catalogue.problems("ja"))


@pytest.mark.parametrize(
    ("original", "translation", "fits"),
    [
        ("{a} of {b}", "{b} の {a}", True),
        ("{a:.1f} s", "{a} 秒", True),
        ("{a} of {b}", "{a}", False),
        ("{a}", "{a}{a}", False),
        (" with a space", "空白なし", False),
        ("line\n", "行", False),
    ],
)
def test_what_fits_in_the_place_of_a_sentence(
    catalogue: ModuleType, original: str, translation: str, fits: bool
) -> None:
    assert (catalogue.does_not_fit(original, translation) == "") is fits


def test_a_sentence_put_together_before_tr_is_found(
    catalogue: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "module.py").write_text('tr(f"{a} runs")\ntr("a" + b)\ntr(name)\ntr("x" if a else "y")\n')
    monkeypatch.setattr(catalogue, "REPOSITORY", tmp_path)
    assert [problem.partition(": ")[0] for problem in catalogue.not_extractable()] == [
        "core/module.py:1",
        "core/module.py:2",
    ]
    assert [text for argument, _ in catalogue._calls() for text in catalogue._literals(argument)] == ["x", "y"]


@pytest.mark.parametrize("language", TRANSLATED)
def test_terminals_in_eucjp_can_show_every_sentence(catalogue: ModuleType, language: str) -> None:
    for message in catalogue.read(language):
        if str(message.id).isascii():
            str(message.string).encode("euc_jp")
