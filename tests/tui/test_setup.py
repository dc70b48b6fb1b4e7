"""Setup: the walk through a preset. What is typed is judged at once, planned after a pause, and never lost."""

from __future__ import annotations

import shlex
import stat
import sys
from pathlib import Path

import pytest
from screen_in_pty import ScreenInPty
from screen_text import assert_layout_holds, screen_lines, screen_text, until, until_shown, words
from textual.pilot import Pilot
from textual.widgets import Input

from core.facts import facts_for
from core.language import set_language
from core.plan import make_plan
from core.preset_source import load_preset
from core.runs.directory import RunDirectory
from tui.app import WizardApp
from tui.draft import Draft
from tui.form import STEPS, fields_of
from tui.messages import DoctorEnded
from tui.screens.setup import SetupScreen
from tui.verb import Verb
from tui.walk import NAME
from tui.widgets.keyed_list import KeyedList

pytestmark = pytest.mark.anyio

SIZE = (80, 24)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WizardApp:
    """An application in an empty folder, whose doctor is not asked: that is a test of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SetupScreen, "_examine", lambda self: None)
    return WizardApp(tmp_path / "runs")


async def open_setup(pilot: Pilot[int], preset: str = "quickstart", key: str = "") -> SetupScreen:
    """Open a preset, and put the cursor into a field."""
    app = pilot.app
    assert isinstance(app, WizardApp)
    app.open_draft(Draft.from_preset(preset))
    await until(pilot, lambda: isinstance(app.screen, SetupScreen) and app.screen._planned.edition)
    screen = app.screen
    assert isinstance(screen, SetupScreen)
    if key:
        await screen.go_to(key)
        await until(pilot, lambda: screen._focused is not None and screen._focused.key == key)
        await pilot.pause()
    return screen


async def type_text(pilot: Pilot[int], text: str) -> None:
    """Replace what stands in the field, which is selected when the cursor comes to it."""
    await pilot.press("ctrl+u", "ctrl+k", *text)


async def test_every_step_shows_its_fields_and_its_part_of_the_plan(app: WizardApp) -> None:
    async with app.run_test(size=(160, 48)) as pilot:
        screen = await open_setup(pilot)
        for number, step in enumerate(step for step in STEPS if step.only_with is None):
            if number:
                await pilot.press("down")
            await until(pilot, lambda step=step: step.id in screen._forms)
            keys = [key for key in screen._forms[step.id].rows if key != NAME.key]
            assert keys == [spec.key for section in step.sections for spec in fields_of(section)]
            await until_shown(pilot, f"stage.py {step.stage} runs/quickstart", "#plan")
            assert_layout_holds(app)


async def test_a_choice_brings_the_step_that_it_needs_and_marks_where_something_is_missing(app: WizardApp) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await open_setup(pilot, key="pretrain.backend")
        assert "Megatron" not in screen_text(app)
        await pilot.press("right")
        await until_shown(pilot, "megatron.checkout is not set")
        await until_shown(pilot, "✘ Megatron")
        await pilot.press("escape")
        await until_shown(pilot, "Not complete yet", "#help")
        await pilot.press("down", "enter")
        await until_shown(pilot, "› checkout")
        assert_layout_holds(app)


async def test_without_a_preset_it_says_where_to_choose_one(app: WizardApp) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await pilot.press("3")
        await until_shown(pilot, "No preset is open")
        await pilot.press("ctrl+g", "ctrl+s", "ctrl+y", "ctrl+o", "ctrl+r", "ctrl+n", "right", "escape")
        assert app.current_mode == "setup"


async def test_a_wrong_value_is_said_under_its_field_and_the_plan_follows_when_it_is_right(app: WizardApp) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await open_setup(pilot, key="pretrain.steps")
        await type_text(pilot, "many")
        await until_shown(pilot, "There is no plan yet:")
        lines = screen_lines(app)
        place = next(number for number, line in enumerate(lines) if "›✘steps" in line)
        assert "✘ fail  the text 'many'" in lines[place + 1]
        assert any(line.startswith("- ✘ Pretraining") for line in lines)
        await type_text(pilot, "32")
        await until_shown(pilot, "32 steps x 4,096 = 131k")
        assert "✘" not in screen_text(app)
        assert "›*steps" in screen_text(app)
        assert any(line.startswith("- * Pretraining") for line in screen_lines(app))


async def test_what_does_not_fit_together_is_said_where_it_was_changed(app: WizardApp) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await open_setup(pilot, key="model.heads")
        await type_text(pilot, "7")
        await until_shown(pilot, "›✘heads")
        assert "is not a multiple of heads 7; set model.hidden_size to 189" in words(app, "#forms")
        await type_text(pilot, "8")
        await until(pilot, lambda: "✘" not in screen_text(app))


async def test_the_batch_arithmetic_memory_and_command_are_the_plans(app: WizardApp, tmp_path: Path) -> None:
    async with app.run_test(size=(160, 48)) as pilot:
        await open_setup(pilot, key="pretrain.micro_batch")
        await type_text(pilot, "5")
        await until_shown(pilot, "5 micro x 4 accumulation x 1 processes = 20 ! warn: adjusted", "#plan")
        text = words(app, "#plan")
        for part in ("memory [█", "main memory for each of 1 processes", "█ weights", "░ activations", "free",
                     "stage.py pretrain runs/quickstart", "parameters 2,557,632"):  # fmt: skip
            assert part in text


async def test_enter_goes_from_field_to_field_to_the_next_step_and_at_last_to_the_plan(app: WizardApp) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        screen = await open_setup(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: screen._focused is NAME)
        await pilot.press(*["enter"] * 15)
        await until(pilot, lambda: screen._focused is not None and screen._focused.key == "cluster.node_wait")
        await pilot.press("enter")
        await until(pilot, lambda: screen._focused is not None and screen._focused.key == "corpus.files")
        assert screen.query_one("#steps", KeyedList).key == "corpus"
        await screen.go_to("slurm.extra")
        await until(pilot, lambda: screen._focused is not None and screen._focused.name == "extra")
        await pilot.pause()
        await pilot.press("enter")
        await until(pilot, lambda: app.current_mode == "plan")


async def test_the_cursor_is_a_glyph_and_no_other_line_has_one(app: WizardApp) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        screen = await open_setup(pilot)
        await until_shown(pilot, "Plan, launch")

        def rail() -> list[str]:
            lines = [line[:19].rstrip() for line in screen_lines(app)[1:-1]]
            return [line for line in lines if line[:1] in ("›", "-") or line.endswith("Plan, launch")]

        await until(pilot, lambda: rail() == ["›   Environment", "    Plan, launch"])
        await pilot.press("down", "enter")
        await until(pilot, lambda: rail() == ["-   Corpus", "    Plan, launch"])
        assert screen.focused is not None
        assert screen.focused.has_class("editor")


async def test_what_no_value_means_is_said_and_a_long_value_ends_in_an_ellipsis(app: WizardApp) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        screen = await open_setup(pilot)
        assert "processes           (automatic)" in screen_text(app)
        assert "description         A 3-million-parameter Llama fro…" in screen_text(app)
        await screen.go_to("description")
        await until(pilot, lambda: "two CPU cores" in screen_text(app))  # the end, where one types
        await screen.go_to("pretrain.tokens")
        await until_shown(pilot, "tokens              (not set)")


async def test_another_preset_is_not_shown_with_the_doctors_words_on_the_one_before(
    app: WizardApp, tmp_path: Path
) -> None:
    (tmp_path / "wrong.yaml").write_text("pretrain: {steps: x}\n")
    async with app.run_test(size=(160, 48)) as pilot:
        screen = await open_setup(pilot)
        screen._look.begin(("--preset", "quickstart"))
        screen._look.take(DoctorEnded(screen._look.run, "The doctor of the quickstart is ill"))
        await open_setup(pilot, str(tmp_path / "wrong.yaml"))
        await until_shown(pilot, "once the values are right", "#plan")
        assert "is ill" not in screen_text(app)


async def test_leaving_asks_before_changes_are_lost_and_not_once_they_are_saved(app: WizardApp, tmp_path: Path) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await open_setup(pilot, key="pretrain.steps")
        await type_text(pilot, "7")
        for key in ("ctrl+c", "ctrl+q"):
            await pilot.press(key)
            await until_shown(pilot, "Throw away what you changed in quickstart?")
            await pilot.press("escape")
            await until(pilot, lambda: len(app.screen_stack) == 1)
        assert app.draft is not None
        app.draft.save(tmp_path / "mine.yaml")
        await pilot.press("ctrl+c")
    assert app.return_value == 130


def test_ctrl_c_in_the_editor_is_the_editors(tmp_path: Path) -> None:
    # Not a shell script: dash loses a SIGINT that comes while it forks its next command.
    editor = tmp_path / "editor"
    editor.write_text(f"#!{sys.executable}\nimport time\nprint('EDITING', flush=True)\ntime.sleep(60)\n")
    editor.chmod(0o755)
    screen = ScreenInPty("--runs-dir", str(tmp_path / "runs"), cwd=tmp_path, VISUAL="", EDITOR="./editor")
    try:
        screen.wait_for("quickstart")
        screen.send("\r")
        screen.wait_for("Plan, launch")
        screen.send("\x0f")
        screen.wait_for("EDITING")
        screen.send("\x03")
        screen.wait_for("editor ended with code")
        screen.send("\x11")
        assert screen.wait() == 0
    finally:
        screen.close()


async def test_arrows_move_between_fields_and_choose_words(app: WizardApp) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        screen = await open_setup(pilot, key="pretrain.schedule")
        draft = app.draft
        assert draft is not None
        assert "[cosine] wsd" in screen_text(app)
        await pilot.press("right")
        assert draft.changes == {"pretrain.schedule": "wsd"}
        assert "cosine [wsd]" in screen_text(app)
        await pilot.press("space")
        assert draft.changes == {}
        await pilot.press("down", "up", "up")
        await until(pilot, lambda: screen._focused is not None and screen._focused.key == "pretrain.min_lr")
        await screen.go_to("model.size")
        await until(pilot, lambda: screen._focused is not None and screen._focused.key == "model.size")
        await pilot.pause()
        await pilot.press("right", "right")
        await until_shown(pilot, "‹ 350M › 3/9")
        assert draft.changes == {"model.size": "350M"}
        await pilot.press("left", "left")
        assert draft.changes == {}


async def test_reset_takes_the_presets_own_value_again(app: WizardApp) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        screen = await open_setup(pilot, key="pretrain.steps")
        await type_text(pilot, "7")
        await pilot.press("ctrl+r")
        row = screen._forms["pretrain"].rows["pretrain.steps"]
        assert isinstance(row.editor, Input)
        assert row.editor.value == "300"
        assert app.draft is not None
        assert app.draft.changes == {}


async def test_the_name_of_the_run_is_checked_and_is_part_of_the_command(app: WizardApp) -> None:
    async with app.run_test(size=(160, 48)) as pilot:
        await open_setup(pilot, key="name")
        await type_text(pilot, "../x")
        await until_shown(pilot, "is not usable")
        await type_text(pilot, "tried")
        await until_shown(pilot, "runs/tried", "#plan")
        assert app.draft is not None
        assert app.draft.command_line() == "llm-wizard run quickstart --name tried"


async def test_going_to_another_mode_and_back_loses_nothing(app: WizardApp) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        screen = await open_setup(pilot, key="pretrain.lr")
        await type_text(pilot, "0.0")
        await pilot.press("f1", "f3")
        await until(pilot, lambda: app.screen is screen)
        row = screen._forms["pretrain"].rows["pretrain.lr"]
        assert isinstance(row.editor, Input)
        assert row.editor.value == "0.0"
        assert row.editor.has_focus


async def test_saving_writes_a_preset_of_the_same_plan_and_replaces_only_when_told_twice(
    app: WizardApp, tmp_path: Path
) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        screen = await open_setup(pilot, key="pretrain.steps")
        await type_text(pilot, "7")
        await until_shown(pilot, "7 steps x 4,096")
        shown = screen._planned.plan
        assert shown is not None
        await pilot.press("ctrl+s")
        await until_shown(pilot, "Save as a preset")
        await pilot.press("enter")
        await until_shown(pilot, "Saved as my-quickstart.yaml")
        loaded = load_preset(str(tmp_path / "my-quickstart.yaml"))
        run = RunDirectory(tmp_path / "runs" / "quickstart")
        again = make_plan(loaded.preset, "quickstart", facts_for(loaded.preset, tmp_path / "runs"), run)
        for plan in (shown, again):
            for stage in plan.stages:
                stage.derived.pop("disk_free", None)
        assert again == shown
        (tmp_path / "my-quickstart.yaml").write_text("mine")
        await pilot.press("ctrl+s")
        await until_shown(pilot, "Save as a preset")
        await pilot.press("enter")
        await until_shown(pilot, "Enter again replaces it")
        assert (tmp_path / "my-quickstart.yaml").read_text() == "mine"
        await pilot.press("end", "x", "backspace", "enter")
        assert (tmp_path / "my-quickstart.yaml").read_text() == "mine", "typing withdraws the first Enter"
        await pilot.press("enter")
        await until(pilot, lambda: (tmp_path / "my-quickstart.yaml").read_text() != "mine")
        await until(pilot, lambda: app.screen is screen)
        await pilot.press("ctrl+s")
        await until_shown(pilot, "Save as a preset")
        await type_text(pilot, "nowhere/x.yaml")
        await pilot.press("enter")
        await until_shown(pilot, "cannot be written")
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is screen)


async def test_the_command_line_is_shown_and_copied_and_makes_the_same_values(app: WizardApp) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        screen = await open_setup(pilot, key="finetune.instruction_template")
        await type_text(pilot, "### 人間's:")
        await pilot.press("ctrl+y")
        await until_shown(pilot, "llm-wizard run quickstart")
        assert_layout_holds(app)
        argv = shlex.split(app.clipboard)
        assert argv[:3] == ["llm-wizard", "run", "quickstart"]
        assert argv[3:] == ["--set", "finetune.instruction_template=### 人間's:"]
        assert app.draft is not None
        assert load_preset(argv[2], argv[4::2]).preset == app.draft.preset()
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is screen)


async def test_a_text_from_the_editor_is_taken_over_or_said_with_its_lines_and_kept(app: WizardApp) -> None:
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        screen = await open_setup(pilot, key="pretrain.steps")
        assert app.draft is not None
        wrong = app.draft.yaml().replace("steps: 300", 'steps: "[bold]x"').replace("layers: 4", "lairs: 4")
        screen._take_text(wrong)
        await until_shown(pilot, "Open the editor again")
        text = words(app, "#problems")
        assert "did you mean model.layers?" in text
        assert "lairs: 4" in text
        assert "[bold]x" in text
        assert app.draft.changes == {}
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is screen)
        assert screen._refused_text == wrong
        screen._take_text(wrong.replace('"[bold]x"', "77").replace("lairs", "layers"))
        await until_shown(pilot, "77 steps")
        row = screen._forms["pretrain"].rows["pretrain.steps"]
        assert isinstance(row.editor, Input)
        assert row.editor.value == "77"
        assert screen._refused_text == ""


async def test_without_room_for_an_editor_it_says_so(app: WizardApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", "true")
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await open_setup(pilot)
        await pilot.press("e")
        await until_shown(pilot, "cannot make room for")


def test_the_editor_gets_the_terminal_and_its_text_comes_back(tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nset -e\ntest -t 0\ntest -t 1\nsed -i "s/steps: 300/steps: 4321/" "$1"\n')
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    screen = ScreenInPty("--runs-dir", str(tmp_path / "runs"), cwd=tmp_path, VISUAL="", EDITOR=str(editor))
    try:
        screen.wait_for("quickstart")
        screen.send("\r")
        screen.wait_for("Pretraining")
        screen.send("e")
        screen.wait_for("Taken over from the editor")
        screen.send("y")
        screen.wait_for("--set pretrain.steps=4321")
        screen.send("\x11")
        screen.wait_for("Throw away what you changed")
        screen.send("y")
        assert screen.wait() == 0
    finally:
        screen.close()


@pytest.mark.parametrize("language", ["en", "ja"])
async def test_wide_characters_and_small_terminals_keep_the_layout(app: WizardApp, language: str) -> None:
    set_language(language)
    try:
        for size in ((80, 24), (60, 16), (160, 48)):
            async with app.run_test(size=size, notifications=True) as pilot:
                await open_setup(pilot, key="wandb.project")
                assert isinstance(app.focused, Input)
                app.focused.value = "日本語のとても長いプロジェクト名でも崩れない"
                await until_shown(pilot, "*project")
                assert_layout_holds(app)
                assert "日本語の" in screen_text(app)
                await pilot.press("ctrl+t")
                assert_layout_holds(app)
            app = WizardApp(app.runs_dir)
    finally:
        set_language("en")


async def test_the_doctors_findings_come_while_the_walk_goes_on(tmp_path: Path) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(160, 48)) as pilot:
        await open_setup(pilot, key="pretrain.steps")
        await type_text(pilot, "9")
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await screen.go_to("cluster.python")
        await until_shown(pilot, "2 shows all checks", seconds=60)
        assert "✔ pass" in screen_text(app)
        assert screen._look.trouble == ""


async def test_a_doctor_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.doctor_process.Verb", lambda runs_dir, *_: Verb(runs_dir, "frobnicate"))
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await open_setup(pilot)
        await until_shown(pilot, "exit code 64")
