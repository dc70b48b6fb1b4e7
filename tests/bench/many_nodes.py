"""What 128 nodes cost the supervisor: a real one, with a real agent a node as a process here, each with eight (fake) GPUs.

    python tests/bench/many_nodes.py [--seconds 300] [--nodes 128]

The agents are what each node would run itself, so their cost is not the head's; it is printed by itself. What is not here: ssh, of
which the head has one process a node. CPU is the supervisor's own, from the kernel's accounting, after all agents are heard of.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT)]

import orjson  # noqa: E402
import psutil  # noqa: E402

from core.cluster.collector import PERIOD_S, collector_of  # noqa: E402
from core.cluster.reach import LocalReach  # noqa: E402
from core.cluster.samples import NodeSamples  # noqa: E402
from core.facts import gather_facts  # noqa: E402
from core.files import read_json, write_json  # noqa: E402
from core.plan import make_plan  # noqa: E402
from core.preset import Preset  # noqa: E402
from core.runs import requests  # noqa: E402
from core.runs.create import fill, reserve  # noqa: E402
from core.runs.directory import RunDirectory  # noqa: E402
from core.runs.supervisor import Supervisor  # noqa: E402

GPUS = 8
FAKE_NVML = ROOT / "tests" / "cluster" / "fake_nvml.c"


def fake_gpus(folder: Path) -> None:
    """From here on every process that is started finds eight GPUs at work."""
    folder.mkdir()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", FAKE_NVML], check=True)
    (folder / "gpus").write_text(
        "".join(f"{90 + i} {60000 + i} 81920 {55 + i} 480 700 1980 0 0 0 0\n" for i in range(GPUS))
    )
    os.environ |= {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML_FILE": str(folder / "gpus")}


def run_that_sleeps(folder: Path) -> RunDirectory:
    run = reserve(folder, "many")
    preset = Preset.model_validate({"corpus": {"script": "x.py"}})
    fill(run, make_plan(preset, "x", gather_facts(folder, None, []), run))
    document = read_json(run.plan)
    for number, stage in enumerate(document["stages"]):
        stage |= {"skip": "not here" if number else "", "inputs": {}, "outputs": {}, "settings": {"always": True}}
        stage["argv"] = ["sleep", "3600"]
    write_json(run.plan, document)
    return run


def supervise(root: Path, names: list[str]) -> None:
    """The supervisor as it is, but that its nodes are reached on this machine."""
    run = RunDirectory(root)
    supervisor = Supervisor(run)
    supervisor.collector = collector_of(run, supervisor.event, names, LocalReach())
    supervisor.carry_out()


def cpu_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def count_samples(run: RunDirectory, names: list[str]) -> tuple[list[int], list[str], list[float]]:
    """Of each node how many samples are on disk, what is missing in words, and how old all were when they arrived, ms."""
    counts, missing, delays = [], [], []
    for name in names:
        seqs: dict[int, list[int]] = {}
        for path in (run.nodes / f"{name}.1.jsonl", run.nodes / f"{name}.jsonl"):
            for line in path.read_bytes().splitlines() if path.exists() else ():
                document = orjson.loads(line)
                if "seq" not in document:
                    missing.append(f"{name}: {document['error']}")
                    continue
                seqs.setdefault(document["restarts"], []).append(document["seq"])
                delays.append(-1000 * document["clock_ahead"])
        counts.append(sum(map(len, seqs.values())))
        for restarts, found in seqs.items():
            if lost := sorted(set(range(found[-1] + 1)) - set(found)):
                missing.append(f"{name}, agent {restarts}: no sample {lost}")
    return counts, missing, delays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--nodes", type=int, default=128)
    options = parser.parse_args()
    names = [f"node{number:03d}" for number in range(1, options.nodes + 1)]
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), names, options.seconds)
    print(f"(Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end)")


def measure(folder: Path, names: list[str], seconds: float) -> None:
    fake_gpus(folder / "nvml")
    run = run_that_sleeps(folder / "runs")
    child = multiprocessing.get_context("spawn").Process(target=supervise, args=(run.root, names))
    began = time.monotonic()
    child.start()
    assert child.pid
    supervisor = psutil.Process(child.pid)
    samples = NodeSamples(run)
    while len(views := [view for view in samples.look(time.time()) if view.sample]) < len(names):
        assert time.monotonic() - began < 300, f"{len(views)} of {len(names)} nodes after 300 s"
        time.sleep(0.2)
    print(
        f"{len(names)} agents started and heard of after {time.monotonic() - began:.1f} s, at most ten starting at once"
    )
    agents = [process for process in supervisor.children() if "llm-wizard-agent" in " ".join(process.cmdline())]
    assert len(agents) == len(names)
    largest = 0
    before, agents_before, began = cpu_seconds([supervisor]), cpu_seconds(agents), time.monotonic()
    while time.monotonic() - began < seconds:
        time.sleep(1)
        largest = max(largest, supervisor.memory_info().rss)
    wall = time.monotonic() - began
    cpu, agents_cpu = cpu_seconds([supervisor]) - before, cpu_seconds(agents) - agents_before
    views = samples.look(time.time())
    assert all(view.sample and len(view.sample["gpus"]) == GPUS for view in views)
    requests.ask(run, requests.STOP)
    child.join(60)
    assert child.exitcode == 0
    counts, missing, delays = count_samples(run, names)
    size = sum(path.stat().st_size for path in run.nodes.iterdir())
    delays.sort()
    print(f"supervisor: {100 * cpu / wall:.1f} % of one core over {wall:.0f} s, at most {largest / 2**20:.0f} MiB")
    print(f"all {len(names)} agents together: {100 * agents_cpu / wall:.0f} % of one core")
    print(
        f"on disk: {sum(counts)} samples, {min(counts)} to {max(counts)} a node ({wall / PERIOD_S:.0f} periods), "
        f"{size / 2**20:.1f} MiB; written {statistics.median(delays):.0f} ms after they were taken (p50), "
        f"{delays[int(0.95 * len(delays))]:.0f} ms (p95)"
    )
    print("\n".join(missing) or "no sample is missing, no agent was started again")
    states: dict[str, Any] = {state: sum(view.status == state for view in views) for state in ("ok", "stale", "lost")}
    left = [process for process in agents if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    print(f"at the end {states}; agents left behind: {len(left)}")


if __name__ == "__main__":
    main()
