"""The Run screen under load, in a pty: python tests/bench/screen_load.py [--minutes N] [--size 160x48] [--nodes 128] [--lines 50000]

A run directory is fed by processes of its own: samples of 128 nodes with 8 GPUs at 0.5 Hz through the collector's own writer, a
log growing by 50,000 lines a second, ten records of metrics a second. The real application shows it. Keys are pressed about twice
a second; the time from a key to the repaint runs from the write into the pty to the moment when the words that this key
brings to the screen have come out of it. Prints the 95th percentile, the share of one core and the memory of the application.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import select
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path[:0] = [str(Path(__file__).parents[1] / "tui"), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from sample_runs import alive, node_sample, running_run  # noqa: E402
from screen_in_pty import REPOSITORY, SEQUENCE, TERMINAL, start_in_pty  # noqa: E402

from core.cluster.sample_files import SampleFiles  # noqa: E402
from core.runs.directory import RunDirectory  # noqa: E402

GIVE_UP_S = 5.0
TABS = (b"Log scale", b"Open node", b"Pause", b"Show stage")
"""What the footer offers in each part that Tab goes to, from the stages on, at the size where all are shown."""


def write_log(path: Path, lines_per_s: int) -> None:
    """A log that grows by so many lines a second, a hundredth of them every 10 ms; it is cut when it is very long."""
    chance = random.Random(1)
    begin, written = time.perf_counter(), 0
    with path.open("a") as file:
        while os.getppid() != 1:
            due = int((time.perf_counter() - begin) * lines_per_s) - written
            if due > 0:
                file.write(
                    "".join(
                        f"[rank{number % 1024}]: step {number:,}/1,000,000  loss {chance.random():.4f}  lr 2.00e-03  grad 0.51\n"
                        for number in range(written, written + due)
                    )
                )
                file.flush()
                written += due
            if file.tell() > 4 << 30:
                file.truncate(0)
            time.sleep(0.01)


def write_nodes(run: RunDirectory, nodes: int) -> None:
    """Samples as the collector writes them: each node every 2 s, spread over the 2 s."""
    chance = random.Random(2)
    files = SampleFiles(run, print)
    seq = 0
    while os.getppid() != 1:
        began = time.perf_counter()
        for number in range(nodes):
            if number % 40 != 7 or seq < 5:  # some are lost
                files.sample(f"node-{number:03d}", sample(f"node-{number:03d}", seq, chance))
            time.sleep(max(0.0, began + 2.0 * (number + 1) / nodes - time.perf_counter()))
        seq += 1


def sample(host: str, seq: int, chance: random.Random) -> dict[str, Any]:
    """A sample as the sample runs have it, of now and with values that change."""
    one = node_sample(host, seq, time.time())
    for gpu in one["gpus"]:
        gpu |= {
            "util": chance.randint(60, 100),
            "memory_used": chance.randint(60, 70) << 30,
            "temperature": chance.randint(55, 80),
            "power": chance.uniform(500, 700),
        }
    return one | {"cpu": chance.uniform(30, 60), "load": 30.0, "net_rx": 1.5e9, "net_tx": 1.2e9}


def write_metrics(path: Path) -> None:
    """Ten records a second."""
    chance = random.Random(3)
    step = 641
    with path.open("a") as file:
        while os.getppid() != 1:
            record = {
                "time": time.time(),
                "total": 10**6,
                "step": step,
                "tokens": step * 1024,
                "loss": 2 + chance.random(),
                "lr": 1e-3,
            }
            record |= {
                "grad_norm": chance.random(),
                "tokens_per_s": 15_000 + chance.random(),
                "mfu": 0.4,
                "step_ms": 68.0,
            }
            file.write(json.dumps(record) + "\n")
            file.flush()
            step += 1
            time.sleep(0.1)


class Terminal:
    """The application in a pty. What it prints is always taken out at once, so that it never waits for us."""

    def __init__(self, runs_dir: Path, columns: int, rows: int) -> None:
        environment = {**os.environ, **TERMINAL, "PYTHONPATH": str(REPOSITORY)}
        argv = [sys.executable, "-m", "tui.main", "--runs-dir", str(runs_dir)]
        self.pid, self.descriptor = start_in_pty(argv, environment, columns, rows)
        self.printed = 0
        self.last = b""

    def read(self, seconds: float) -> bytes:
        """What comes within the time; returns as soon as something has."""
        if not select.select([self.descriptor], [], [], seconds)[0]:
            return b""
        try:
            data = os.read(self.descriptor, 1 << 18)
        except OSError:
            raise SystemExit(f"the application ended; it printed last {self.last!r}") from None
        self.printed += len(data)
        self.last = (self.last + data)[-4000:]
        return data

    def drain(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            self.read(left)

    def press(self, key: bytes, words: bytes) -> float | None:
        """Seconds from the key to the words; None when they do not come."""
        seen = b""
        begin = time.perf_counter()
        os.write(self.descriptor, key)
        while time.perf_counter() - begin < GIVE_UP_S:
            seen += self.read(0.5)
            if words in SEQUENCE.sub(b"", seen):
                return time.perf_counter() - begin
        return None


def keys(everything: bool) -> list[tuple[bytes, bytes]]:
    """(key, the words that it brings), over and over."""
    if not everything:
        return [(b"l", b"[l Log]"), (b" ", b"paused"), (b" ", b"following"), (b"g", b"[g GPUs]"), (b"c", b"[c Curves]")]
    # Into the log by its key, hold it and follow it, and round all parts with Tab.
    return [
        (b"l", b"Pause"), (b" ", b"paused"), (b" ", b"following"),
        (b"\t", b"Show stage"), (b"\t", b"Stop"), (b"c", b"Log scale"), (b"y", b"log scale"), (b"y", b"checkpoint"),
        (b"\t", b"Open node"), (b"\t", b"Pause"), (b"c", b"Log scale"), (b"g", b"Open node"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=11.0)
    parser.add_argument("--size", default="160x48")
    parser.add_argument("--nodes", type=int, default=128)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument(
        "--nice", type=int, default=0, help="of the application; -10 (root) leaves out a machine's other load"
    )
    options = parser.parse_args()
    columns, rows = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder, alive(running_run(Path(folder, "runs"))) as run:
        for path in run.nodes.iterdir():
            path.unlink()
        feeders = [
            multiprocessing.Process(target=write_log, args=(run.log("pretrain"), options.lines)),
            multiprocessing.Process(target=write_nodes, args=(run, options.nodes)),
            multiprocessing.Process(target=write_metrics, args=(run.metrics("pretrain"),)),
        ]
        for feeder in feeders:
            feeder.start()
        terminal = Terminal(run.root.parent, columns, rows)
        os.setpriority(os.PRIO_PROCESS, terminal.pid, options.nice)
        try:
            measure(terminal, options.minutes * 60, keys(columns >= 110 and rows >= 34))
        finally:
            os.kill(terminal.pid, signal.SIGKILL)
            os.waitpid(terminal.pid, 0)
            for feeder in feeders:
                feeder.kill()
                feeder.join()


def measure(terminal: Terminal, seconds: float, presses: list[tuple[bytes, bytes]]) -> None:
    chance = random.Random(4)
    terminal.drain(2.0)
    terminal.press(b"5", b"EMA")
    terminal.drain(3.0)
    process = psutil.Process(terminal.pid)
    begin, cpu, printed = time.perf_counter(), sum(process.cpu_times()[:2]), terminal.printed
    times: list[float] = []
    missed: list[bytes] = []
    memory: list[tuple[float, float]] = []
    place = 0
    while (passed := time.perf_counter() - begin) < seconds:
        key, words = presses[place % len(presses)]
        place += 1
        took = terminal.press(key, words)
        if took is None:
            missed.append(words)
        else:
            times.append(took)
        if not memory or passed - memory[-1][0] > 10:
            memory.append((passed, process.memory_info().rss / 1e6))
        terminal.drain(chance.uniform(0.3, 0.7))
    passed = time.perf_counter() - begin
    share = (sum(process.cpu_times()[:2]) - cpu) / passed
    times.sort()
    at = [f"{minute:.0f} min {rss:.0f} MB" for minute, rss in memory_by_minute(memory)]
    p95 = times[int(0.95 * (len(times) - 1))]
    print(f"keys            {len(times) + len(missed)}, of which {len(missed)} without an answer {sorted(set(missed))}")
    print(
        f"key to repaint  median {1000 * statistics.median(times):.0f} ms  p95 {1000 * p95:.0f} ms  worst {1000 * times[-1]:.0f} ms"
    )
    print(f"share of a core {share:.1%} over {passed / 60:.1f} min")
    print(f"output          {(terminal.printed - printed) / passed / 1000:.1f} kB/s")
    print(f"memory          {', '.join(at)}")
    print(
        f"load average    {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores (this machine is shared: times are the worst case)"
    )


def memory_by_minute(memory: list[tuple[float, float]]) -> list[tuple[float, float]]:
    kept: list[tuple[float, float]] = []
    for seconds, rss in memory:
        if not kept or seconds / 60 - kept[-1][0] >= 0.95:
            kept.append((seconds / 60, rss))
    return [*kept, (memory[-1][0] / 60, memory[-1][1])]


if __name__ == "__main__":
    main()
