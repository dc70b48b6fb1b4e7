"""Shared fixtures: a run directory of a small preset, and its stages run as the real processes they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.facts import gather_facts
from core.plan import make_plan
from core.preset import Preset
from core.runs.create import fill, reserve
from core.runs.directory import RunDirectory


def pytest_configure() -> None:
    """A shell's background and pytest-xdist's workers ignore SIGINT, and whatever they start would then ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


MakeRun = Callable[..., RunDirectory]
RunStage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(preset_dict, name="r")`: a complete run directory, nothing started."""

    def make(preset: dict[str, object], name: str = "r") -> RunDirectory:
        checked = Preset.model_validate(preset)
        run = reserve(tmp_path / "runs", name)
        fill(run, make_plan(checked, "test", gather_facts(tmp_path, None, []), run))
        return run

    return make


@pytest.fixture
def run_stage() -> RunStage:
    """`run_stage(run, "tokenizer")`: the stage's planned command in its planned environment; output in .stdout."""

    def start(run: RunDirectory, stage_id: str, timeout: float = 600, **env: str) -> subprocess.CompletedProcess[str]:
        from core.files import read_json

        plan = next(stage for stage in read_json(run.plan)["stages"] if stage["id"] == stage_id)
        return subprocess.run(
            plan["argv"],
            env={**os.environ, **plan["env"], **env},
            cwd=plan["cwd"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    return start


def wizard(*argv: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`llm-wizard ARGV` as a user's shell would run it, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "core.cli", *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
