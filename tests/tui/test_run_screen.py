"""The Run mode on run directories as supervisors write them, and on a real supervisor."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from screen_text import assert_layout_holds, screen_lines, screen_text, until, until_shown
from scripted_runs import Scripted, scripted, wait_for_end
from textual.events import MouseScrollUp
from textual.widgets import Static

import tui.screens.run
from core.runs import requests
from core.runs.directory import RunDirectory
from core.runs.start import start_supervisor
from core.runs.state import read_status
from core.stages.base import append_event
from tui.app import WizardApp
from tui.screens.run import RunScreen
from tui.widgets.log_view import LogView
from tui.widgets.loss_chart import LossChart
from tui.widgets.node_grid import NodeGrid
from tui.widgets.stage_rail import StageRail

from .sample_runs import NOW, alive, failed_run, running_run

__all__ = ["scripted"]

pytestmark = pytest.mark.anyio

SIZES = [(80, 24), (160, 48), (200, 60)]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often, so that tests wait less."""
    monkeypatch.setattr(tui.screens.run, "RUN_S", 0.15)
    monkeypatch.setattr(tui.screens.run, "LOG_S", 0.1)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    """A run in the middle of its pretraining; its supervisor lives."""
    with alive(running_run(tmp_path / "runs")) as run:
        yield run


def shown(app: WizardApp, widget: str) -> str:
    return str(app.screen.query_one(widget, Static).visual)


async def open_run(pilot: Any, run: RunDirectory | None) -> RunScreen:
    if run is not None:
        pilot.app.watched = run
    await pilot.press("5")
    await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))
    if run is not None:
        await until(pilot, lambda: pilot.app.screen.snapshot is not None)
    return pilot.app.screen


def append_log(run: RunDirectory, text: str) -> None:
    with run.log("pretrain").open("a") as file:
        file.write(text)


def append_metrics(run: RunDirectory, *records: dict[str, object]) -> None:
    with run.metrics("pretrain").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def lines_of_log(screen: RunScreen) -> list[str]:
    return [line.text for line in screen.query_one(LogView).lines]


# --- what is shown


@pytest.mark.parametrize("size", SIZES)
async def test_a_running_run_at_every_size(run: RunDirectory, size: tuple[int, int]) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=size) as pilot:
        screen = await open_run(pilot, run)
        await until_shown(pilot, "EMA")
        text = screen_text(app)
        for expected in ("running", "quickstart", "640/4000", "done", "tokenizer", "waiting", "valid"):
            assert expected in text
        assert_layout_holds(app)
        assert screen.has_class("-all") == (size[0] >= 110)
        if screen.has_class("-all"):
            await until_shown(pilot, "node-001")
            await until_shown(pilot, "[bold]not markup[/bold]")
            assert "checkpoint of step 400 saved" in text
            assert_layout_holds(app)


async def test_one_part_at_a_time_where_there_is_no_room_for_all(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_run(pilot, run)
        for key, expected in (
            ("l", "step 640/4,000"),
            ("g", "node-001"),
            ("e", "the loss rose by 0.8"),
            ("c", "EMA"),
        ):
            await pilot.press(key)
            await until_shown(pilot, expected)
            assert_layout_holds(app)


async def test_enlarging_gives_one_part_the_whole_window(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(160, 48)) as pilot:
        screen = await open_run(pilot, run)
        await until_shown(pilot, "step 640/4,000")
        await pilot.press("l")
        await pilot.press("z")
        await until(pilot, lambda: not screen.query_one("#curves").display)
        assert screen.query_one(LogView).size.height > 35
        await pilot.press("z")
        await until(pilot, lambda: screen.query_one("#curves").display)


async def test_without_a_run_it_says_how_to_start_one(tmp_path: Path) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_run(pilot, None)
        await until_shown(pilot, "No run is running")
        assert "Press 1 for Home" in shown(app, "#run-notice")


async def test_without_a_choice_it_shows_the_newest_run_that_runs(run: RunDirectory) -> None:
    failed_run(run.root.parent, "newer-but-failed")
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, None)
        await until(pilot, lambda: screen.run_watch is not None and screen.run_watch.run == run)


async def test_coming_back_with_another_run_shows_that_one(run: RunDirectory) -> None:
    other = failed_run(run.root.parent, "other")
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(160, 48)) as pilot:
        screen = await open_run(pilot, run)
        await until_shown(pilot, "step 640/4,000")
        await pilot.press("1")
        await pilot.pause()
        app.open_run(other)
        await until(pilot, lambda: screen.snapshot is not None and screen.snapshot.status.run == other)
        await until_shown(pilot, "loss.backward()")
        assert "step 640/4,000" not in screen_text(app)


async def test_a_failure_is_named_with_what_to_press(tmp_path: Path) -> None:
    run = failed_run(tmp_path / "runs")
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_run(pilot, run)
        await until_shown(pilot, "CUDA out of memory")
        notice = shown(app, "#run-notice")
        assert "pretrain failed" in notice
        assert "t: cause and fix" in notice
        footer = screen_lines(app)[-1]
        assert "Resume" in footer
        assert "Stop" not in footer
        await pilot.press("t")
        await until(pilot, lambda: app.current_mode == "troubleshoot")


async def test_a_run_whose_supervisor_is_gone_is_lost(tmp_path: Path) -> None:
    run = running_run(tmp_path / "runs")  # nobody holds its lock
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_run(pilot, run)
        await until_shown(pilot, "lost")
        assert "r goes on from the last checkpoint" in " ".join(shown(app, "#run-notice").split())


async def test_another_stage_can_be_looked_at(run: RunDirectory) -> None:
    run.log("tokenizer").write_text("pieces of the tokenizer\n")
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(160, 48)) as pilot:
        screen = await open_run(pilot, run)
        await until_shown(pilot, "step 640/4,000")
        screen.query_one(StageRail).focus()
        await pilot.press("up", "up", "enter")
        await until_shown(pilot, "pieces of the tokenizer")
        await until_shown(pilot, "tokenizer has no loss to draw")
        assert "step 640/4,000" not in screen_text(app)
        await pilot.press("down", "down", "enter")
        await until_shown(pilot, "step 640/4,000")


async def test_damaged_files_do_not_take_the_screen_down(run: RunDirectory) -> None:
    with run.metrics("pretrain").open("ab") as file:
        file.write(b'{"step": 641, "loss"\n\x00\xff\n[]\n')
    with run.events.open("ab") as file:
        file.write(b'{"kind": \n"x"\n{"kind": "new-kind", "a": [1]}\n{}\n')
    (run.requests / "checkpoint").write_text("not json")
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(160, 48)) as pilot:
        await open_run(pilot, run)
        await until_shown(pilot, "new-kind: a [1]")
        await until_shown(pilot, "EMA")
        assert "A checkpoint has been asked for" in shown(app, "#run-notice")


async def test_a_run_folder_that_is_taken_away_is_said(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_run(pilot, run)
        run.state.write_text("{")
        await until_shown(pilot, "cannot be read")


# --- the chart


async def test_what_is_no_number_is_a_gap_and_a_mark(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(160, 48)) as pilot:
        screen = await open_run(pilot, run)
        await until_shown(pilot, "x NaN")  # steps 300 to 305
        chart = screen.query_one(LossChart)
        column = chart.series.column("loss")
        assert math.isnan(column.values[list(column.steps).index(303)])
        top = next(line for line in screen_lines(app) if "xx" in line or " x " in line)
        assert "┊" in top or "x" in top


async def test_new_values_move_the_curve(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
        await until_shown(pilot, "step 640")
        append_metrics(
            run, {"time": NOW, "step": 641, "total": 4000, "loss": 1.2345, "lr": 1e-3, "tokens_per_s": 9.9e4}
        )
        await until_shown(pilot, "step 641")
        assert "1.2345" in screen_text(app)
        assert "99k" in screen_text(app)
        assert screen.query_one(LossChart).view is None


async def test_the_cursor_tells_the_values_at_its_step(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
        await until_shown(pilot, "EMA")
        await pilot.press("c")
        chart = screen.query_one(LossChart)
        await until(pilot, lambda: chart.has_focus_within)
        for _ in range(10):
            await pilot.press("left")
        assert chart.cursor is not None
        step = min(range(641), key=lambda step: abs(step - chart.cursor))
        await until_shown(pilot, f"step {step}")
        assert f"{chart.series.column('loss').values[step - 1]:.4f}" in shown(app, "#values")
        await pilot.press("escape")
        assert chart.cursor is None


async def test_zoom_and_pan_stay_within_the_run(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
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
        assert_layout_holds(app)


async def test_the_mouse_zooms_pulls_and_hovers(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(160, 48)) as pilot:
        screen = await open_run(pilot, run)
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
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_run(pilot, run)
        await until_shown(pilot, "EMA")
        await pilot.press("c", "y")
        await until_shown(pilot, "log scale")
        ticks = [line[:8].strip() for line in screen_lines(app)[7:-5]]
        assert {"0.2", "0.5", "1", "2", "5"} <= set(ticks)


@pytest.mark.parametrize("ascii_mode", [True, False])
async def test_curves_are_told_apart_without_colours(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, ascii_mode: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    if ascii_mode:
        monkeypatch.setenv("LLM_WIZARD_ASCII", "1")
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(160, 48)) as pilot:
        await open_run(pilot, run)
        await until_shown(pilot, "EMA")
        await until_shown(pilot, "node-001")
        legend = shown(app, "#values")
        marks = ("* EMA", "O valid", ". train") if ascii_mode else ("• EMA", "◆ valid", "⠒ train")
        assert all(mark in legend for mark in marks)
        if ascii_mode:
            filters = app.get_line_filters()
            for strip in app.screen._compositor.render_strips():
                for line_filter in filters:
                    strip = strip.apply_filter(line_filter, app.screen.background_colors[1])
                assert strip.text.isascii(), strip.text


async def test_a_long_run_shows_records_when_one_zooms_in(run: RunDirectory) -> None:
    with run.metrics("pretrain").open("w") as file:
        for step in range(1, 40_001):
            loss = 99.0 if step == 20_123 else 2 + 8 / (1 + step)
            values = {"val_loss": 3.0} if step % 5000 == 0 else {}
            file.write(json.dumps({"time": NOW, "step": step, "total": 40_000, "loss": loss, **values}) + "\n")
    assert run.metrics("pretrain").stat().st_size > 2 << 20
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
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


# --- the log


async def test_hostile_lines_are_shown_as_text(run: RunDirectory) -> None:
    append_log(run, "[red]x[/]\x1b[31m\x1b]0;title\x07 [@click=app.quit]end\n")
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_run(pilot, run)
        await pilot.press("l")
        await until_shown(pilot, "[red]x[/] [@click=app.quit]end")
        assert "\x1b" not in screen_text(app)


async def test_the_end_of_the_log_is_followed_and_can_be_held(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
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
        assert "while it was held" not in screen_text(app)
        await pilot.press("end")
        await until_shown(pilot, "while it was held")
        await until_shown(pilot, "following")


async def test_moving_up_holds_the_log_and_goes_back_to_its_start(run: RunDirectory) -> None:
    append_log(run, "".join(f"line {number} of many\n" for number in range(30_000)))
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
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
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
        await pilot.press("l")
        await until_shown(pilot, "line 19999")
        await pilot.press("slash")
        await until(pilot, lambda: screen.query_one("#log-field").has_focus)
        await pilot.press(*"NEEDLE", "enter")
        await until_shown(pilot, "the needle, far above")
        assert "paused" in screen_text(app)
        await pilot.press("n")
        await until_shown(pilot, "no match above")
        await pilot.press("escape")
        await pilot.press("end")
        await until_shown(pilot, "line 19999")


async def test_only_the_lines_of_one_rank(run: RunDirectory) -> None:
    append_log(run, "".join(f"[rank{number % 4}]: line {number}\n" for number in range(400)))
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
        await pilot.press("l")
        await until_shown(pilot, "[rank3]: line 399")
        await pilot.press("f")
        await until(pilot, lambda: screen.query_one("#log-field").has_focus)
        await pilot.press("2", "enter")
        await until_shown(pilot, "only rank 2")
        await until_shown(pilot, "[rank2]: line 398")
        assert "[rank3]" not in screen_text(app)
        append_log(run, "[rank3]: another\n[rank2]: one more\n")
        await until_shown(pilot, "[rank2]: one more")
        assert "[rank3]" not in screen_text(app)
        await pilot.press("escape")
        await until_shown(pilot, "[rank3]: another")


async def test_lines_that_come_too_fast_are_counted(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_run(pilot, run)
        await pilot.press("l")
        await until_shown(pilot, "not markup")
        append_log(run, "".join(f"{number:<99}\n" for number in range(40_000)))
        await until_shown(pilot, "39999")
        await until_shown(pilot, "came too fast")


# --- nodes


def node_sample(host: str, at: float, util: float = 90.0, temperature: float = 60.0) -> dict[str, object]:
    gpu = {"name": "H100", "memory_used": 60 << 30, "memory_total": 80 << 30, "power": 600.0, "power_limit": 700.0}
    gpus = [{**gpu, "index": index, "util": util, "temperature": temperature, "clock": 1980} for index in range(8)]
    machine = {"cpu": 30.0, "cores": 8, "load": 1.0, "memory_used": 1 << 30, "memory_total": 4 << 30}
    rest = {"disk_free": 1 << 40, "disk_total": 2 << 40, "net_rx": 1e9, "net_tx": 1e9, "ib_rx": None, "ib_tx": None}
    facts = {"time": at, "host": host, "seq": 1, "period": 2.0, "nvml": "ok", "nvml_blocked_s": 0.0, "slow": None}
    return {**facts, "gpus": gpus, **machine, **rest}


def write_node(run: RunDirectory, host: str, **values: Any) -> None:
    with (run.nodes / f"{host}.jsonl").open("a") as file:
        file.write(json.dumps(node_sample(host, **values)) + "\n")


async def test_a_lost_node_greys_out_with_its_age_and_stands_first(run: RunDirectory) -> None:
    now = time.time()
    for path in run.nodes.iterdir():
        path.unlink()
    write_node(run, "well", at=now + 60)
    write_node(run, "hot", at=now + 60, temperature=91.0)
    write_node(run, "stale", at=now - 10)
    write_node(run, "gone", at=now - 75)
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
        await pilot.press("g")
        await until_shown(pilot, "gone")
        grid = screen.query_one(NodeGrid)
        assert [row.host for row in grid.rows] == ["gone", "hot", "stale", "well"]
        assert [row.status for row in grid.rows] == ["lost", "ok", "stale", "ok"]
        rows = [line for line in screen_lines(app) if "gone" in line]
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
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
        await pilot.press("g")
        grid = screen.query_one(NodeGrid)
        await until(pilot, lambda: len(grid.rows) == 3 and grid.has_focus)
        await pilot.press("down")
        assert grid.rows[grid.cursor].host == "b"
        write_node(run, "c", at=time.time() + 70, temperature=95.0)
        await until(pilot, lambda: [row.host for row in grid.rows] == ["c", "a", "b"])
        assert grid.rows[grid.cursor].host == "b"


# --- requests


async def test_stop_is_asked_for_once_whoever_presses_and_both_see_it(scripted: Scripted) -> None:
    script = (
        "def save(*a):\n    while not (run / 'let-go').exists(): time.sleep(0.02)\n    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('at work', flush=True)\ntime.sleep(60)\n"
    )
    run = scripted(pretrain=script)
    start_supervisor(run)
    first, second = WizardApp(run.root.parent), WizardApp(run.root.parent)
    async with first.run_test(size=(80, 24)) as one, second.run_test(size=(160, 48)) as other:
        await open_run(one, run)
        await open_run(other, run)
        for pilot in (one, other):
            await pilot.press("s")
            await until_shown(pilot, "Stop run r?")
        await one.press("y")
        await until_shown(one, "to stop")
        await until(other, lambda: "stop-requested" in run.events.read_text())
        await other.press("y")
        for pilot in (one, other):
            await until(pilot, lambda pilot=pilot: "asked at" in shown(pilot.app, "#run-notice"))
            assert "saving its work" in " ".join(shown(pilot.app, "#run-notice").split())
        (run.root / "let-go").touch()
        document = wait_for_end(run)
        assert document["state"] == "stopped"
        assert run.events.read_text().count('"stop-requested"') == 1
        for pilot in (one, other):
            await until(pilot, lambda pilot=pilot: "stopped the run" in shown(pilot.app, "#run-notice"))
        await one.press("r")  # and goes on from either screen
        await until(one, lambda: read_status(run).state == "running")
        await until(other, lambda: other.app.screen.snapshot.status.state == "running")
        assert "asked" not in shown(other.app, "#run-notice")
        requests.ask(run, requests.STOP)
        wait_for_end(run)


async def test_no_is_what_enter_answers(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_run(pilot, run)
        await pilot.press("s")
        await until_shown(pilot, "Stop run")
        await pilot.press("enter")
        await pilot.pause()
        assert requests.pending(run, requests.STOP) is None


async def test_a_checkpoint_is_asked_for_while_pretraining_runs(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_run(pilot, run)
        await pilot.press("x")
        await until(pilot, lambda: requests.pending(run, requests.CHECKPOINT) is not None)
        await until_shown(pilot, "A checkpoint has been asked for")
        requests.take(run, requests.CHECKPOINT)
        append_event(run, "checkpoint", stage="pretrain", step=640, path="x")
        await until(pilot, lambda: not app.screen.query_one("#run-notice").display)


async def test_the_address_at_wandb_is_copied(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
        await pilot.press("w")
        await until(pilot, lambda: any("wandb.mode is off" in said.message for said in app._notifications))
        append_event(run, "wandb", stage="pretrain", url="https://wandb.ai/team/llm-wizard/runs/abc", folder="f")
        await until(pilot, lambda: screen.snapshot is not None and screen.snapshot.wandb is not None)
        await pilot.press("w")
        assert app.clipboard == "https://wandb.ai/team/llm-wizard/runs/abc"


async def test_leaving_the_mode_stops_the_reading(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
        before = screen.snapshot
        await pilot.press("1")
        await until(pilot, lambda: app.current_mode == "home")
        append_metrics(run, {"time": NOW, "step": 999, "total": 4000, "loss": 1.0})
        await pilot.pause(0.5)
        assert screen.snapshot is not None
        assert before is not None
        assert screen.snapshot.series.last["step"] == 640
        await pilot.press("5")
        await until(pilot, lambda: screen.snapshot is not None and screen.snapshot.series.last["step"] == 999)


async def test_a_file_system_that_hangs_leaves_the_keys_alive(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    import tui.run_reader

    let_go = threading.Event()
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_run(pilot, run)
        monkeypatch.setattr(tui.run_reader, "read_status", lambda run: let_go.wait(30))
        try:
            await until(pilot, lambda: screen.run_watch.is_at_work("run"))
            await pilot.pause(0.5)  # some more rounds of the timer
            assert sum(thread.name == "run" for thread in threading.enumerate()) == 1
            await pilot.press("l")
            await until_shown(pilot, "not markup")
        finally:
            let_go.set()


def test_only_the_run_screen_imports_numpy_and_nothing_imports_torch() -> None:
    words = (
        "import sys, tui.app, tui.screens.home, tui.screens.doctor, tui.commands\n"
        "assert 'numpy' not in sys.modules and 'textual_plot' not in sys.modules\n"
        "import tui.screens.run, tui.screens.node\n"
        "assert 'textual_plot' in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", words], check=True, cwd=Path(__file__).parents[2])
