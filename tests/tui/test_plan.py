"""Plan: every stage as it will run, what stands in the way and where to mend it, and a launch that loses nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from screen_text import assert_layout_holds, screen_lines, screen_text, until, until_shown, words
from scripted_runs import wait_for_end
from textual.pilot import Pilot
from textual.widgets import Input

from conftest import MakeRun
from core.files import read_json, write_json
from core.language import set_language
from core.runs import requests
from core.runs.directory import RunDirectory
from core.runs.lock import sign_lock, take_lock
from core.runs.state import read_status
from core.stages import STAGES
from tui.app import WizardApp
from tui.draft import Draft
from tui.plan_review import free_name, review
from tui.screens.plan import PlanScreen
from tui.screens.setup import SetupScreen
from tui.widgets.keyed_list import KeyedList

pytestmark = pytest.mark.anyio

TINY = {"corpus": {"script": "/nowhere.py"}}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WizardApp:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SetupScreen, "_examine", lambda self: None)  # the doctor is not the subject here
    return WizardApp(tmp_path / "runs")


async def open_plan(pilot: Pilot[int], draft: Draft) -> PlanScreen:
    app = pilot.app
    assert isinstance(app, WizardApp)
    app.open_draft(draft, "plan")
    await until(pilot, lambda: isinstance(app.screen, PlanScreen) and app.screen._review is not None)
    assert isinstance(app.screen, PlanScreen)
    return app.screen


def ended(run: RunDirectory, state: str, **stages: str) -> None:
    """Leave a run as a supervisor that has ended leaves it."""
    entries = {stage: {"state": how, "started": 1.0, "ended": None, "metrics": {}} for stage, how in stages.items()}
    write_json(run.state, {"state": state, "stage": None, "stages": entries, "started": 1.0})


async def test_every_stage_shows_its_command_files_environment_and_numbers(app: WizardApp) -> None:
    async with app.run_test(size=(160, 60)) as pilot:
        await open_plan(pilot, Draft.from_preset("quickstart"))
        app.screen.query_one("#stages").focus()
        for stage in STAGES:
            await until_shown(pilot, f"runs/quickstart/code/stage.py {stage.id} runs/quickstart", "#detail")
            detail = words(app, "#detail")
            assert "PYTHONPATH=runs/quickstart/code" in detail
            assert f"on {os.uname().nodename}" in detail
            if stage.id == "pretrain":
                assert "16 micro x 1 accumulation x 1 processes = 16" in detail
                assert "makes checkpoints runs/quickstart/checkpoints" in detail
                assert "reads bin runs/quickstart/outputs/data/text_document.bin" in detail
            assert_layout_holds(app)
            await pilot.press("down")
    assert not app.runs_dir.exists(), "looking at a plan makes nothing"


async def test_what_stands_in_the_way_is_listed_and_enter_goes_to_the_field(app: WizardApp, tmp_path: Path) -> None:
    draft = Draft.from_preset("quickstart")
    draft.set("finetune.files", "[nowhere.jsonl]")
    draft.set("cluster.python", "/nowhere/python")
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_plan(pilot, draft)
        assert f"✘ fail  finetune: conversations: there is no file or folder {tmp_path}"[:70] in screen_text(app)
        assert "Launch" not in words(app, "#actions")
        assert "Enter goes to finetune.files in Setup." in words(app, "#detail")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, SetupScreen) and isinstance(app.focused, Input))
        assert app.screen._focused is not None
        assert app.screen._focused.key == "finetune.files"
        await pilot.press("ctrl+u", "enter", "ctrl+g")
        await until(pilot, lambda: app.screen is screen and screen._review is not None)
        assert "cluster.python: /nowhere/python is not a program" in words(app, "#detail")


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("pretrain.steps", "many", "pretrain.steps"),
        ("corpus.script", "/nowhere.py", "corpus.script"),
        ("data.prefix", "/nowhere", "data.prefix"),
        ("upload_pretrained.model", "/nowhere", "upload_pretrained.model"),
        ("cluster.processes", "2", "pretrain.zero"),
        ("corpus.files", "empty.jsonl", "corpus.text_key"),
    ],
)
def test_a_problem_names_the_field_where_it_is_mended(
    key: str, value: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    draft = Draft.from_preset("quickstart")
    if field == "pretrain.zero":
        draft.set("pretrain.zero", "0")
    draft.set(key, value)
    assert [problem.key for problem in review(draft, tmp_path).problems][:1] == [field]


async def test_a_name_that_is_taken_offers_resume_and_the_next_free_name(app: WizardApp, make_run: MakeRun) -> None:
    run = make_run(TINY, "quickstart")
    ended(run, "stopped", environment="done", corpus="done", tokenizer="stopped")
    make_run(TINY, "quickstart-2")
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_plan(pilot, Draft.from_preset("quickstart"))
        assert "There is a run quickstart (stopped). Done in it: environment, corpus." in words(app, "#notice")
        lines = screen_lines(app)
        assert any("✔ done     corpus" in line for line in lines)
        assert any("■ stopped  tokenizer" in line for line in lines)
        assert "Resume quickstart as it was planned then (stopped)" in screen_text(app)
        assert "Launch quickstart-3" in screen_text(app)
        assert screen.query_one("#actions", KeyedList).key == "launch"


async def test_a_run_that_runs_is_watched_not_started_twice(app: WizardApp, make_run: MakeRun) -> None:
    run = make_run(TINY, "quickstart")
    ended(run, "running", environment="running")
    lock = take_lock(run)
    sign_lock(lock)
    try:
        async with app.run_test(size=(80, 24)) as pilot:
            await open_plan(pilot, Draft.from_preset("quickstart"))
            assert "Resume" not in words(app, "#actions")
            assert "Launch quickstart-2" in words(app, "#actions")
            await pilot.press("enter")
            await until(pilot, lambda: app.watched == run)
    finally:
        os.close(lock)


async def test_a_run_that_went_away_is_said(app: WizardApp, make_run: MakeRun) -> None:
    run = make_run(TINY, "quickstart")
    ended(run, "stopped", corpus="stopped")
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        screen = await open_plan(pilot, Draft.from_preset("quickstart"))
        await until_shown(pilot, "Resume quickstart")
        run.root.rename(run.root.with_name("elsewhere"))
        screen.query_one("#actions", KeyedList).go_to("resume")
        await pilot.press("enter")
        await until_shown(pilot, "Run quickstart is gone")


async def test_a_key_that_no_field_has_is_mended_in_the_text(app: WizardApp, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("pretrain: {steps: x, stpes: 3}\n")
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await open_plan(pilot, Draft.from_preset(str(tmp_path / "mine.yaml")))
        await until_shown(pilot, "Enter goes to pretrain.steps in Setup.")
        await pilot.press("down")
        await until_shown(pilot, "In Setup, ^o opens the text of the preset", "#detail")


async def test_a_folder_that_is_no_run_takes_a_name_too(app: WizardApp, tmp_path: Path) -> None:
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_plan(pilot, Draft.from_preset("quickstart"))
        assert "quickstart is taken by a folder that is no run." in words(app, "#notice")
        assert "Launch quickstart-2" in screen_text(app)


async def test_a_launch_that_fails_is_said_and_the_draft_is_as_it_was(app: WizardApp, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    draft = Draft.from_preset("quickstart")
    draft.set("pretrain.steps", "7")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_plan(pilot, draft)
        await pilot.press("enter")
        await until_shown(pilot, "is a file", "#notice")
        assert app.current_mode == "plan"
        assert "Launch quickstart" in screen_text(app)
        assert app.draft is draft
        assert draft.changes == {"pretrain.steps": "7"}
        await pilot.press("escape")
        await until(pilot, lambda: app.current_mode == "setup")


async def test_without_a_preset_it_says_where_to_choose_one(app: WizardApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("4")
        await until_shown(pilot, "No preset is open")
        await pilot.press("l", "r", "y", "enter")


async def test_wide_characters_and_small_terminals_keep_the_layout(app: WizardApp) -> None:
    set_language("ja")
    try:
        for size in ((80, 24), (60, 16)):
            async with app.run_test(size=size) as pilot:
                draft = Draft.from_preset("quickstart")
                draft.set("finetune.files", "日本語の長い名前のファイルがここにはありません.jsonl")
                await open_plan(pilot, draft)
                assert "✘" in screen_text(app)
                assert_layout_holds(app)
            app = WizardApp(app.runs_dir)
    finally:
        set_language("en")


def test_the_next_free_name_counts_on(tmp_path: Path) -> None:
    for name in ("a", "a-2", "b-7"):
        (tmp_path / name).mkdir()
    assert [free_name(name, tmp_path) for name in ("a", "b-7", "c", "a-2")] == ["a-3", "b-2", "c", "a-3"]


async def test_from_an_empty_machine_to_a_running_quickstart_in_few_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = WizardApp(tmp_path / "runs")
    pressed: list[str] = []
    async with app.run_test(size=(80, 24)) as pilot:

        async def press(key: str) -> None:
            assert key in ("enter", "tab", "up", "down", "left", "right")
            pressed.append(key)
            await pilot.press(key)

        await until_shown(pilot, "quickstart")
        await press("enter")
        await until_shown(pilot, "Plan, launch")
        await press("up")
        await press("enter")
        await until_shown(pilot, "Launch quickstart")
        await press("enter")
        await until(pilot, lambda: app.watched is not None)
        run = app.watched
        assert run == RunDirectory(tmp_path / "runs" / "quickstart")
        try:
            assert app.current_mode == "run"
            assert read_status(run).state == "running"
            assert [stage["id"] for stage in read_json(run.plan)["stages"]] == [stage.id for stage in STAGES]
        finally:
            requests.ask(run, requests.STOP)
    assert len(pressed) <= 12
    assert wait_for_end(run)["state"] == "stopped"
