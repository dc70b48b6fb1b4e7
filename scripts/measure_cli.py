"""Wall time of `llm-wizard --help` and `plan quickstart`, beside an empty Python; medians of 10.

python scripts/measure_cli.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

WIZARD = str(Path(sys.executable).parent / "llm-wizard")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "llm-wizard --help": [WIZARD, "--help"],
    "llm-wizard plan quickstart": [WIZARD, "plan", "quickstart"],
}


def seconds(argv: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    for name, argv in COMMANDS.items():
        times = [seconds(argv) for _ in range(10)]
        print(f"{name:<28} median {statistics.median(times) * 1000:5.0f} ms   worst {max(times) * 1000:5.0f} ms")
