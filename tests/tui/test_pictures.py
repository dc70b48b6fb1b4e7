"""A picture of every screen at two sizes in both languages. After a wanted change: pytest tests/tui/test_pictures.py --snapshot-update

Times, the machine and the doctor's answers are fixed; the runs lie at a fixed place, because their paths are on the screens.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from screen_text import until, until_shown

import core.facts
import core.preset_source
import core.stages.environment
import tui.screens.doctor
from core.language import set_language
from tui.app import WizardApp
from tui.draft import Draft
from tui.screens.fix import FixScreen
from tui.screens.node import NodeScreen

from .sample_runs import FACTS, NOW, alive, failed_run, running_run
from .stand_in import stand_in
from .test_doctor_screen import check, finding, saying

RUNS = Path(tempfile.gettempdir()) / "llm-wizard-pictures" / "runs"
SIZES = {"80x24": (80, 24), "160x48": (160, 48)}
FIX = {"id": "python.pins", "risk": "safe", "preview": ["python -m pip install 'torch>=2.6'"], "runnable": True}
PREVIEW = """
if "--fix" in sys.argv:
    print("# 1/1 python.pins (safe): install the Python packages")
    print("python -m pip install 'torch>=2.6'")
    sys.exit(0)
"""
DOCTOR = PREVIEW + saying(
    check("python.env", title="the training Python"),
    check("python.pins", title="the Python packages"),
    check("gpu.ecc", "gpu", "memory errors"),
    check("limits", "limits", "open files, shared memory and memory"),
    finding("python.env", summary="Python 3.11.7"),
    finding(
        "python.pins",
        "fail",
        summary="not installed: torch",
        expected="torch>=2.6",
        found="torch absent",
        why="torch: pretrain, convert",
        fix=FIX,
    ),
    finding("gpu.ecc", "skip", summary="no NVIDIA GPU on this machine"),
    finding("limits", "warn", summary="1024 open files", expected="4096 open files", found="1024"),
    {"kind": "report", "status": "fail", "stages": {"data": [], "pretrain": ["python.pins"]}},
)

Show = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def fixed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same machine, time and place for every picture."""
    shutil.rmtree(RUNS.parent, ignore_errors=True)
    RUNS.mkdir(parents=True)
    presets = shutil.copytree(
        core.preset_source.SHIPPED, RUNS.parent / "presets"
    )  # the screens name the preset's script
    monkeypatch.setattr(core.preset_source, "SHIPPED", presets)
    monkeypatch.chdir(RUNS.parent)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: NOW)
    monkeypatch.setattr(core.facts, "gather_facts", lambda *_: FACTS)
    monkeypatch.setattr(core.stages.environment, "sys", SimpleNamespace(executable=FACTS.python))  # of our own Python
    monkeypatch.setattr(tui.screens.doctor, "time", SimpleNamespace(monotonic=lambda: 0.0))  # "2.0 s" of checks
    yield
    set_language("en")
    shutil.rmtree(RUNS.parent, ignore_errors=True)


async def settled(pilot: Any) -> None:
    await pilot.app.workers.wait_for_complete()
    await pilot.pause(0.3)


async def home(pilot: Any) -> None:
    await until_shown(pilot, "quickstart")
    await settled(pilot)


async def setup(pilot: Any) -> None:
    pilot.app.open_draft(Draft.from_preset("quickstart"))
    await settled(pilot)


async def plan(pilot: Any) -> None:
    pilot.app.open_draft(Draft.from_preset("quickstart"), "plan")
    await settled(pilot)


async def doctor(pilot: Any) -> None:
    await pilot.press("2")
    await until_shown(pilot, "1024")
    await until(pilot, lambda: str(pilot.app.screen.query_one("#readiness").visual) != "")  # type: ignore[attr-defined]
    await settled(pilot)


async def run(pilot: Any) -> None:
    await pilot.press("5")
    await until_shown(pilot, "640")
    await pilot.pause(1.5)


async def node(pilot: Any) -> None:
    await run(pilot)
    pilot.app.push_screen(NodeScreen(pilot.app.watched, "node-001"))
    await until_shown(pilot, "5000")
    await settled(pilot)


async def fix(pilot: Any) -> None:
    await doctor(pilot)
    await pilot.press("f")
    await until(pilot, lambda: isinstance(pilot.app.screen, FixScreen))
    await settled(pilot)


async def keys(pilot: Any) -> None:
    await home(pilot)
    await pilot.press("question_mark")
    await pilot.pause(0.5)


async def troubleshoot(pilot: Any) -> None:
    await pilot.press("6")
    await until_shown(pilot, "CUDA out of memory")
    await settled(pilot)


SCREENS: dict[str, Show] = {
    "home": home,
    "setup": setup,
    "plan": plan,
    "doctor": doctor,
    "fix": fix,
    "run": run,
    "node": node,
    "keys": keys,
    "troubleshoot": troubleshoot,
}


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("screen", SCREENS)
def test_picture(snap_compare: Any, monkeypatch: pytest.MonkeyPatch, screen: str, size: str, language: str) -> None:
    failed = failed_run(RUNS)
    running = running_run(RUNS)
    if screen in ("doctor", "fix", "setup"):
        stand_in(monkeypatch, DOCTOR)
    set_language(language)
    app = WizardApp(RUNS)
    app.watched = failed if screen == "troubleshoot" else running
    with ExitStack() as stack:
        stack.enter_context(alive(running))
        assert snap_compare(app, terminal_size=SIZES[size], run_before=SCREENS[screen])
