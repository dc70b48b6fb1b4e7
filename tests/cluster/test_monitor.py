"""`llm-wizard monitor`: machines without a run, in lines that fit a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.hosts import Hosts
from scripted_runs import wait_for

from conftest import wizard
from core.cluster.agent_sample import read_sample
from core.cluster.monitor import MOST_PROBLEMS, block, table, watched_nodes
from core.cluster.samples import node_view

from .conftest import HEALTHY, FakeGpus
from .test_agent_sample import GPU, SAMPLE


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


def test_many_nodes_have_a_line_each_within_80_columns_and_what_is_wrong_is_said_below() -> None:
    gpus = [{**GPU, "index": i, "util": 90 + i, "memory_used": 60 << 30, "memory_total": 80 << 30} for i in range(8)]
    sample = {
        **{**SAMPLE, "gpus": gpus, "cpu": 12.4, "memory_used": 512 << 30, "memory_total": 2048 << 30},
        **{"net_rx": 3 << 20, "net_tx": 1 << 20, "ib_rx": 40 << 30, "ib_tx": 40 << 30},
    }
    views = [node_view(f"node{number:03d}", sample, None, 0.0, "", 1.0) for number in range(128)]
    views[7] = node_view("node007", sample, None, 0.0, "no contact: nothing heard for 30 s\x1b[2J " + "x" * 200, 41.0)
    views[8] = node_view("node008", None, None, 0.0, "no contact: n: Permission denied (publickey)", 10.0)
    views[9] = node_view("a-name-that-is-longer-than-there-is-room", {**sample, "gpus": []}, None, 0.0, "", 1.0)
    views[10] = node_view("node010", {**sample, "nvml": "GPU 3: GPU is lost (15)"}, None, 0.0, "", 1.0)
    lines = table(views)
    assert max(map(len, lines)) <= 80
    assert lines[1] == "node000               8   94%      75%   1 C   12%     25%   80 GiB/s  ok"
    assert [line.split()[0] for line in lines[1:8]] == [f"node{number:03d}" for number in range(7)]
    assert lines[8].split() == ["node007", "LOST", "!"]
    assert lines[9].split() == ["node008", "STALE", "!"]
    assert lines[10].startswith("a-name-that-is-l~     -     -        -     -   12%")
    assert lines[11].endswith("ok !")
    assert lines[129].startswith("! node007: no contact: nothing heard for 30 s xxx")
    assert lines[130:] == [
        "! node007: last heard of 40 s ago",
        "! node008: no contact: n: Permission denied (publickey)",
        "! node008: last heard of 10 s ago",
        "! node010: the GPU driver says: GPU 3: GPU is lost (15)",
        "128 nodes: 126 ok, 1 STALE, 1 LOST",
    ]


def test_a_sick_cluster_does_not_fill_the_terminal_with_its_problems() -> None:
    views = [node_view(f"n{number}", SAMPLE, None, 0.0, "no contact: x", 1.0) for number in range(128)]
    lines = table(views)
    assert len(lines) == 1 + 128 + MOST_PROBLEMS + 2
    assert lines[-2:] == ["and 108 more", "128 nodes: 128 ok"]


def test_a_hostfile_and_a_list_name_the_nodes_and_this_machine_is_not_asked_over_ssh(tmp_path: Path) -> None:
    own = os.uname().nodename
    (tmp_path / "hosts").write_text(f"{own} slots=8\nnode2 slots=8\n")
    from_file = watched_nodes("", tmp_path / "hosts", "/opt/python3")
    assert [(node.host, node.way, node.argv[0]) for node in from_file] == [
        (own, "local", sys.executable),
        ("node2", "ssh", "ssh"),
    ]
    assert [node.host for node in watched_nodes("node[07-09]", None, "python3")] == ["node07", "node08", "node09"]
    assert [node.way for node in watched_nodes("", None, "python3")] == ["local"]


def test_inside_a_slurm_job_its_nodes_are_asked_by_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[01-02]")
    monkeypatch.setenv("PATH", "/nowhere")  # as in a container: no scontrol
    nodes = watched_nodes("", None, "python3")
    assert [(node.host, node.way) for node in nodes] == [("gpu01", "slurm"), ("gpu02", "slurm")]
    assert "--jobid=4711" in nodes[0].argv
    assert [node.way for node in watched_nodes("gpu02", None, "python3")] == ["slurm"]
    assert [node.way for node in watched_nodes("gpu02,gpu03", None, "python3")] == ["ssh", "ssh"]


def test_real_nodes_are_shown_over_ssh_and_inside_a_slurm_job_by_srun(slurm_hosts: Hosts) -> None:
    monitor = [sys.executable, "-m", "core.cli", "monitor"]
    lines = slurm_hosts.run("lwhead", [*monitor, "--once", "--nodes", "lwhead,lwnode[1-4]"]).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["lwhead", "lwnode1", "lwnode2", "lwnode3", "lwnode4"]
    assert lines[6:] == ["5 nodes: 5 ok"]
    job = ["salloc", "--quiet", "--nodes=2"]
    document = json.loads(slurm_hosts.run("lwhead", [*job, *monitor, "--json"]).stdout)
    assert [(node["host"], node["status"]) for node in document["nodes"]] == [("lwnode1", "ok"), ("lwnode2", "ok")]
    wait_for(
        lambda: not any("llm-wizard-agent" in p.argv for host in slurm_hosts.names for p in slurm_hosts.processes(host))
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nodes", "-oProxyCommand=x"], "expected one argument"),
        (["--nodes=-oProxyCommand=x"], "is no host name"),
        (["--nodes", "a[1-"], "is no range of nodes"),
        (["--nodes", "a;b"], "is no host name"),
        (["--hostfile", "/nowhere"], "the hostfile /nowhere cannot be read"),
        (["--nodes", "a", "--hostfile", "b"], "give --nodes or --hostfile, not both"),
    ],
)
def test_nodes_that_cannot_be_meant_are_wrong_usage(tmp_path: Path, options: list[str], words: str) -> None:
    done = wizard("monitor", "--once", *options, cwd=tmp_path)
    assert done.returncode == 64
    assert words in done.stderr


def test_nodes_that_do_not_answer_are_named_with_the_reason(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho 'ssh: connect to host n port 22: No route to host' >&2; exit 255\n")
    ssh.chmod(0o700)
    done = wizard("monitor", "--once", "--nodes", "n[1-6]", cwd=tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert "no node could be looked at: n1: no contact: ssh: connect to host n port 22: No route to host" in done.stderr
    assert "; and 2 more" in done.stderr
    assert "--python PATH" in done.stderr


def test_a_lost_node_is_shown_with_its_age_and_what_its_agent_said() -> None:
    view = node_view("n\x1b[2J", SAMPLE, None, 0.0, "exit code 255: Connection \x1b]0;x\x07closed", 41.0)
    lines = block(view)
    assert lines[0].startswith("n  ")
    assert lines[0].endswith("LOST (last heard of 40 s ago)")
    assert lines[1] == "exit code 255: Connection closed"
