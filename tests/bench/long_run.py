"""A run of 2,000,000 steps on the Run screen, in a pty: python tests/bench/long_run.py [--steps N] [--size 80x24]

Writes metrics.jsonl with a record a step (about 470 MB) and a validation every 1,000 into a temporary folder, opens it in the real
application, zooms in and pans. Prints the time from the key to the drawn curve, and from a zoom or pan key to the next repaint.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

import orjson
import psutil
from screen_load import Terminal, alive, running_run


def write_metrics(path: Path, steps: int) -> None:
    chance = random.Random(1)
    begin = time.time() - steps / 2
    with path.open("wb", buffering=1 << 20) as file:
        for step in range(1, steps + 1):
            record = {
                "time": begin + step / 2,
                "total": steps,
                "step": step,
                "tokens": step * 4096,
                "loss": 2 + 8 / (1 + step / 2000) ** 0.5 + chance.gauss(0, 0.05),
                "lr": 1e-3 * (1 - step / steps),
                "grad_norm": abs(chance.gauss(0.5, 0.1)),
                "tokens_per_s": 80_000 + chance.gauss(0, 800),
                "mfu": 0.41 + chance.gauss(0, 0.01),
                "step_ms": 51.2,
                "attempt": 1,
            }
            if step % 1000 == 0:
                record |= {"val_loss": record["loss"] + 0.05, "val_bits_per_byte": 1.1}
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def next_repaint(terminal: Terminal, key: bytes) -> float:
    """Seconds from a key to the first output after it; what was still coming is taken out before."""
    while terminal.read(0.15):
        pass
    begin = time.perf_counter()
    os.write(terminal.descriptor, key)
    while not terminal.read(5.0):
        pass
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2_000_000)
    parser.add_argument("--size", default="80x24")
    options = parser.parse_args()
    columns, rows = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder, alive(running_run(Path(folder, "runs"))) as run:
        write_metrics(run.metrics("pretrain"), options.steps)
        size = run.metrics("pretrain").stat().st_size
        terminal = Terminal(run.root.parent, columns, rows)
        try:
            terminal.drain(3.0)
            process = psutil.Process(terminal.pid)
            opened = terminal.press(b"5", b"EMA")
            terminal.drain(4.0)
            terminal.press(b"c", b"Log scale")
            presses = [b"+"] * 8 + [b"<"] * 15 + [b"+"] * 6 + [b"<", b">"] * 10 + [b"-"] * 6 + [b">"] * 10
            times = sorted(next_repaint(terminal, key) for key in presses)
            memory = process.memory_info().rss / 1e6
        finally:
            os.kill(terminal.pid, signal.SIGKILL)
            os.waitpid(terminal.pid, 0)
    assert opened is not None
    print(f"file            {options.steps:,} steps, {size / 1e6:.0f} MB")
    print(
        f"opened          {opened:.2f} s from the key to the drawn curve, the import of numpy and textual-plot included"
    )
    worst, p95 = times[-1], times[int(0.95 * (len(times) - 1))]
    median = statistics.median(times)
    print(
        f"zoom and pan    {len(times)} keys: median {1000 * median:.0f} ms  p95 {1000 * p95:.0f} ms  worst {1000 * worst:.0f} ms"
    )
    print(f"memory          {memory:.0f} MB")


if __name__ == "__main__":
    main()
