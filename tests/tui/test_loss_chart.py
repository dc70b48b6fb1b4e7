"""The curves of the Run mode."""

from __future__ import annotations

import json
import math

import pytest
from screen_text import assert_layout_holds, screen_lines, screen_text, shown, until, until_shown
from textual.events import MouseScrollUp

from core.runs.directory import RunDirectory
from tui.widgets.loss_chart import LossChart
from tui.widgets.loss_plot import LossPlot

from .run_screen import watching
from .sample_runs import NOW, append_metrics

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_run_screen")]


async def test_what_is_no_number_is_a_gap_and_a_mark(run: RunDirectory) -> None:
    async with watching(run, (160, 48)) as (pilot, screen):
        await until_shown(pilot, "x NaN")  # steps 300 to 305
        chart = screen.query_one(LossChart)
        column = chart.series.column("loss")
        assert math.isnan(column.values[list(column.steps).index(303)])
        plot = screen.query_one(LossPlot).region
        assert any("x" in row[plot.x : plot.right] for row in screen_lines(pilot.app)[plot.y : plot.bottom])


async def test_new_values_move_the_curve(run: RunDirectory) -> None:
    async with watching(run) as (pilot, screen):
        await until_shown(pilot, "step 640")
        append_metrics(
            run, {"time": NOW, "step": 641, "total": 4000, "loss": 1.2345, "lr": 1e-3, "tokens_per_s": 9.9e4}
        )
        await until_shown(pilot, "step 641")
        assert "1.2345" in screen_text(pilot.app)
        assert "99k" in screen_text(pilot.app)
        assert screen.query_one(LossChart).view is None


async def test_the_cursor_tells_the_values_at_its_step(run: RunDirectory) -> None:
    async with watching(run) as (pilot, screen):
        await until_shown(pilot, "EMA")
        await pilot.press("c")
        chart = screen.query_one(LossChart)
        await until(pilot, lambda: chart.has_focus_within)
        for _ in range(10):
            await pilot.press("left")
        assert chart.cursor is not None
        step = min(range(641), key=lambda step: abs(step - chart.cursor))
        await until_shown(pilot, f"step {step}")
        assert f"{chart.series.column('loss').values[step - 1]:.4f}" in shown(pilot.app, "#values")
        await pilot.press("escape")
        assert chart.cursor is None


async def test_zoom_and_pan_stay_within_the_run(run: RunDirectory) -> None:
    async with watching(run) as (pilot, screen):
        await until_shown(pilot, "EMA")
        await pilot.press("c")
        chart = screen.query_one(LossChart)
        await until(pilot, lambda: chart.has_focus_within)
        assert chart.seen == (0, 640)
        await pilot.press("plus")
        assert chart.seen == (320, 640)
        await pilot.press("less_than_sign")
        assert chart.seen == (160, 480)
        for _ in range(10):
            await pilot.press("less_than_sign")
        assert chart.seen == (0, 320)
        for _ in range(12):
            await pilot.press("plus")
        assert chart.seen[1] - chart.seen[0] == 10
        for _ in range(12):
            await pilot.press("minus")
        assert chart.view is None
        assert_layout_holds(pilot.app)


async def test_the_mouse_zooms_pulls_and_hovers(run: RunDirectory) -> None:
    async with watching(run, (160, 48)) as (pilot, screen):
        await until_shown(pilot, "EMA")
        chart = screen.query_one(LossChart)
        await pilot.hover("#loss LossPlot", offset=(60, 6))
        await until(pilot, lambda: chart.cursor is not None)
        assert 250 < chart.cursor < 450  # type: ignore[operator]
        await pilot._post_mouse_events([MouseScrollUp], "#loss LossPlot", (60, 6), 0)
        await until(pilot, lambda: chart.view is not None)
        assert chart.seen[1] - chart.seen[0] == pytest.approx(640 * 0.8)
        await pilot.hover("#stages")
        await until(pilot, lambda: chart.cursor is None)


async def test_the_logarithmic_scale_has_its_own_ticks(run: RunDirectory) -> None:
    append_metrics(run, *({"step": step, "total": 4000, "loss": 100.0 / step} for step in range(641, 645)))
    async with watching(run) as (pilot, _):
        await until_shown(pilot, "EMA")
        await pilot.press("c", "y")
        await until_shown(pilot, "log scale")
        ticks = [line[:8].strip() for line in screen_lines(pilot.app)[7:-5]]
        assert {"0.2", "0.5", "1", "2", "5"} <= set(ticks)


@pytest.mark.parametrize("ascii_mode", [True, False])
async def test_curves_are_told_apart_without_colours(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, ascii_mode: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    if ascii_mode:
        monkeypatch.setenv("LLM_WIZARD_ASCII", "1")
    async with watching(run, (160, 48)) as (pilot, _):
        await until_shown(pilot, "EMA")
        await until_shown(pilot, "node-001")
        legend = shown(pilot.app, "#values")
        marks = ("* EMA", "O valid", ". train") if ascii_mode else ("• EMA", "◆ valid", "⠒ train")
        assert all(mark in legend for mark in marks)
        if ascii_mode:
            filters = pilot.app.get_line_filters()
            for strip in pilot.app.screen._compositor.render_strips():
                for line_filter in filters:
                    strip = strip.apply_filter(line_filter, pilot.app.screen.background_colors[1])
                assert strip.text.isascii(), strip.text


async def test_a_long_run_shows_records_when_one_zooms_in(run: RunDirectory) -> None:
    with run.metrics("pretrain").open("w") as file:
        for step in range(1, 40_001):
            loss = 99.0 if step == 20_123 else 2 + 8 / (1 + step)
            values = {"val_loss": 3.0} if step % 5000 == 0 else {}
            file.write(json.dumps({"time": NOW, "step": step, "total": 40_000, "loss": loss, **values}) + "\n")
    assert run.metrics("pretrain").stat().st_size > 2 << 20
    async with watching(run) as (pilot, screen):
        await until_shown(pilot, "EMA")
        chart = screen.query_one(LossChart)
        # Validations are rare: they are searched for in the background.
        await until(pilot, lambda: list(chart.series.column("val_loss").steps) == list(range(5000, 40_001, 5000)))
        chart._look_at(20_100, 20_150)
        await until(pilot, lambda: chart._detail is not None)
        train, _ = chart._visible(*chart.seen)
        assert 20_123 in train.steps
        assert train.values[list(train.steps).index(20_123)] == 99.0
        assert len(train.steps) >= 51
