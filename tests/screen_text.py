"""What a screen shows in a pilot test, and waiting for it: no test sleeps for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.cells import cell_len, set_cell_size
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Static


def screen_lines(app: App[Any]) -> list[str]:
    """The rows of the screen as text."""
    return ["".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()]


def screen_text(app: App[Any]) -> str:
    return "\n".join(screen_lines(app))


def shown(app: App[Any], widget: str) -> str:
    """What one Static holds, also of what there is no room for."""
    return str(app.screen.query_one(widget, Static).visual)


def words(app: App[Any], selector: str) -> str:
    """What one widget shows, its lines joined with single spaces: text that may be wrapped anywhere can be looked for."""
    region = app.screen.query_one(selector).region
    rows = screen_lines(app)[region.y : region.bottom]
    cut = [set_cell_size(chop_cells(row, region.x), region.width) for row in rows]
    return " ".join(" ".join(cut).replace("│", " ").split())


def chop_cells(row: str, cells: int) -> str:
    """A row without its first cells."""
    while cells > 0 and row:
        cells -= cell_len(row[0])
        row = row[1:]
    return row


def assert_layout_holds(app: App[Any]) -> None:
    """Every row is exactly as many cells wide as the terminal."""
    for line in screen_lines(app):
        assert cell_len(line) == app.size.width, line


async def until(pilot: Pilot[Any], condition: Callable[[], object], seconds: float = 20) -> None:
    """Let the application go on until something is true; fail with the screen where it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, screen_text(pilot.app)
        await pilot.pause(0.02)
    await pilot.pause()


async def until_shown(pilot: Pilot[Any], text: str, within: str = "", seconds: float = 20) -> None:
    """Wait until a text stands on the screen, or in one widget, where it may be wrapped."""
    shown = (lambda: words(pilot.app, within)) if within else (lambda: screen_text(pilot.app))
    await until(pilot, lambda: text in shown(), seconds)
