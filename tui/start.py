"""Which face a bare `llm-wizard` shows."""

from __future__ import annotations

import argparse


def start(options: argparse.Namespace) -> int:
    from tui.app import WizardApp

    return WizardApp(options.runs_dir).run(mouse=not options.no_mouse) or 0
