"""The Troubleshoot mode on the real `llm-wizard diagnose` and the real list of known failures."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from screen_text import assert_layout_holds, screen_text, shown, until, until_shown
from textual.widgets import Input

from core.files import read_json, write_json
from core.troubleshoot.signatures import load_signatures
from tui.app import WizardApp
from tui.diagnosis import read_diagnosis, search
from tui.screens.choose_log import ChooseLogDialog
from tui.screens.doctor import DoctorScreen
from tui.screens.fix import FixScreen
from tui.screens.troubleshoot import TroubleshootScreen
from tui.widgets.keyed_list import KeyedList

from .sample_runs import alive, failed_run, running_run
from .stand_in import stand_in

pytestmark = pytest.mark.anyio

SIZES = [(80, 24), (160, 48)]
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"


async def open_troubleshoot(pilot: Any) -> TroubleshootScreen:
    await pilot.press("6")
    await until(pilot, lambda: isinstance(pilot.app.screen, TroubleshootScreen))
    await until(pilot, lambda: pilot.app.screen._signatures)
    return pilot.app.screen


async def diagnose_path(pilot: Any, path: str) -> None:
    await pilot.press("o")
    await until(pilot, lambda: isinstance(pilot.app.screen, ChooseLogDialog))
    field = pilot.app.screen.query_one("#path", Input)
    field.focus()
    field.value = path
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(pilot.app.screen, TroubleshootScreen))


@pytest.mark.parametrize("size", SIZES)
async def test_the_newest_failed_run_is_explained(tmp_path: Path, size: tuple[int, int]) -> None:
    run = failed_run(tmp_path / "runs")
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=size) as pilot:
        await open_troubleshoot(pilot)
        await until_shown(pilot, "✘ failed  cuda-oom")
        assert "Run out-of-memory: failed in pretrain" in screen_text(app)
        assert "✘ cause" in screen_text(app)
        detail = shown(app, "#detail")
        assert f"{run.log('pretrain')}:5" in detail
        for said in ("CUDA out of memory. Tried to allocate 2.00 GiB", "Cause", "What to do", "Sources", "#317"):
            assert said in detail
        assert_layout_holds(app)


async def test_the_watched_run_comes_before_the_newest(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    watched = failed_run(runs, "watched")
    watched.log("pretrain").write_text("step 1/9\nOSError: [Errno 28] No space left on device\n")
    failed_run(runs, "newer")
    app = WizardApp(runs)
    app.watched = watched
    async with app.run_test(size=(80, 24)) as pilot:
        await open_troubleshoot(pilot)
        await until_shown(pilot, "✘ failed  disk-full")
        assert "Run watched" in screen_text(app)
        app.watched = None
        await pilot.press("1", "6")
        await until_shown(pilot, "✘ failed  cuda-oom")


async def test_without_a_failed_run_it_says_what_to_do(tmp_path: Path) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_troubleshoot(pilot)
        await until_shown(pilot, "No run has failed. o chooses a run or a log")
        await pilot.press("c", "d", "r", "enter", "escape")
        assert app.is_running


async def test_another_run_is_chosen_from_a_list(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    failed_run(runs)
    app = WizardApp(runs)
    with alive(running_run(runs, "lively")) as lively:
        lively.log("pretrain").write_text("step 3/9  loss 2.0\nstep 4/9  loss 1.9\n")
        async with app.run_test(size=(80, 24)) as pilot:
            await open_troubleshoot(pilot)
            await until_shown(pilot, "cuda-oom")
            await pilot.press("o")
            await until_shown(pilot, "▶ running   lively")
            await pilot.press("enter")
            await until_shown(pilot, "Run lively: running in pretrain")
            await until_shown(pilot, "No known failure, and no exception that ended a process.")
            assert "✔ healthy" in screen_text(app)


async def test_a_run_that_hangs_is_diagnosed_as_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    stand_in(monkeypatch, f"open({str(asked)!r}, 'w').write(' '.join(sys.argv[1:]))\nprint('{{}}')")
    runs = tmp_path / "runs"
    app = WizardApp(runs)
    with alive(running_run(runs)) as run:
        for path in (run.log("pretrain"), run.metrics("pretrain")):
            os.utime(path, (time.time() - 500, time.time() - 500))
        app.watched = run
        async with app.run_test(size=(80, 24)) as pilot:
            await open_troubleshoot(pilot)
            await until(pilot, asked.is_file)
            await until_shown(pilot, "The diagnosis printed something else than a diagnosis.")
    words = asked.read_text().split()
    assert 500 <= float(words[words.index("--stalled-for") + 1]) < 600


async def test_the_exit_code_of_a_failed_stage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    stand_in(monkeypatch, f"open({str(asked)!r}, 'w').write(' '.join(sys.argv[1:]))")
    run = failed_run(tmp_path / "runs")
    document = read_json(run.state)
    document["stages"]["pretrain"]["process_exit_code"] = -9
    write_json(run.state, document)
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_troubleshoot(pilot)
        await until_shown(pilot, "The logs could not be read (exit code 0): it said nothing")
    assert asked.read_text().endswith(f"diagnose {run.root} --json --exit-code -9")


@pytest.mark.parametrize("name", ["[red]x\x1b[31m\x1b]0;title\x07\nsecond", "日本語のログ", "--help", "a b"])
async def test_a_log_with_a_hostile_name_and_content_is_shown_as_text(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    log = folder / f"{name}.log"
    log.write_text(
        f"step 1\n\x1b[31m[rank0]: Traceback (most recent call last):\n[rank0]: {OOM} [bold]\x1b]0;evil\x07\n"
    )
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_troubleshoot(pilot)
        await diagnose_path(pilot, str(log))
        await until_shown(pilot, "✘ failed  cuda-oom")
        text = screen_text(app) + shown(app, "#detail")
        assert "\x1b" not in text
        assert "\x07" not in text
        assert name.split("\x1b")[0] in text
        assert_layout_holds(app)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("/no/such/log", "/no/such/log"), ("/proc/self/mem", "/proc/self/mem"), ("/with\x00zero", "could not be")],
)
async def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, path: str, sentence: str) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_troubleshoot(pilot)
        screen.choose(Path(path))
        await until(pilot, lambda: screen._trouble or "?" in shown(app, "#verdict"))
        assert "Traceback" not in screen_text(app)
        assert sentence in shown(app, "#verdict")


@pytest.mark.parametrize("size", SIZES)
async def test_known_failures_are_found_by_words(tmp_path: Path, size: tuple[int, int]) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=size) as pilot:
        await open_troubleshoot(pilot)
        await pilot.press("slash")
        total = len(load_signatures())
        await until_shown(pilot, f"Known failures: {total} of {total}")
        await pilot.press(*"wat")
        app.screen.query_one("#words", Input).value += "chdog"
        found = search(load_signatures(), "watchdog")
        assert 0 < len(found) < total
        await until_shown(pilot, f"Known failures: {len(found)} of {total}")
        await pilot.press("down")
        assert app.screen.query_one("#known").has_focus
        if len(found) > 1:
            await pilot.press("down")
            assert found[1].id in shown(app, "#detail").splitlines()[0]
        await pilot.press("enter")
        assert app.screen.query_one("#detail-box").has_focus
        detail = shown(app, "#detail")
        for said in ("It reads like this", "Cause", "What to do", "Sources"):
            assert said in detail
        await pilot.press("c")
        assert app.clipboard == detail.strip()
        await pilot.press("escape", "escape")
        await until_shown(pilot, "Findings")
        assert_layout_holds(app)


async def test_a_search_without_hits_says_so(tmp_path: Path) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_troubleshoot(pilot)
        await pilot.press("slash", "slash")  # the second is a character of the search
        app.screen.query_one("#words", Input).value += "zzqq[bold]"
        await until_shown(pilot, "No known failure has these words.")
        await pilot.press("down", "enter", "c", "d", "escape", "escape")
        assert app.is_running


async def test_every_known_failure_can_be_shown(tmp_path: Path) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_troubleshoot(pilot)
        screen.action_search()
        known = screen.query_one("#known", KeyedList)
        for one in load_signatures():
            known.go_to(one.id)
            assert screen._detail().plain.startswith(one.id)


def test_the_search_looks_into_every_text() -> None:
    signatures = load_signatures()
    (oom,) = [one for one in signatures if one.id == "cuda-oom"]
    for words in ("cuda-oom", "memory cuda", "HALVE micro", "tried to allocate", ""):
        assert oom in search(signatures, words), words
    assert search(signatures, "cuda-oom zzqq") == []


async def test_d_opens_the_fix_of_the_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixable = next(one for one in load_signatures() if one.doctor_fix and one.role == "root")
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_troubleshoot(pilot)
        screen.action_search()
        screen.query_one("#known", KeyedList).go_to(fixable.id)
        assert f"llm-wizard doctor --fix {fixable.doctor_fix}" in screen._detail().plain
        screen.query_one("#known").focus()
        stand_in(monkeypatch, "print('# ' + ' '.join(sys.argv[1:]))\nprint('pip install x')")
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, FixScreen))
        await until_shown(pilot, "pip install x")
        assert "[6 Troubleshoot]" in screen_text(app), "the mode bar shows where Escape leads"
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is screen)


async def test_d_opens_the_check_of_the_doctor_where_there_is_no_fix(tmp_path: Path) -> None:
    checkable = next(one for one in load_signatures() if one.check and not one.doctor_fix)
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_troubleshoot(pilot)
        screen.action_search()
        screen.query_one("#known", KeyedList).go_to(checkable.id)
        screen.query_one("#known").focus()
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, DoctorScreen))
        await until(
            pilot, lambda: (app.screen.query_one("#checks", KeyedList).key or "").startswith(f"{checkable.check}#"), 60
        )


def test_a_document_that_is_none_is_refused() -> None:
    for document in (None, [], {}, {"verdict": 3}):
        assert read_diagnosis(document) is None
    diagnosis = read_diagnosis({"verdict": "unknown", "findings": [3, {"id": "x"}], "excerpt": 5})
    assert diagnosis is not None
    assert diagnosis.state == "unknown"
    assert [one.id for one in diagnosis.evidence] == ["x"]
