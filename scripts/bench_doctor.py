"""Time of `llm-wizard doctor` on this machine (median of 5), and of a fleet of 128 simulated nodes, 3 of which hang.

python scripts/bench_doctor.py

The fleet's ssh is a shell script that prints what the real probe printed here, once a node; CPU is that of the doctor and of
everything it starts.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from core.doctor.checks import CHECKS
from core.doctor.profiles import MINIMUM

WIZARD = [str(Path(sys.executable).parent / "llm-wizard"), "doctor"]
PROBE = Path(__file__).parents[1] / "core" / "doctor" / "probe.py"
SSH = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
case $2 in hang*) exec sleep 1000 ;; *) cat "$FLEET/$2" ;; esac
"""


def run(argv: list[str], env: dict[str, str]) -> tuple[float, float, str]:
    """Wall seconds, CPU seconds of it and its children, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def make_fleet(folder: Path) -> dict[str, str]:
    """125 nodes with the probe's own answers, two of them odd, and an ssh that knows them."""
    packages = [*MINIMUM, "tokenizers", "numpy", "flash-attn", "apex"]
    quick = sorted({check.observation for check in CHECKS if check.tier == "quick"})
    wanted = json.dumps({"observations": quick, "packages": packages, "folder": "/tmp", "timeout": 30})
    lines = subprocess.run([sys.executable, str(PROBE), wanted], capture_output=True, text=True).stdout.splitlines()
    seen = {one["id"]: one for one in map(json.loads, lines)}
    (folder / "bin").mkdir()
    (folder / "bin" / "ssh").write_text(SSH)
    (folder / "bin" / "ssh").chmod(0o755)
    (folder / "fleet").mkdir()
    for number in range(1, 126):
        seen["ssh.same_host"]["value"]["addresses"] = [f"10.0.0.{number}"]
        seen["fleet.equal"]["value"]["kernel"] = "5.10.0" if number == 7 else "6.1.0"
        seen["limits"]["value"]["open_files"] = 64 if number == 42 else 65536
        text = "\n".join(json.dumps(one) for one in seen.values() if one["id"] != "clock.skew")
        (folder / "fleet" / f"node-{number:03d}").write_text(text + "\n")
    return {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "FLEET": str(folder / "fleet")}


if __name__ == "__main__":
    times = [run(WIZARD, dict(os.environ)) for _ in range(5)]
    walls = [wall for wall, _, _ in times]
    print(f"doctor, this machine: median {statistics.median(walls):.2f} s, worst {max(walls):.2f} s")
    with tempfile.TemporaryDirectory() as name:
        nodes = "node-[001-125],hang[1-3]"
        wall, cpu, output = run(
            [*WIZARD, "--nodes", nodes, "--skip", "clock.skew,net.hostname"], make_fleet(Path(name))
        )
    print(f"doctor, 128 nodes of which 3 hang: {wall:.1f} s, CPU {cpu:.1f} s with its children")
    print("\n".join(line for line in output.splitlines() if "node-" in line or "hang" in line))
