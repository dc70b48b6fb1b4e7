"""`llm-wizard monitor`: this machine without a run, in lines that fit a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_runs import wait_for

from conftest import wizard
from core.cluster.collector import read_sample
from core.cluster.monitor import block
from core.cluster.samples import node_view

from .conftest import HEALTHY, FakeGpus
from .test_collector import SAMPLE


def test_once_prints_one_block_with_every_gpu_and_ends(tmp_path: Path, gpus: FakeGpus) -> None:
    gpus.set(HEALTHY + f"100 70000 81920 80 690 700 1500 0 0 {os.getpid()} 512\n")
    done = wizard("monitor", "--once", cwd=tmp_path, **gpus.env)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(os.uname().nodename)
    assert lines[0].endswith("ok")
    assert [line.split()[0] for line in lines if "NVIDIA H100" in line] == [str(i) for i in range(9)]
    assert "  5  NVIDIA H100 80GB HBM  95%    58.6 GiB/80 GiB   60 C   480/700 W  1980 MHz" in lines
    assert any(str(os.getpid()) in line and "512 MiB" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_json_is_one_document(tmp_path: Path, gpus: FakeGpus) -> None:
    done = wizard("monitor", "--json", cwd=tmp_path, **gpus.env)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    (node,) = document["nodes"]
    assert (document["schema_version"], node["host"], node["status"]) == (1, os.uname().nodename, "ok")
    assert read_sample(json.dumps(node["sample"]).encode()) == node["sample"]
    assert node["sample"]["slow"] is not None


def test_it_goes_on_until_interrupted_and_leaves_no_agent(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "core.cli", "monitor"],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=tmp_path,
        stdout=(tmp_path / "out").open("w"),
        stderr=subprocess.PIPE,
    )
    import psutil

    blocks = lambda: (tmp_path / "out").read_text().count(f"{os.uname().nodename}  ")  # noqa: E731
    wait_for(lambda: blocks() >= 2)
    (agent,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stderr
    assert process.stderr.read() == b"interrupted\n"
    wait_for(lambda: not agent.is_running())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nvml": "absent"}, "no NVIDIA driver was found"),
        ({"nvml": "GPU 3: GPU is lost (15)"}, "the GPU driver says: GPU 3: GPU is lost (15)"),
        ({"nvml": "x", "nvml_blocked_s": 7.4}, "the GPU driver has not answered for 7 s"),
        ({"ib_rx": 1e9, "ib_tx": None}, "InfiniBand in 954 MiB/s out -/s"),
        ({"cpu": None, "cores": 8}, "CPU - of 8 cores"),
    ],
)
def test_what_is_wrong_or_unknown_is_said(changes: dict[str, object], words: str) -> None:
    view = node_view("n", {**SAMPLE, **changes}, None, 0.0, "", 1.0)
    assert words in "\n".join(block(view))


def test_a_lost_node_is_shown_with_its_age_and_what_its_agent_said() -> None:
    view = node_view("n\x1b[2J", SAMPLE, None, 0.0, "exit code 255: Connection \x1b]0;x\x07closed", 41.0)
    lines = block(view)
    assert lines[0].startswith("n  ")
    assert lines[0].endswith("LOST (last heard of 40 s ago)")
    assert lines[1] == "exit code 255: Connection closed"
