"""A log as a string, diagnosed as a file would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_runs import Scripted, scripted, wait_for_end

from core.troubleshoot.diagnose import Diagnosis, diagnose

__all__ = ["DiagnoseText", "Scripted", "diagnose_text", "scripted", "wait_for_end"]

DiagnoseText = Callable[..., Diagnosis]


@pytest.fixture
def diagnose_text(tmp_path: Path) -> DiagnoseText:
    """`diagnose_text("line\\nline", exit_code=1)`."""

    def run(text: str, name: str = "train.log", **evidence: Any) -> Diagnosis:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return diagnose([path], **evidence)

    return run
