"""The user's own editor, on a text of ours: it gets the whole terminal until it ends."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textual.app import App

from core.errors import InputError

EDITORS = ("nano", "vim", "vi", "emacs")
"""Tried in this order where neither VISUAL nor EDITOR is set."""


def find_editor() -> list[str] | None:
    """The start of the editor's command line; None where there is none."""
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if named:
        try:
            return shlex.split(named)
        except ValueError:
            return [named]
    found = next((name for name in EDITORS if shutil.which(name)), None)
    return [found] if found else None


def edited(app: App[Any], editor: list[str], text: str, name: str) -> str:
    """`text` as it is when the editor has ended; `name` is that of the file it sees, which nobody else can read.

    Raises:
        InputError: the editor says by its exit code that it failed, or was told to give up (`:cq`).
        OSError: it cannot be started.
        SuspendNotSupported: the terminal cannot be handed over.
    """
    with tempfile.TemporaryDirectory(prefix="llm-wizard-") as folder:
        path = Path(folder, name)
        path.write_text(text, encoding="utf-8")
        with app.suspend(), _ctrl_c_is_the_editors():
            code = subprocess.run([*editor, str(path)], check=False).returncode
        if code:
            raise InputError(f"{editor[0]} ended with code {code}; nothing was changed")
        return path.read_bytes().decode("utf-8", "replace")


@contextmanager
def _ctrl_c_is_the_editors() -> Iterator[None]:
    """The terminal sends it to both; here it would end the screen, and with it whatever was changed.

    A handler that does nothing, not SIG_IGN, which the editor would inherit.
    """
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
