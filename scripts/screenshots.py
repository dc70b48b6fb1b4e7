"""The README's pictures, from real runs: python scripts/screenshots.py RUNS_DIR [RUN] [--lang en|ja]

Opens the terminal UI on the runs of RUNS_DIR (make one with `make quickstart`), walks through its modes and writes one SVG
a screen to docs/screenshots/. RUN is the run that the Run mode shows; the newest when not given.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from core.language import LANGUAGES, set_language
from core.runs.state import find_run, list_runs

FOLDER = Path(__file__).parent.parent / "docs" / "screenshots"
SIZE = (120, 36)
SETTLE_S = {"home": 2.0, "setup": 3.0, "plan": 3.0, "doctor": 8.0, "run": 4.0, "troubleshoot": 5.0}
"""Seconds until a screen has read what it shows; the doctor takes the longest."""


async def take(runs_dir: Path, name: str | None, language: str) -> None:
    from tui.app import WizardApp
    from tui.draft import Draft

    app = WizardApp(runs_dir)
    async with app.run_test(size=SIZE) as pilot:
        app.watched = find_run(name, runs_dir) if name else next(iter(list_runs(runs_dir)), None)
        app.draft = Draft.from_preset("quickstart")
        for mode, seconds in SETTLE_S.items():
            app.switch_mode(mode)
            await pilot.pause(seconds)
            suffix = "" if language == "en" else f".{language}"
            path = FOLDER / f"{mode}{suffix}.svg"
            path.write_text(app.export_screenshot(title="llm-wizard"), encoding="utf-8")
            print(path.relative_to(FOLDER.parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs_dir", type=Path)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--lang", choices=LANGUAGES, default="en")
    options = parser.parse_args()
    runs_dir = options.runs_dir.absolute()
    FOLDER.mkdir(parents=True, exist_ok=True)
    set_language(options.lang)
    os.chdir(runs_dir.parent)  # so that the pictures name `runs`, not where this machine keeps it
    asyncio.run(take(runs_dir, options.run, options.lang))


if __name__ == "__main__":
    main()
