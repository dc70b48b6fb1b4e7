"""Where the doctor keeps what outlives it: logs of fixes, what the user has accepted, and an ssh configuration of its own."""

from __future__ import annotations

import os
from pathlib import Path

ELSEWHERE = "set LLM_WIZARD_HOME to a folder that you may write to: it is kept there then"


def user_home() -> Path:
    """The user's home; / where there is none (no HOME, and a user without an entry, as in containers)."""
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.expanduser raises without one)
    return Path(home if home.startswith("/") else "/")


def _folder(name: str) -> Path:
    return Path(os.environ.get("LLM_WIZARD_HOME") or user_home() / name / "llm-wizard").absolute()


def fixes_folder() -> Path:
    """Logs of fixes: under $LLM_WIZARD_HOME, else in the user's cache."""
    return _folder(".cache") / "fixes"


def accepted_file() -> Path:
    """What was accepted: under $LLM_WIZARD_HOME, else in the user's configuration."""
    return _folder(".config") / "accepted.json"


def ssh_config() -> Path:
    """The doctor's own ssh configuration, which need not exist; its known_hosts lies beside it."""
    return _folder(".config") / "ssh" / "config"
