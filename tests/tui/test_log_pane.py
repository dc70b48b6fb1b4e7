"""The log of the Run mode."""

from __future__ import annotations

import pytest
from screen_text import screen_text, until, until_shown

from core.runs.directory import RunDirectory
from tui.screens.run import RunScreen
from tui.widgets.log_view import LogView

from .run_screen import watching

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_run_screen")]


def append_log(run: RunDirectory, text: str) -> None:
    with run.log("pretrain").open("a") as file:
        file.write(text)


def lines_of_log(screen: RunScreen) -> list[str]:
    return [line.text for line in screen.query_one(LogView).lines]


async def test_hostile_lines_are_shown_as_text(run: RunDirectory) -> None:
    append_log(run, "[red]x[/]\x1b[31m\x1b]0;title\x07 [@click=app.quit]end\n")
    async with watching(run) as (pilot, _):
        await pilot.press("l")
        await until_shown(pilot, "[red]x[/] [@click=app.quit]end")
        assert "\x1b" not in screen_text(pilot.app)


async def test_the_end_of_the_log_is_followed_and_can_be_held(run: RunDirectory) -> None:
    async with watching(run) as (pilot, screen):
        await pilot.press("l")
        await until_shown(pilot, "not markup")
        append_log(run, "the first new line\n")
        await until_shown(pilot, "the first new line")
        await pilot.press("space")
        await until_shown(pilot, "paused")
        held = lines_of_log(screen)
        append_log(run, "while it was held\n")
        await until(
            pilot,
            lambda: screen.run_watch.tail is not None and screen.run_watch.tail.lines[-1].text == "while it was held",
        )
        assert lines_of_log(screen) == held
        assert "while it was held" not in screen_text(pilot.app)
        await pilot.press("end")
        await until_shown(pilot, "while it was held")
        await until_shown(pilot, "following")


async def test_moving_up_holds_the_log_and_goes_back_to_its_start(run: RunDirectory) -> None:
    append_log(run, "".join(f"line {number} of many\n" for number in range(30_000)))
    async with watching(run) as (pilot, screen):
        await pilot.press("l")
        await until_shown(pilot, "line 29999 of many")
        view = screen.query_one(LogView)
        for _ in range(30):
            before = view.lines[0].byte
            await pilot.press("home")
            if before == 0:
                break
            await until(pilot, lambda before=before: view.lines[0].byte < before)
        assert view.lines[0].byte == 0
        await until_shown(pilot, "step 580/4,000")
        await pilot.press("end")
        await until_shown(pilot, "line 29999 of many")


async def test_search_goes_through_the_whole_log(run: RunDirectory) -> None:
    append_log(run, "the needle, far above\n" + "".join(f"line {number}\n" for number in range(20_000)))
    async with watching(run) as (pilot, screen):
        await pilot.press("l")
        await until_shown(pilot, "line 19999")
        await pilot.press("slash")
        await until(pilot, lambda: screen.query_one("#log-field").has_focus)
        await pilot.press(*"NEEDLE", "enter")
        await until_shown(pilot, "the needle, far above")
        assert "paused" in screen_text(pilot.app)
        await pilot.press("n")
        await until_shown(pilot, "no match above")
        await pilot.press("escape")
        await pilot.press("end")
        await until_shown(pilot, "line 19999")


async def test_only_the_lines_of_one_rank(run: RunDirectory) -> None:
    append_log(run, "".join(f"[rank{number % 4}]: line {number}\n" for number in range(400)))
    async with watching(run) as (pilot, screen):
        await pilot.press("l")
        await until_shown(pilot, "[rank3]: line 399")
        await pilot.press("f")
        await until(pilot, lambda: screen.query_one("#log-field").has_focus)
        await pilot.press("2", "enter")
        await until_shown(pilot, "only rank 2")
        await until_shown(pilot, "[rank2]: line 398")
        assert "[rank3]" not in screen_text(pilot.app)
        append_log(run, "[rank3]: another\n[rank2]: one more\n")
        await until_shown(pilot, "[rank2]: one more")
        assert "[rank3]" not in screen_text(pilot.app)
        await pilot.press("escape")
        await until_shown(pilot, "[rank3]: another")


async def test_lines_that_come_too_fast_are_counted(run: RunDirectory) -> None:
    async with watching(run) as (pilot, _):
        await pilot.press("l")
        await until_shown(pilot, "not markup")
        append_log(run, "".join(f"{number:<99}\n" for number in range(40_000)))
        await until_shown(pilot, "39999")
        await until_shown(pilot, "came too fast")
