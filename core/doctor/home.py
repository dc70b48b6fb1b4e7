"""Where the doctor keeps what outlives it: logs of fixes, and what the user has accepted."""

from __future__ import annotations

import os
from pathlib import Path


def fixes_folder() -> Path:
    """Logs of fixes: under $LLM_WIZARD_HOME, else in the user's cache."""
    return Path(os.environ.get("LLM_WIZARD_HOME") or Path("~/.cache/llm-wizard").expanduser()) / "fixes"


def accepted_file() -> Path:
    """What was accepted: under $LLM_WIZARD_HOME, else in the user's configuration."""
    return Path(os.environ.get("LLM_WIZARD_HOME") or Path("~/.config/llm-wizard").expanduser()) / "accepted.json"
