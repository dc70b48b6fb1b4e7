"""What watching costs: the local agent and the supervisor's thread beside a real run; writing and reading 128 nodes x 8 GPUs.

    python tests/bench/node_samples.py [--seconds 60] [--nodes 128]

Prints one line a figure. CPU is in percent of one core, from the kernel's own accounting.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT)]

import orjson  # noqa: E402
import psutil  # noqa: E402

from core.cluster.agent_sample import read_sample  # noqa: E402
from core.cluster.sample_files import SampleFiles  # noqa: E402
from core.cluster.samples import NodeSamples  # noqa: E402
from core.facts import gather_facts  # noqa: E402
from core.files import read_json, write_json  # noqa: E402
from core.plan import make_plan  # noqa: E402
from core.preset import Preset  # noqa: E402
from core.runs import requests  # noqa: E402
from core.runs.create import fill, reserve  # noqa: E402
from core.runs.directory import RunDirectory  # noqa: E402
from core.runs.lock import lock_owner  # noqa: E402
from core.runs.start import start_supervisor  # noqa: E402

PERIOD_S = 2.0
GPUS = 8


def local_stream(folder: Path, seconds: float) -> None:
    """A run whose only stage sleeps; the supervisor's threads and its agent are measured once they are settled."""
    run = reserve(folder, "watched")
    fill(
        run, make_plan(Preset.model_validate({"corpus": {"script": "x.py"}}), "x", gather_facts(folder, None, []), run)
    )
    document = read_json(run.plan)
    for number, stage in enumerate(document["stages"]):
        stage |= {"skip": "not here" if number else "", "inputs": {}, "outputs": {}, "settings": {"always": True}}
        stage["argv"] = ["sleep", "3600"]
    write_json(run.plan, document)
    start_supervisor(run)
    owner = lock_owner(run)
    assert owner
    supervisor = psutil.Process(owner["pid"])
    time.sleep(5)
    (agent,) = [child for child in supervisor.children() if "llm-wizard-agent" in " ".join(child.cmdline())]

    def spent() -> tuple[float, float, float]:
        threads = {thread.id: seconds_on_cpu(supervisor.pid, thread.id) for thread in supervisor.threads()}
        own = threads.pop(supervisor.pid)
        return own, sum(threads.values()), sum(seconds_on_cpu(agent.pid, thread.id) for thread in agent.threads())

    before, began = spent(), time.monotonic()
    time.sleep(seconds)
    after, wall = spent(), time.monotonic() - began
    for name, a, b in zip(("supervisor's own thread", "collector's thread", "agent"), before, after, strict=True):
        print(f"local stream: {name} {100 * (b - a) / wall:.2f} % of one core")
    print(
        f"local stream: agent {agent.memory_info().rss / 2**20:.1f} MiB, supervisor {supervisor.memory_info().rss / 2**20:.1f} MiB"
    )
    requests.ask(run, requests.STOP)
    while lock_owner(run):
        time.sleep(0.1)
    print(f"local stream: agent left behind: {agent.is_running()}")


def seconds_on_cpu(process: int, thread: int) -> float:
    """By the scheduler, in ns: the clock ticks of /proc/PID/stat miss what is shorter than a tick."""
    return int(Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()[0]) / 1e9


def node_sample(number: int, seq: int) -> dict[str, Any]:
    gpu = {
        **{"name": "NVIDIA H100 80GB HBM3", "util": 97, "memory_used": 72_000_000_000, "memory_total": 85_520_809_984},
        **{"temperature": 60 + seq % 9, "power": 612.3, "power_limit": 700.0, "clock": 1980},
    }
    process = {"pid": 1, "cpu": 99.5, "rss": 1 << 33, "gpu_memory": 1 << 36, "name": "stage.py pretrain"}
    slow = {
        "processes": [{**process, "rank": 8 * number + i, "local_rank": i, "gpu": i} for i in range(GPUS)],
        "gpus": [{"index": i, "ecc": 0, "throttle": "", "xid": None} for i in range(GPUS)],
    }
    return {
        **{"time": time.time(), "host": f"node{number:03d}", "seq": seq, "period": PERIOD_S},
        **{"gpus": [{"index": i, **gpu} for i in range(GPUS)], "nvml": "ok", "nvml_blocked_s": 0.0},
        **{"cpu": 12.5, "cores": 208, "load": 30.1, "memory_used": 1 << 39, "memory_total": 1 << 41},
        **{"net_rx": 1_000_000, "net_tx": 1_000_000, "ib_rx": 40_000_000_000, "ib_tx": 40_000_000_000},
        **{"disk_free": 1 << 44, "disk_total": 1 << 46, "slow": slow if seq % 15 == 0 else None},
    }


def write(root: Path, nodes: int, ready: Any, spent: Any) -> None:
    """Take each node's line every two seconds, phases spread, as the collector does; report the CPU of taking alone."""
    files = SampleFiles(RunDirectory(root), print)
    seq, taken, began = 0, 0.0, time.monotonic()
    while True:
        for number in range(nodes):
            line = orjson.dumps(node_sample(number, seq))
            begin = time.process_time()
            sample = read_sample(line)
            assert sample
            files.sample(sample["host"], sample)
            taken += time.process_time() - begin
            due = began + PERIOD_S * (seq + number / nodes)
            time.sleep(max(0.0, due - time.monotonic()))
        seq += 1
        if seq == 2:
            ready.set()
        spent.value = taken / (time.monotonic() - began)


def many_nodes(folder: Path, nodes: int, seconds: float) -> None:
    ready, spent = multiprocessing.Event(), multiprocessing.Value("d", 0.0)
    writer = multiprocessing.Process(target=write, args=(folder, nodes, ready, spent), daemon=True)
    writer.start()
    ready.wait()
    for rate in (2, 10):
        reader = NodeSamples(RunDirectory(folder))
        begin = time.process_time()
        views = reader.look(time.time())
        first = time.process_time() - begin
        looks: list[float] = []
        before, began = time.process_time(), time.monotonic()
        while time.monotonic() - began < seconds:
            begin = time.perf_counter()
            views = reader.look(time.time())
            looks.append(1000 * (time.perf_counter() - begin))
            time.sleep(1 / rate)
        cpu = (time.process_time() - before) / (time.monotonic() - began)
        assert len(views) == nodes
        assert {view.status for view in views} == {"ok"}
        looks.sort()
        print(
            f"{nodes} nodes, {rate} looks/s: {100 * cpu:.2f} % of one core; a look p50 {statistics.median(looks):.2f} ms, "
            f"p95 {looks[int(0.95 * len(looks))]:.2f} ms; the first {1000 * first:.1f} ms"
        )
    print(f"{nodes} nodes: checking, writing and averaging {100 * spent.value:.2f} % of one core")
    size = sum(path.stat().st_size for path in (folder / "nodes").iterdir() if "history" not in path.name)
    lines = sum(path.read_bytes().count(b"\n") for path in (folder / "nodes").iterdir() if "history" not in path.name)
    print(
        f"a sample of {GPUS} GPUs is {size / lines:.0f} bytes; a ring holds {2 * (4 << 20) / (size / lines) * 2 / 3600:.1f} h"
    )
    writer.kill()
    writer.join()


def history(folder: Path) -> None:
    """A week of one node: the size of its files, and the time to read a page."""
    folder.mkdir()
    files = SampleFiles(RunDirectory(folder), print)
    for seq in range(7 * 24 * 60 * 6):  # one sample in 10 s: the means are what counts here
        files.sample("node000", {**node_sample(0, seq), "time": 1e9 + 10.0 * seq})
    size = os.stat(folder / "nodes" / "node000.history.jsonl").st_size
    print(f"a week of history is {size / 1e6:.1f} MB a node of {GPUS} GPUs")
    for minutes in (30, 180, 24 * 60, 7 * 24 * 60):
        begin = time.perf_counter()
        count = len(NodeSamples(RunDirectory(folder)).history("node000", minutes))
        print(f"history of {minutes} min: {count} samples in {1000 * (time.perf_counter() - begin):.1f} ms")


def long_history(folder: Path) -> None:
    """A month and a quarter of a year of one node, a sample a minute: what the files grow to, and what of the beginning is left."""
    folder.mkdir()
    files = SampleFiles(RunDirectory(folder), print)
    path = folder / "nodes" / "node000.history.jsonl"
    size, slowest = 0, 0.0
    for minute in range(90 * 24 * 60 + 1):
        begin = time.perf_counter()
        files.sample("node000", {**node_sample(0, 1), "time": 1e9 + 60.0 * minute})
        slowest = max(slowest, time.perf_counter() - begin)
        if minute in (30 * 24 * 60, 90 * 24 * 60):
            lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
            full = sum(line["period"] == 60 for line in lines) / 1440
            begins = (lines[0]["time"] - lines[0]["period"] - 1e9) / 86400
            print(
                f"{minute // 1440} days of history: {path.stat().st_size / 1e6:.1f} MB (at most {size / 1e6:.1f}) from day {begins:.1f} on, "
                f"{len(lines)} lines: the last {full:.1f} days a minute each, the first {lines[0]['period'] / 60:.0f} minutes each"
            )
        if minute % 1440 == 0 and path.exists():
            size = max(size, path.stat().st_size)
    print(f"the slowest sample, with a thinning, took {1000 * slowest:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--nodes", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        local_stream(Path(folder) / "runs", options.seconds)
        many_nodes(Path(folder), options.nodes, options.seconds / 2)
        history(Path(folder) / "week")
        long_history(Path(folder) / "months")
    print(f"(Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})")


if __name__ == "__main__":
    main()
