"""Which face a bare `llm-wizard` shows: the screen, else questions line by line, else the help."""

from __future__ import annotations

import argparse
import os
import sys

from core.exit_codes import ExitCode
from tui.terminal import prepare, this_terminal


def start(options: argparse.Namespace) -> int:
    """Show the screen and return its exit code; where the terminal cannot, say why and fall back."""
    terminal = this_terminal(os.environ)
    reason = terminal.why_no_screen()
    if not reason:
        prepare(os.environ, options.ascii)
        from tui.app import WizardApp

        app = WizardApp(options.runs_dir)
        code = app.run(mouse=not options.no_mouse)
        return app.return_code or ExitCode.DONE if code is None else code
    print(reason, file=sys.stderr)
    if terminal.can_ask:
        from tui.prompts import init

        return init(options)
    options.print_help()
    return ExitCode.USAGE
