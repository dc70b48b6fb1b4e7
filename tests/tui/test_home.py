"""Home lists runs and presets, whatever their names and states, and never waits for a file system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from screen_in_pty import ScreenInPty
from screen_text import assert_layout_holds, screen_lines, screen_text, until, until_shown
from textual.widgets import OptionList

from conftest import MakeRun
from core.files import write_json
from core.language import set_language
from core.runs.directory import RunDirectory
from core.runs.lock import sign_lock, take_lock
from core.runs.state import read_status
from tui.app import WizardApp
from tui.run_listing import RunListing
from tui.screens.setup import SetupScreen

pytestmark = pytest.mark.anyio

TINY = {"corpus": {"script": "/nowhere.py"}}


@pytest.fixture(autouse=True)
def _no_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a preset has the doctor look at the machine: that is a test of Setup."""
    monkeypatch.setattr(SetupScreen, "_examine", lambda self: None)


def bare_run(root: Path, **state: object) -> RunDirectory:
    """A run folder as Home reads it."""
    root.mkdir(parents=True)
    (root / "plan.json").write_text("{}")
    write_json(root / "state.json", {"state": "done", "stage": None, "stages": {}, "started": 1.7e9} | state)
    return RunDirectory(root)


async def test_an_empty_machine_offers_the_quickstart_first(tmp_path: Path) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await until_shown(pilot, "quickstart")
        assert "No runs yet" in screen_text(app)
        presets = app.screen.query_one("#presets", OptionList)
        assert presets.has_focus
        assert presets.highlighted == 0
        assert "quickstart" in str(presets.get_option_at_index(0).prompt)
        await pilot.press("enter")
        await until(pilot, lambda: app.draft is not None)
        assert app.draft is not None
        assert app.draft.source == "quickstart"
        assert app.current_mode == "setup"
    assert not (tmp_path / "runs").exists()


async def test_presets_of_the_working_directory_are_offered_and_broken_ones_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("description: 日本語の小さなモデル [bold]x[/bold]\nseed: 3\n")
    (tmp_path / "wrong.yaml").write_text("pretrain: {steps: many}\n")
    (tmp_path / "docker-compose.yaml").write_text("services: {a: 1}\n")
    (tmp_path / "no.yaml").write_text("a: [\n")
    os.mkfifo(tmp_path / "fifo.yaml")
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 30)) as pilot:
        await until_shown(pilot, "mine.yaml")
        assert "日本語の小さなモデル [bold]x[/bold]" in screen_text(app)
        assert "✘ fail  wrong.yaml:1:12: pretrain.steps" in screen_text(app)
        for other in ("docker", "no.yaml", "fifo"):
            assert other not in screen_text(app)
        assert_layout_holds(app)
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.draft is not None)
        assert app.draft is not None
        assert app.draft.source == "mine.yaml"


async def test_a_run_shows_its_state_age_and_the_loss_of_the_last_stage_that_learnt(tmp_path: Path) -> None:
    stages = {
        "pretrain": {"state": "done", "metrics": {"loss": 3.25}},
        "finetune": {"state": "done", "metrics": {"loss": 2.125}},
        "upload-finetuned": {"state": "failed", "metrics": {}},
    }
    bare_run(tmp_path / "one", state="failed", stage="upload-finetuned", stages=stages)
    app = WizardApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_shown(pilot, "2.125")
        line = next(line for line in screen_lines(app) if "2.125" in line)
        assert "✘ failed" in line
        assert "one" in line
        assert "upload-finetuned" in line
        await pilot.press("shift+tab", "enter")
        await until(pilot, lambda: app.watched is not None)
        assert app.watched == RunDirectory(tmp_path / "one")


def test_while_a_later_stage_runs_the_loss_is_still_the_last_one_learnt(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(TINY)
    stages = {
        "pretrain": {"state": "done", "started": 1.0, "metrics": {"loss": 3.25}},
        "convert": {"state": "running", "started": 2.0},
    }
    write_json(run.state, {"state": "running", "stage": "convert", "stages": stages, "started": 1.0})
    run.metrics("convert").write_text('{"step": 3, "total": 4}\n')
    lock = take_lock(run)
    sign_lock(lock)
    try:
        (row,) = RunListing(run.root.parent).read()
    finally:
        os.close(lock)
    assert (row.state, row.stage, row.share, row.loss) == ("running", "convert", 0.75, 3.25)


def test_a_run_that_ended_is_read_once_and_again_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bare_run(tmp_path / "one", state="stopped")
    os.close(take_lock(run))
    reads = []
    monkeypatch.setattr("tui.run_listing.read_status", lambda run: reads.append(run) or read_status(run))
    listing = RunListing(tmp_path)
    assert [listing.read()[0].state for _ in range(3)] == ["stopped"] * 3
    assert len(reads) == 1
    write_json(run.state, {"state": "done", "stage": None, "stages": {}})
    assert listing.read()[0].state == "done"


HOSTILE = (
    "\x1b]0;title\x07\x1b[31mred",
    "[bold]markup [@click=app.quit]x",
    "日本語の名前がとても長い実行フォルダーなので切られる",
    "#heading",
    "a\nb\tc",
    os.fsdecode(b"\xff\xfe"),
)


async def test_names_and_states_that_are_hostile_are_shown_and_break_nothing(tmp_path: Path) -> None:
    for name in HOSTILE:
        bare_run(tmp_path / name)
    for number, text in enumerate(("{", "[]", '{"state": 3}', '{"state": "running", "stages": 5}', "\0")):
        (bare_run(tmp_path / f"broken{number}").root / "state.json").write_text(text)
    metrics = bare_run(tmp_path / "torn", stage="pretrain", stages={"pretrain": {"state": "failed"}}).metrics(
        "pretrain"
    )
    metrics.parent.mkdir(parents=True)
    metrics.write_text("not json\n")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "plan.json").symlink_to("plan.json")
    (tmp_path / "file").write_text("")
    app = WizardApp(tmp_path)
    for size in ((80, 40), (60, 40), (160, 48)):
        async with app.run_test(size=size) as pilot:
            await until_shown(pilot, "broken4")
            text = screen_text(app)
            assert "[bold]mark" in text
            assert "#heading" in text
            assert "\x1b]0" not in text
            assert text.count("? unknown") >= 5
            assert "loop" not in text
            assert_layout_holds(app)
        app = WizardApp(tmp_path)


async def test_two_hundred_runs_are_all_there(tmp_path: Path) -> None:
    for number in range(200):
        bare_run(tmp_path / f"run-{number:03}")
    app = WizardApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_shown(pilot, "run-1")
        runs = app.screen.query_one("#runs", OptionList)
        assert runs.option_count == 200
        await pilot.press("shift+tab", "end", "enter")
        await until(pilot, lambda: app.watched is not None)


async def test_what_cannot_be_resumed_says_why(tmp_path: Path) -> None:
    bare_run(tmp_path / "whole")
    app = WizardApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_shown(pilot, "whole")
        await pilot.press("r")
        await until_shown(pilot, "Run whole cannot be resumed: it is done.")
        await pilot.press("escape")
        await until(pilot, lambda: "cannot be resumed" not in screen_text(app))


async def test_an_error_of_resuming_stays_on_the_screen(tmp_path: Path) -> None:
    bare_run(tmp_path / "broken", state="stopped")
    app = WizardApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_shown(pilot, "broken")
        await pilot.press("r")
        await until_shown(pilot, "the supervisor of broken ended at once")
        assert app.current_mode == "home"


async def test_another_preset_does_not_throw_changes_away_unasked(tmp_path: Path) -> None:
    app = WizardApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_shown(pilot, "quickstart")
        await pilot.press("enter")
        await until(pilot, lambda: app.draft is not None)
        draft = app.draft
        assert draft is not None
        draft.set("pretrain.steps", "7")
        app.switch_mode("home")
        await until_shown(pilot, "quickstart")
        await pilot.press("enter")
        await until_shown(pilot, "Throw away what you changed in quickstart?")
        await pilot.press("enter")  # the answer that keeps them
        await until(pilot, lambda: app.current_mode == "setup" and len(app.screen_stack) == 1)
        assert app.draft is draft


async def test_a_runs_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    app = WizardApp(tmp_path / "file")
    async with app.run_test(size=(80, 24)) as pilot:
        await until_shown(pilot, "The runs cannot be read: [Errno 20] Not a directory")
        await pilot.resize_terminal(100, 30)
        await pilot.pause()
        assert "No runs yet" not in screen_text(app)


async def test_a_preset_that_is_no_yaml_is_listed_with_its_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("pretrain:\n  steps: [1, 2\n")
    (tmp_path / "other.yaml").write_text("services: [1, 2\n")
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(120, 30)) as pilot:
        await until_shown(pilot, "✘ fail  mine.yaml:3:1: not valid YAML")
        assert "other.yaml" not in screen_text(app)


@pytest.fixture
def japanese():
    set_language("ja")
    yield
    set_language("en")


@pytest.mark.usefixtures("japanese")
async def test_in_japanese_the_layout_holds(tmp_path: Path) -> None:
    bare_run(tmp_path / "one", state="failed")
    app = WizardApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until_shown(pilot, "one")
        assert_layout_holds(app)


def test_a_file_system_that_hangs_is_said_and_does_not_hold_the_screen(tmp_path: Path) -> None:
    stuck = bare_run(tmp_path / "runs" / "stuck")
    stuck.state.unlink()
    os.mkfifo(stuck.state)  # opening it waits for a writer, for ever
    screen = ScreenInPty("--runs-dir", str(tmp_path / "runs"), cwd=tmp_path)
    try:
        screen.wait_for("has not answered")
        screen.send("q")
        assert screen.wait() == 0
    finally:
        screen.close()


FIRST_FRAME = """
import asyncio, sys
from pathlib import Path
from textual.app import App
from tui.app import WizardApp

HEAVY = ("pydantic", "numpy", "ruamel", "torch", "questionary")
displayed, first = App._display, []

def display(self, screen, renderable):
    displayed(self, screen, renderable)
    if renderable is not None and not first and screen.query("#presets"):
        first.append([name for name in HEAVY if name in sys.modules])

App._display = display

async def main():
    async with WizardApp(Path("runs")).run_test(size=(80, 24)) as pilot:
        while not pilot.app.screen.query_one("#presets").option_count:
            await pilot.pause(0.02)

asyncio.run(main())
sys.exit(repr(first) if first != [[]] else 0)
"""


def test_the_first_frame_waits_for_no_heavy_import(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", FIRST_FRAME],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
