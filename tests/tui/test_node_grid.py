"""The nodes of the Run mode."""

from __future__ import annotations

import json
import time

import pytest
from screen_text import screen_lines, until, until_shown

from core.runs.directory import RunDirectory
from tui.widgets.node_grid import NodeGrid

from .run_screen import watching
from .sample_runs import node_sample

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_run_screen")]


def write_node(run: RunDirectory, host: str, at: float, temperature: float = 60.0) -> None:
    sample = node_sample(host, 1, at)
    for gpu in sample["gpus"]:
        gpu |= {"util": 90.0, "temperature": temperature}
    with (run.nodes / f"{host}.jsonl").open("a") as file:
        file.write(json.dumps(sample) + "\n")


async def test_a_lost_node_greys_out_with_its_age_and_stands_first(run: RunDirectory) -> None:
    now = time.time()
    for path in run.nodes.iterdir():
        path.unlink()
    write_node(run, "well", at=now + 60)
    write_node(run, "hot", at=now + 60, temperature=91.0)
    write_node(run, "stale", at=now - 10)
    write_node(run, "gone", at=now - 75)
    async with watching(run) as (pilot, screen):
        await pilot.press("g")
        await until_shown(pilot, "gone")
        grid = screen.query_one(NodeGrid)
        assert [row.host for row in grid.rows] == ["gone", "hot", "stale", "well"]
        assert [row.status for row in grid.rows] == ["lost", "ok", "stale", "ok"]
        rows = [line for line in screen_lines(pilot.app) if "gone" in line]
        assert rows
        assert "lost" in rows[0]
        strip = grid.render_line(1)
        host = next(segment for segment in strip if "gone" in segment.text)
        bars = next(segment for segment in strip if "█" in segment.text)
        assert host.style is not None
        assert bars.style is not None
        assert host.style.color is not None
        assert host.style.color.name == bars.style.color.name == "bright_black"  # type: ignore[union-attr]
        well = next(segment for segment in grid.render_line(4) if "█" in segment.text)
        assert well.style is not None
        assert well.style.color is not None
        assert well.style.color.name == "green"


async def test_the_cursor_stays_on_its_node_when_the_order_changes(run: RunDirectory) -> None:
    for path in run.nodes.iterdir():
        path.unlink()
    for host in ("a", "b", "c"):
        write_node(run, host, at=time.time() + 60)
    async with watching(run) as (pilot, screen):
        await pilot.press("g")
        grid = screen.query_one(NodeGrid)
        await until(pilot, lambda: len(grid.rows) == 3 and grid.has_focus)
        await pilot.press("down")
        assert grid.rows[grid.cursor].host == "b"
        write_node(run, "c", at=time.time() + 70, temperature=95.0)
        await until(pilot, lambda: [row.host for row in grid.rows] == ["c", "a", "b"])
        assert grid.rows[grid.cursor].host == "b"
