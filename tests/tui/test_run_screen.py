"""The Run mode on run directories as supervisors write them, and on a real supervisor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from screen_text import assert_layout_holds, screen_lines, screen_text, shown, until, until_shown
from scripted_runs import Scripted, scripted, wait_for_end

from core.runs import requests
from core.runs.directory import RunDirectory
from core.runs.start import start_supervisor
from core.runs.state import read_status
from core.stages.base import append_event
from tui.app import WizardApp
from tui.widgets.log_view import LogView
from tui.widgets.stage_rail import StageRail

from .run_screen import open_run, watching
from .sample_runs import NOW, append_metrics, failed_run, running_run

__all__ = ["scripted"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_run_screen")]

SIZES = [(80, 24), (160, 48), (200, 60)]


# --- what is shown


@pytest.mark.parametrize("size", SIZES)
async def test_a_running_run_at_every_size(run: RunDirectory, size: tuple[int, int]) -> None:
    async with watching(run, size) as (pilot, screen):
        await until_shown(pilot, "EMA")
        text = screen_text(pilot.app)
        for expected in ("running", "quickstart", "640/4000", "done", "tokenizer", "waiting", "valid"):
            assert expected in text
        assert_layout_holds(pilot.app)
        assert screen.has_class("-all") == (size[0] >= 110)
        if screen.has_class("-all"):
            await until_shown(pilot, "node-001")
            await until_shown(pilot, "[bold]not markup[/bold]")
            assert "checkpoint of step 400 saved" in text
            assert_layout_holds(pilot.app)


async def test_one_part_at_a_time_where_there_is_no_room_for_all(run: RunDirectory) -> None:
    async with watching(run) as (pilot, _):
        for key, expected in (
            ("l", "step 640/4,000"),
            ("g", "node-001"),
            ("e", "the loss rose by 0.8"),
            ("c", "EMA"),
        ):
            await pilot.press(key)
            await until_shown(pilot, expected)
            assert_layout_holds(pilot.app)


async def test_enlarging_gives_one_part_the_whole_window(run: RunDirectory) -> None:
    async with watching(run, (160, 48)) as (pilot, screen):
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
    async with watching(run, (160, 48)) as (pilot, screen):
        await until_shown(pilot, "step 640/4,000")
        await pilot.press("1")
        await pilot.pause()
        pilot.app.open_run(other)
        await until(pilot, lambda: screen.snapshot is not None and screen.snapshot.status.run == other)
        await until_shown(pilot, "loss.backward()")
        assert "step 640/4,000" not in screen_text(pilot.app)


async def test_a_failure_is_named_with_what_to_press(tmp_path: Path) -> None:
    run = failed_run(tmp_path / "runs")
    async with watching(run) as (pilot, _):
        await until_shown(pilot, "CUDA out of memory")
        notice = shown(pilot.app, "#run-notice")
        assert "pretrain failed" in notice
        assert "t: cause and fix" in notice
        footer = screen_lines(pilot.app)[-1]
        assert "Resume" in footer
        assert "Stop" not in footer
        await pilot.press("t")
        await until(pilot, lambda: pilot.app.current_mode == "troubleshoot")


async def test_a_run_whose_supervisor_is_gone_is_lost(tmp_path: Path) -> None:
    run = running_run(tmp_path / "runs")  # nobody holds its lock
    async with watching(run) as (pilot, _):
        await until_shown(pilot, "lost")
        assert "r goes on from the last checkpoint" in " ".join(shown(pilot.app, "#run-notice").split())


async def test_another_stage_can_be_looked_at(run: RunDirectory) -> None:
    run.log("tokenizer").write_text("pieces of the tokenizer\n")
    async with watching(run, (160, 48)) as (pilot, screen):
        await until_shown(pilot, "step 640/4,000")
        screen.query_one(StageRail).focus()
        await pilot.press("up", "up", "enter")
        await until_shown(pilot, "pieces of the tokenizer")
        await until_shown(pilot, "tokenizer has no loss to draw")
        assert "step 640/4,000" not in screen_text(pilot.app)
        await pilot.press("down", "down", "enter")
        await until_shown(pilot, "step 640/4,000")


async def test_damaged_files_do_not_take_the_screen_down(run: RunDirectory) -> None:
    with run.metrics("pretrain").open("ab") as file:
        file.write(b'{"step": 641, "loss"\n\x00\xff\n[]\n')
    with run.events.open("ab") as file:
        file.write(b'{"kind": \n"x"\n{"kind": "new-kind", "a": [1]}\n{}\n')
    (run.requests / "checkpoint").write_text("not json")
    async with watching(run, (160, 48)) as (pilot, _):
        await until_shown(pilot, "new-kind: a [1]")
        await until_shown(pilot, "EMA")
        assert "A checkpoint has been asked for" in shown(pilot.app, "#run-notice")


async def test_a_run_folder_that_is_taken_away_is_said(run: RunDirectory) -> None:
    async with watching(run) as (pilot, _):
        run.state.write_text("{")
        await until_shown(pilot, "cannot be read")


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
    async with watching(run) as (pilot, _):
        await pilot.press("s")
        await until_shown(pilot, "Stop run")
        await pilot.press("enter")
        await pilot.pause()
        assert requests.pending(run, requests.STOP) is None


async def test_a_checkpoint_is_asked_for_while_pretraining_runs(run: RunDirectory) -> None:
    async with watching(run) as (pilot, _):
        await pilot.press("x")
        await until(pilot, lambda: requests.pending(run, requests.CHECKPOINT) is not None)
        await until_shown(pilot, "A checkpoint has been asked for")
        requests.take(run, requests.CHECKPOINT)
        append_event(run, "checkpoint", stage="pretrain", step=640, path="x")
        await until(pilot, lambda: not pilot.app.screen.query_one("#run-notice").display)


async def test_the_address_at_wandb_is_copied(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching(run) as (pilot, screen):
        await pilot.press("w")
        await until(pilot, lambda: any("wandb.mode is off" in said.message for said in pilot.app._notifications))
        append_event(run, "wandb", stage="pretrain", url="https://wandb.ai/team/llm-wizard/runs/abc", folder="f")
        await until(pilot, lambda: screen.snapshot is not None and screen.snapshot.wandb is not None)
        await pilot.press("w")
        assert pilot.app.clipboard == "https://wandb.ai/team/llm-wizard/runs/abc"


async def test_leaving_the_mode_stops_the_reading(run: RunDirectory) -> None:
    async with watching(run) as (pilot, screen):
        before = screen.snapshot
        await pilot.press("1")
        await until(pilot, lambda: pilot.app.current_mode == "home")
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
    async with watching(run) as (pilot, screen):
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
