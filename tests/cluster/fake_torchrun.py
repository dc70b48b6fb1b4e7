"""Stands for torchrun, which takes seconds to start: python fake_torchrun.py FOLDER FIRST_RANK COUNT SCRIPT.

The same behaviour where it matters: a rank is a process with RANK set; when one fails, the others get SIGTERM and it exits with 1;
SIGTERM is passed on. SCRIPT is the ranks' program; FOLDER/rank-N.pid tells the test their pids.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PRELUDE = """
import faulthandler, os, signal, subprocess, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), int(os.environ['RANK'])
def save(*_):
    (folder / f'saved-{rank}').write_text('')
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
(folder / f'rank-{rank}.new').write_text(str(os.getpid()))
os.rename(folder / f'rank-{rank}.new', folder / f'rank-{rank}.pid')
"""


def end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)


def main(folder: Path, first: int, count: int, script: str) -> int:
    (folder / f"launcher-{first}.pid").write_text(str(os.getpid()))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PRELUDE + script, str(folder)],
            env={**os.environ, "RANK": str(first + index)},
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        for index in range(count)
    ]

    def pass_on(number: int, _frame: object) -> None:
        for rank in ranks:
            rank.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    while True:
        codes = [rank.poll() for rank in ranks]
        if all(code == 0 for code in codes):
            return 0
        if any(codes):
            pass_on(signal.SIGTERM, None)
            for rank in ranks:
                rank.wait()
            return 1
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
