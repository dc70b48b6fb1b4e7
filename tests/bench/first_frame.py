"""First frame of `llm-wizard` beside that of Textual's smallest app, in one run: python tests/bench/first_frame.py [N]

Each is started N times (10) in a pty of 80x24, alternating; the time runs from the start of the process to the moment when the
text of its first frame has come out of the pty. Prints medians, their ratio, and whether torch was imported.
"""

from __future__ import annotations

import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from screen_in_pty import SEQUENCE, TERMINAL, start_in_pty

SMALLEST = """
from textual.app import App
from textual.widgets import Static

class Smallest(App):
    def compose(self):
        yield Static("first frame")

Smallest().run()
"""
TIMEOUT_S = 30.0


def first_frame(argv: list[str], text: bytes, folder: str) -> float:
    """Seconds until `text` has come out of the pty, escape sequences left out."""
    environment = {**os.environ, **TERMINAL}
    environment.pop("LLM_WIZARD_RUNS_DIR", None)
    begin = time.perf_counter()
    pid, terminal = start_in_pty(argv, environment, 80, 24, Path(folder))
    seen = b""
    try:
        while text not in SEQUENCE.sub(b"", seen):
            if time.perf_counter() - begin > TIMEOUT_S:
                raise SystemExit(f"no first frame of {argv} within {TIMEOUT_S:.0f} s; it printed {seen[-500:]!r}")
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 1 << 16)
        return time.perf_counter() - begin
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def main(times: int) -> None:
    wizard = str(Path(sys.executable).with_name("llm-wizard"))
    with tempfile.TemporaryDirectory() as folder:
        smallest = Path(folder, "smallest.py")
        smallest.write_text(SMALLEST)
        for warm in (True, False):  # the first of each fills the disk cache and the .pyc files
            ours, theirs = [], []
            for _ in range(1 if warm else times):
                theirs.append(first_frame([sys.executable, str(smallest)], b"first frame", folder))
                ours.append(first_frame([wizard], b"1 Home", folder))
        imported = subprocess.run(
            [sys.executable, "-c", "import sys, tui.app, tui.screens.home; print('torch' in sys.modules)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    print(f"Textual's smallest app  median {statistics.median(theirs):.3f} s  ({min(theirs):.3f} to {max(theirs):.3f})")
    print(f"llm-wizard              median {statistics.median(ours):.3f} s  ({min(ours):.3f} to {max(ours):.3f})")
    print(f"ratio                   {statistics.median(ours) / statistics.median(theirs):.2f}")
    print(f"torch imported          {imported}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
