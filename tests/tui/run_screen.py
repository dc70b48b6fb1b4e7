"""The Run mode opened on a run, for the tests of its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from screen_text import until

from core.runs.directory import RunDirectory
from tui.app import WizardApp
from tui.screens.run import RunScreen


@asynccontextmanager
async def watching(run: RunDirectory, size: tuple[int, int] = (80, 24)) -> AsyncIterator[tuple[Any, RunScreen]]:
    """The pilot of an application that shows the run, and its Run screen."""
    async with WizardApp(run.root.parent).run_test(size=size) as pilot:
        yield pilot, await open_run(pilot, run)


async def open_run(pilot: Any, run: RunDirectory | None) -> RunScreen:
    if run is not None:
        pilot.app.watched = run
    await pilot.press("5")
    await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))
    if run is not None:
        await until(pilot, lambda: pilot.app.screen.snapshot is not None)
    return pilot.app.screen
