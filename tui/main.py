"""`llm-wizard`: the command line, with the screen and the prompts for what only they can do.

core must work without a screen, so its command line is given these two as functions; both import what they need when
they are called, because `llm-wizard --help` must answer at once.
"""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    from core.cli import main as command_line

    return command_line(argv, screen=_screen, prompts=_prompts)


def _screen(options: argparse.Namespace) -> int:
    from tui.start import start

    return start(options)


def _prompts(options: argparse.Namespace) -> int:
    from tui.prompts import init

    return init(options)


if __name__ == "__main__":
    sys.exit(main())
