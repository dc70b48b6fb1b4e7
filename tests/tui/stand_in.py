"""A small program in place of `llm-wizard`, for a verb that has to hang, lie or die."""

from __future__ import annotations

import textwrap

import pytest

import tui.verb


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """A Python program in place of `llm-wizard`; sys.argv[1:] is what it was called with."""
    monkeypatch.setattr(tui.verb, "START", "import sys; sys.argv.pop(1)\n" + textwrap.dedent(program))
