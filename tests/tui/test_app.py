"""What holds on every screen: the keys in the user's language, `?`, and the command palette."""

from __future__ import annotations

import gettext
from pathlib import Path
from typing import Any

import pytest
from screen_text import assert_layout_holds, screen_text, until, until_shown
from textual.command import CommandPalette
from textual.widgets import Input, OptionList, Static

import core.language
from core.files import read_json
from core.runs import requests
from tui.app import WizardApp
from tui.screens.confirm import ConfirmDialog
from tui.screens.keys import KeysDialog
from tui.screens.troubleshoot import TroubleshootScreen
from tui.widgets.mode_bar import MODES

from .sample_runs import alive, failed_run, running_run

pytestmark = pytest.mark.anyio


class Marking(gettext.NullTranslations):
    """A catalogue that translates everything, so that what was not passed through tr() stands out."""

    def gettext(self, message: str) -> str:
        return f"«{message}»"


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.language, "_current", Marking())


async def go_to(pilot: Any, mode: str) -> None:
    await pilot.press(str(list(MODES).index(mode) + 1))
    await until(pilot, lambda: pilot.app.current_mode == mode and pilot.app.screen.is_current)
    await pilot.pause()


@pytest.mark.usefixtures("marked")
async def test_every_key_of_every_mode_is_named_in_the_users_language(tmp_path: Path) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(160, 48)) as pilot:
        for mode in MODES:
            await go_to(pilot, mode)
            for active in app.screen.active_bindings.values():
                binding = active.binding
                if binding.description and not binding.system:
                    assert binding.description.startswith("«"), binding
                    assert not active.tooltip or active.tooltip.startswith("«"), binding
            await until_shown(pilot, "«Help»")  # the footer
            app.action_show_keys()
            await until(pilot, lambda: isinstance(app.screen, KeysDialog))
            for heading in app.screen.query(".heading").results(Static):
                assert str(heading.visual).startswith("«")
            await pilot.press("escape")
            await until(pilot, lambda: not isinstance(app.screen, KeysDialog))


async def test_help_lists_the_keys_of_every_mode_with_sentences(tmp_path: Path) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        for mode in MODES:
            await go_to(pilot, mode)
            below = app.screen
            if isinstance(below.focused, Input):  # a field takes ? as a character: the palette opens the help there
                below.set_focus(None)
            shown = [active.binding for active in below.active_bindings.values() if active.binding.show]
            await pilot.press("question_mark")
            await until(pilot, lambda: isinstance(app.screen, KeysDialog))
            assert_layout_holds(app)
            text = await whole_text(pilot)
            assert "Leave; runs go on." in text
            assert "Go to a mode" in text
            for binding in shown:
                sentence = binding.tooltip or binding.description
                assert sentence.split()[0] in text, binding
            await pilot.press("escape")
            await until(pilot, lambda below=below: app.screen is below)


async def whole_text(pilot: Any) -> str:
    """All of the help, page by page."""
    text = ""
    box = pilot.app.screen.query_one("#keys-box")
    while True:
        text += " ".join(screen_text(pilot.app).replace("│", " ").split())
        if box.scroll_offset.y >= box.max_scroll_y:
            return text
        box.scroll_page_down(animate=False)
        await pilot.pause()


async def test_help_names_what_the_focused_widget_takes(tmp_path: Path) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 48)) as pilot:
        await until(pilot, lambda: isinstance(app.screen.focused, OptionList))
        await pilot.press("question_mark")
        await until_shown(pilot, "In what is focused")
        assert "Open or choose the line." in screen_text(app)
        await pilot.press("question_mark")
        await until(pilot, lambda: not isinstance(app.screen, KeysDialog))


async def palette(pilot: Any, words: str) -> list[str]:
    """Open the palette, type, and return the titles that are offered."""
    await pilot.press("ctrl+p")
    await until(pilot, lambda: isinstance(pilot.app.screen, CommandPalette))
    await until(pilot, lambda: pilot.app.screen.query_one(OptionList).option_count)
    pilot.app.screen.query_one(Input).value = words
    options = pilot.app.screen.query_one(OptionList)
    await until(pilot, lambda: any(words.lower() in title.lower() for title in titles(options)))
    return titles(options)


def titles(options: OptionList) -> list[str]:
    return [str(option.prompt).splitlines()[0] for option in options.options]


async def test_the_palette_offers_what_can_be_done_now(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    failed_run(runs, "broken")
    app = WizardApp(runs)
    with alive(running_run(runs, "lively")):
        async with app.run_test(size=(80, 48)) as pilot:
            offered = await palette(pilot, "")
            assert "Watch run lively" in offered
            assert "Stop run lively" in offered
            assert "Save a checkpoint of run lively now" in offered
            assert "Resume run broken" in offered
            assert "Why did run broken fail?" in offered
            assert "Resume run lively" not in offered
            assert "Stop run broken" not in offered
            assert "New run from preset quickstart" in offered
            assert {f"Go to {title}" for title in MODES.values()} <= set(offered)
            assert {"Keys", "Quit", "Search the known failures"} <= set(offered)


async def test_the_palette_knows_the_screen_below(tmp_path: Path) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 48)) as pilot:
        await until(pilot, lambda: app.screen.focused)
        assert "Run again" not in await palette(pilot, "")
        await pilot.press("escape")
        await go_to(pilot, "doctor")
        assert "Run again" in await palette(pilot, "")
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, CommandPalette))
        before = app.screen._run  # type: ignore[attr-defined]
        await palette(pilot, "run again")
        await pilot.press("enter")
        await until(pilot, lambda: app.screen._run > before)  # type: ignore[attr-defined]


async def test_stop_from_the_palette_asks_and_leaves_a_request(tmp_path: Path) -> None:
    app = WizardApp(tmp_path / "runs")
    with alive(running_run(tmp_path / "runs", "lively")) as run:
        async with app.run_test(size=(80, 24)) as pilot:
            await palette(pilot, "stop run")
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
            assert_layout_holds(app)
            await pilot.press("enter")  # Enter takes the answer that changes nothing
            await until(pilot, lambda: not isinstance(app.screen, ConfirmDialog))
            assert requests.pending(run, requests.STOP) is None
            await palette(pilot, "stop run")
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
            await pilot.press("y")
            await until(pilot, lambda: requests.pending(run, requests.STOP))
            await palette(pilot, "checkpoint of run")
            await pilot.press("enter")
            await until(pilot, lambda: requests.pending(run, requests.CHECKPOINT))
        assert read_json(run.state)["state"] == "running", "the screen only asks"


async def test_commands_lead_to_their_screens(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = failed_run(runs, "broken")
    app = WizardApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await palette(pilot, "why did run")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, TroubleshootScreen))
        assert app.watched == run
        await palette(pilot, "known failures")
        await pilot.press("enter")
        await until(pilot, lambda: app.screen.focused is not None and app.screen.focused.id == "words")
        await palette(pilot, "preset quickstart")
        await pilot.press("enter")
        await until(pilot, lambda: app.current_mode == "setup")
        assert app.draft is not None
        assert app.draft.source == "quickstart"


async def test_a_search_without_a_command_says_so_and_hostile_names_are_text(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    failed_run(runs, "broken").root.rename(runs / "[red]x\\[bold]\x1b[31m")
    app = WizardApp(runs)
    async with app.run_test(size=(80, 48)) as pilot:
        offered = await palette(pilot, "watch run")
        assert "Watch run [red]x\\[bold]" in offered
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, CommandPalette))
        assert await palette(pilot, "") != []
        app.screen.query_one(Input).value = "zzqqzz"
        await until_shown(pilot, "No command has these letters")
        await pilot.press("enter")
        await until(pilot, lambda: not isinstance(app.screen, CommandPalette))


@pytest.mark.usefixtures("marked")
async def test_the_palette_speaks_the_users_language(tmp_path: Path) -> None:
    failed_run(tmp_path / "runs", "broken")
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 48)) as pilot:
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette))
        options = app.screen.query_one(OptionList)
        await until(pilot, lambda: options.option_count > 10)
        for option in options.options:
            for line in str(option.prompt).splitlines():
                assert line.startswith("«"), line
