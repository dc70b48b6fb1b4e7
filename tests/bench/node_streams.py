"""What 128 nodes cost the supervisor by their starters' streams, and a starter its node: python tests/bench/node_streams.py [NODES].

Real starters, all on this machine; each stage prints a line a second. Prints one JSON document.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path[:0] = [str(Path(__file__).parents[2])]

from core.cluster.nodes_process import NodesProcess, NodeStart  # noqa: E402
from core.cluster.reach import LocalReach  # noqa: E402

SECONDS = 30.0


def main(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("ab", buffering=0) as log:
        script = "while :; do echo step; sleep 1; done"
        starts = [
            NodeStart(f"n{i}", ["/bin/sh", "-c", script], {"RANK": str(i), "PATH": os.environ["PATH"]})
            for i in range(count)
        ]
        began = time.monotonic()
        process = NodesProcess(LocalReach(), starts, folder, folder, 5, log, print, python=sys.executable)
        while os.fstat(log.fileno()).st_size < 2 * 8 * count:
            process.pump(0.2)
        up = time.monotonic() - began
        starters = [child for child in psutil.Process().children() if "llm-wizard-starter" in child.cmdline()]
        own, theirs, start = time.process_time(), _cpu(starters), time.monotonic()
        while time.monotonic() < start + SECONDS:
            process.pump(0.2)
        took = time.monotonic() - start
        result = {
            "nodes": count,
            "until_all_print_s": round(up, 1),
            "head_cpu_percent": round(100 * (time.process_time() - own) / took, 1),
            "head_memory_mib": psutil.Process().memory_info().rss >> 20,
            "starter_cpu_percent": round(100 * (_cpu(starters) - theirs) / took / count, 2),
            "starter_memory_mib": starters[0].memory_info().rss >> 20,
            "troubles": len(process.troubles),
        }
        process.kill_all()
        while process.pump(0.2) is None:
            pass
        return result


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 128)))
