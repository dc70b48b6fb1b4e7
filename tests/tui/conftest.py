"""What tests of several screens share.

Async tests run under anyio's own pytest plugin (`pytestmark = pytest.mark.anyio`), which huggingface_hub brings anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.runs.directory import RunDirectory

from .sample_runs import alive, running_run


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    """A run in the middle of its pretraining; its supervisor lives."""
    with alive(running_run(tmp_path / "runs")) as run:
        yield run


@pytest.fixture
def fast_run_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often, so that tests wait less."""
    monkeypatch.setattr("tui.screens.run.RUN_S", 0.15)
    monkeypatch.setattr("tui.screens.run.LOG_S", 0.1)
