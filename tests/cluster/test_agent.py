"""The node agent: it sees what is there, says null where it cannot see, never falls silent, and leaves nothing behind."""

from __future__ import annotations

import ast
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from scripted_runs import wait_for

from conftest import MakeRun
from core.cluster import agent
from core.cluster.agent_sample import read_sample
from core.cluster.collector import local_node
from core.cluster.reach import piped_program, piped_python

from .conftest import HEALTHY, FakeGpus, Watch, build_nvml

CODE = Path(agent.__file__).read_bytes()
MARK = "LLM_WIZARD_RUN"


PYTHON = piped_python(sys.executable, "llm-wizard-agent")


def greeting(**config: Any) -> bytes:
    config = {"period": 0.1, "run": None, "folder": "/", "parent": None, "silence": 60, **config}
    return piped_program(Path(agent.__file__), config)


def test_it_is_one_file_for_python_3_8_that_needs_only_the_standard_library() -> None:
    tree = ast.parse(CODE, feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported <= sys.stdlib_module_names
    assert len(CODE) < 1 << 16, "a pipe takes it at once"


def test_a_sample_has_the_fields_that_readers_know(watch: Watch, gpus: FakeGpus) -> None:
    sample = watch(**gpus.env).wait(lambda sample: sample["slow"] and sample["gpus"])
    assert read_sample(orjson.dumps(sample)) == sample
    assert " ".join(sample) == (
        "time host seq period gpus nvml nvml_blocked_s cpu cores load memory_used memory_total net_rx net_tx "
        "ib_rx ib_tx disk_free disk_total slow clock_ahead restarts"
    )
    assert sample["cores"] == os.cpu_count()
    assert sample["memory_total"] <= psutil.virtual_memory().total
    assert 0 < sample["memory_used"] < sample["memory_total"]
    assert 0 < sample["disk_free"] <= sample["disk_total"] == shutil.disk_usage("/").total
    assert abs(sample["clock_ahead"]) < 10


def test_eight_gpus_are_read_through_nvml(watch: Watch, gpus: FakeGpus) -> None:
    sample = watch(**gpus.env).wait(lambda sample: sample["gpus"])
    assert (sample["nvml"], sample["nvml_blocked_s"]) == ("ok", 0.0)
    assert [gpu["util"] for gpu in sample["gpus"]] == [90, 91, 92, 93, 94, 95, 96, 97]
    assert sample["gpus"][5] == {
        "index": 5,
        "name": "NVIDIA H100 80GB HBM3 (fake)",
        "util": 95,
        "memory_used": 60005 << 20,
        "memory_total": 81920 << 20,
        "temperature": 60,
        "power": 480.0,
        "power_limit": 700.0,
        "clock": 1980,
    }


def test_a_driver_that_blocks_does_not_stop_the_heartbeat(watch: Watch, gpus: FakeGpus) -> None:
    seen = watch(**gpus.env)
    seen.wait(lambda sample: sample["nvml"] == "ok")
    gpus.set("block\n" + HEALTHY)
    first = seen.wait(lambda sample: sample["nvml_blocked_s"])
    later = seen.wait(lambda sample: sample["seq"] >= first["seq"] + 5)
    assert later["nvml_blocked_s"] > first["nvml_blocked_s"] > 0.2
    assert later["nvml"] == "the driver does not answer"
    assert [gpu["util"] for gpu in later["gpus"]] == [None] * 8, "what is not read is not shown as if it were"
    assert later["gpus"][7]["memory_total"] == 81920 << 20
    gpus.set(HEALTHY)
    healed = seen.wait(lambda sample: sample["nvml_blocked_s"] == 0)
    assert healed["gpus"][0]["util"] == 90
    assert seen.failures == []


def test_an_agent_ends_although_the_driver_blocks_one_of_its_threads(gpus: FakeGpus) -> None:
    gpus.set("block\n" + HEALTHY)
    process = start_agent(greeting(), env={**os.environ, **gpus.env})
    assert process.stdin
    assert process.stdout
    assert not orjson.loads(process.stdout.readline())["gpus"]
    process.stdin.close()
    assert process.wait(10) == 0


def test_a_lost_gpu_is_named_and_the_others_are_read(watch: Watch, gpus: FakeGpus) -> None:
    seen = watch(**gpus.env)
    seen.wait(lambda sample: sample["nvml"] == "ok")
    lines = HEALTHY.splitlines(keepends=True)
    gpus.set("".join([*lines[:3], "lost\n", *lines[4:]]))
    sample = seen.wait(lambda sample: sample["nvml"] != "ok")
    assert sample["nvml"] == "GPU 3: GPU is lost (15)"
    assert sample["gpus"][3]["name"] == "NVIDIA H100 80GB HBM3 (fake)"
    assert sample["gpus"][3]["temperature"] is None
    assert [gpu["util"] for gpu in sample["gpus"]] == [90, 91, 92, None, 94, 95, 96, 97]


def test_uncorrected_errors_and_throttling_are_said_in_words(watch: Watch, gpus: FakeGpus) -> None:
    gpus.set("50 1 81920 88 700 0 1200 3 0x48 0 0\n".replace("0x48", str(0x48 | 0x1 | 0x2)))
    sample = watch(**gpus.env).wait(lambda sample: sample["slow"] and sample["gpus"])
    assert sample["gpus"][0]["power_limit"] is None, "this GPU has none"
    assert sample["slow"]["gpus"] == [
        {"index": 0, "ecc": 3, "throttle": "hardware slowdown, too hot (hardware slowdown)", "xid": None}
    ]


def test_a_driver_before_510_gives_memory_by_its_older_function(watch: Watch, gpus: FakeGpus, tmp_path: Path) -> None:
    old = build_nvml(tmp_path, "-DOLD_DRIVER")
    sample = watch(**{**gpus.env, "LD_LIBRARY_PATH": str(old)}).wait(lambda sample: sample["gpus"])
    assert sample["gpus"][0]["memory_used"] == 60500 << 20
    assert sample["nvml"] == "ok"


def test_a_library_without_a_driver_says_so(watch: Watch, gpus: FakeGpus) -> None:
    sample = watch(**{**gpus.env, "FAKE_NVML_FILE": "/nowhere"}).wait(lambda sample: sample["nvml"] != "no answer yet")
    assert (sample["nvml"], sample["gpus"]) == ("Driver Not Loaded (9)", [])


def test_nvidia_smi_is_asked_where_the_library_cannot_be_loaded(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n'
        'echo "0, NVIDIA H100 80GB HBM3, 97, 61440, 81559, 65, 480.13, 700.00, 1980"\n'
        'echo "1, NVIDIA H100 80GB HBM3, [N/A], 0, 81559, 30, [Unknown Error], 700.00, 345"\n'
    )
    program.chmod(0o700)
    env = {"LD_LIBRARY_PATH": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    sample = watch(**env).wait(lambda sample: sample["gpus"])
    assert sample["nvml"] == "ok"
    assert sample["gpus"][0]["memory_used"] == 61440 << 20
    assert (sample["gpus"][0]["util"], sample["gpus"][0]["power"]) == (97, 480.13)
    assert (sample["gpus"][1]["util"], sample["gpus"][1]["power"]) == (None, None)
    assert "--query-gpu=index,name," in (tmp_path / "asked").read_text()


def test_neither_library_nor_program_is_absent(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    sample = watch(LD_LIBRARY_PATH=str(tmp_path), PATH="/nowhere").wait(
        lambda sample: sample["nvml"] != "no answer yet"
    )
    assert (sample["nvml"], sample["gpus"]) == ("absent", [])


Started = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def started() -> Any:
    """`started(argv, **env)`: a process that ends with the test."""
    processes = []

    def start(argv: list[Any], **env: str) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen(argv, env={**os.environ, **env}, stdout=subprocess.DEVNULL))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_the_processes_of_the_run_are_listed_with_their_ranks_and_gpu_memory(
    watch: Watch, gpus: FakeGpus, make_run: MakeRun, started: Started, tmp_path: Path
) -> None:
    run = make_run({"corpus": {"script": "none.py"}})
    script = tmp_path / "stage.py"
    script.write_text("block = bytearray(30_000_000)\nwhile True: pass\n")
    rank = started([sys.executable, script, "pretrain"], **{MARK: str(run.root), "RANK": "11", "LOCAL_RANK": "3"})
    other = started(["sleep", "60"], **{MARK: str(run.root) + "2", "RANK": "1"})
    gpus.set(HEALTHY + f"1 1 81920 30 100 700 1980 0 0 {rank.pid} 70000\n")
    seen = watch(run, **gpus.env)
    sample = seen.wait(lambda sample: sample["slow"] and sample["slow"]["processes"])
    (process,) = sample["slow"]["processes"]
    assert process["pid"] == rank.pid != other.pid
    assert (process["rank"], process["local_rank"], process["gpu"]) == (11, 3, 8)
    assert process["gpu_memory"] == 70000 << 20
    assert process["name"] == "stage.py pretrain"
    wait_for(lambda: psutil.Process(rank.pid).memory_info().rss > 30_000_000)
    process = seen.wait(lambda sample: sample["slow"])["slow"]["processes"][0]
    assert process["rss"] > 30_000_000
    assert 5 < process["cpu"] < 150


def test_a_stage_that_starts_is_listed_before_the_next_slow_part_is_due(
    watch: Watch, make_run: MakeRun, started: Started
) -> None:
    run = make_run({"corpus": {"script": "none.py"}})
    seen = watch(run, period=0.3)
    first = seen.wait(lambda sample: sample["slow"] is not None)
    assert first["slow"]["processes"] == []
    process = started(["sleep", "60"], **{MARK: str(run.root)})
    sample = seen.wait(lambda sample: sample["slow"] is not None)
    assert [entry["pid"] for entry in sample["slow"]["processes"]] == [process.pid]
    assert sample["seq"] - first["seq"] < agent.SLOW_EVERY


def test_a_hostile_process_name_is_harmless(watch: Watch, make_run: MakeRun, started: Started, tmp_path: Path) -> None:
    run = make_run({"corpus": {"script": "none.py"}})
    program = os.fsencode(tmp_path) + b"/\xff\x1b[2J\n(x) 1"
    shutil.copy(os.fsencode(shutil.which("sleep") or ""), program)
    process = started([program, "60"], **{MARK: str(run.root)})
    sample = watch(run).wait(lambda sample: sample["slow"] and sample["slow"]["processes"])
    (entry,) = sample["slow"]["processes"]
    assert entry["pid"] == process.pid
    assert entry["name"].isprintable()
    assert entry["rss"] > 0


def test_without_a_run_the_processes_of_all_runs_and_those_on_gpus_are_listed(
    watch: Watch, gpus: FakeGpus, started: Started
) -> None:
    marked = started(["sleep", "60"], **{MARK: "/some/run"})
    on_gpu = started(["sleep", "61"])
    gpus.set(f"1 1 81920 30 100 700 1980 0 0 {on_gpu.pid} 500\n")
    sample = watch(**gpus.env).wait(lambda sample: sample["slow"] and sample["gpus"])
    assert {marked.pid, on_gpu.pid} <= {process["pid"] for process in sample["slow"]["processes"]}


def test_many_loaders_do_not_hide_a_rank(watch: Watch, make_run: MakeRun, started: Started) -> None:
    run = make_run({"corpus": {"script": "none.py"}})
    for _ in range(agent.MOST_PROCESSES + 5):
        started(["sleep", "60"], **{MARK: str(run.root)})
    rank = started(["sleep", "60"], **{MARK: str(run.root), "RANK": "0"})
    sample = watch(run).wait(lambda sample: sample["slow"] and sample["slow"]["processes"])
    assert len(sample["slow"]["processes"]) == agent.MOST_PROCESSES
    assert sample["slow"]["processes"][0]["pid"] == rank.pid


@pytest.mark.parametrize(
    ("comm", "command", "name"),
    [
        (b"python3", b"/usr/bin/python3\0/runs/r/code/stage.py\0pretrain\0/runs/r", "stage.py pretrain"),
        (b"pt_main_thread", b"python\0-u\0/x/train.py\0--token=secret", "train.py"),
        (b"python", b"python3.11\0-m\0torch.distributed.run\0--standalone", "torch.distributed.run"),
        (b"python", b"python\0-c\0from multiprocessing.spawn import spawn_main", "python"),
        (b"pt_data_worker", b"python\0/x/stage.py\0pretrain", "pt_data_worker"),
        (b"nvidia-smi", b"nvidia-smi\0-q", "nvidia-smi"),
        (b"kworker/0:1", b"", "kworker/0:1"),
    ],
)
def test_a_process_is_named_as_its_user_knows_it(comm: bytes, command: bytes, name: str) -> None:
    assert agent.short_name(comm, command) == name


SLURM_STEP = {
    "/proc/self/cgroup": b"0::/system.slice/slurmstepd.scope/job_7/step_0\n",
    "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/step_0/memory.max": b"max\n",
    "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/memory.max": b"8589934592\n",
    "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/memory.current": b"5000000000\n",
    "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/memory.stat": b"anon 1\nfile 2\ninactive_file 1000000000\n",
}
OLD_CONTAINER = {
    "/proc/self/cgroup": b"5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n0::/\n",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": b"8589934592\n",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes": b"5000000000\n",
    "/sys/fs/cgroup/memory/memory.stat": b"cache 5\ntotal_inactive_file 1000000000\n",
}
NO_LIMIT = {"/proc/self/cgroup": b"0::/user.slice\n", "/sys/fs/cgroup/user.slice/memory.max": b"max\n"}
MEMINFO = b"MemTotal:       16777216 kB\nMemFree:         1000 kB\nMemAvailable:   10485760 kB\n"


@pytest.mark.parametrize(
    ("files", "used", "total"),
    [
        pytest.param(SLURM_STEP, 4_000_000_000, 8 << 30, id="the job's limit in Slurm"),
        pytest.param(OLD_CONTAINER, 4_000_000_000, 8 << 30, id="a container under cgroup v1"),
        pytest.param(NO_LIMIT, 6 << 30, 16 << 30, id="the whole machine"),
    ],
)
def test_memory_is_that_of_the_control_group_that_would_be_killed(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], used: int, total: int
) -> None:
    recorded = {"/proc/meminfo": MEMINFO, "/proc/stat": b"cpu  1 2 3 4 5 6 7 8 0 0\n", **files}
    monkeypatch.setattr(agent, "read", recorded.get)
    seen = agent.Machine().look()
    assert (seen["memory_used"], seen["memory_total"]) == (used, total)


def start_agent(text: bytes, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(PYTHON, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdin
    process.stdin.write(text)
    process.stdin.flush()
    return process


def test_it_ends_with_its_stdin() -> None:
    process = start_agent(greeting())
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline().startswith(b'{"time":')
    process.stdin.close()
    assert process.wait(10) == 0


def test_it_ends_when_nobody_reads() -> None:
    process = start_agent(greeting())
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(10) == 0


def test_it_ends_when_nothing_comes_from_the_head_any_more() -> None:
    process = start_agent(greeting(silence=1))
    assert process.stdin
    assert process.stdout
    for _ in range(20):  # 2 s: it is told that it is heard
        process.stdout.readline()
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert process.poll() is None
    assert process.wait(10) == -signal.SIGALRM


def test_it_ends_in_silence_although_its_own_lines_no_longer_go_anywhere() -> None:
    # What a cut link looks like from the node: a full pipe that nobody reads and nobody closes.
    process = start_agent(greeting(period=0.0001, silence=3))
    assert process.stdout
    full = fcntl.fcntl(process.stdout, fcntl.F_GETPIPE_SZ)

    def blocked() -> bool:
        waiting = int.from_bytes(fcntl.ioctl(process.stdout, termios.FIONREAD, b"\0" * 4), sys.byteorder)
        return waiting > full - 8192

    wait_for(blocked)
    assert process.wait(10) == -signal.SIGALRM


def test_it_ends_with_its_parent_though_another_process_keeps_its_stdin_open(tmp_path: Path) -> None:
    # The middle process starts an agent and a sleep that inherits the agent's stdin, and is killed.
    (tmp_path / "greeting").write_bytes(greeting(parent=4711))
    script = (
        "import os, subprocess, sys, time\n"
        "read, write = os.pipe(); os.set_inheritable(write, True)\n"
        f"p = subprocess.Popen({PYTHON!r}, stdin=read, stdout=subprocess.PIPE)\n"
        f"greeting = open({str(tmp_path / 'greeting')!r}, 'rb').read()\n"
        "os.write(write, greeting.replace(b'4711', str(os.getpid()).encode()))\n"
        "s = subprocess.Popen(['sleep', '60'], close_fds=False)\n"
        "p.stdout.readline(); print(p.pid, s.pid, flush=True); time.sleep(60)\n"
    )
    middle = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert middle.stdout
    agent_pid, sleep_pid = map(int, middle.stdout.readline().split())
    try:
        assert psutil.pid_exists(agent_pid)
        os.kill(middle.pid, signal.SIGKILL)
        middle.wait()
        wait_for(lambda: not psutil.pid_exists(agent_pid) or psutil.Process(agent_pid).status() == "zombie")
    finally:
        os.kill(sleep_pid, signal.SIGKILL)


def test_it_is_given_neither_secrets_nor_the_mark_of_a_run(monkeypatch: pytest.MonkeyPatch, make_run: MakeRun) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv(MARK, "/some/run")
    run = make_run({"corpus": {"script": "none.py"}})
    node = local_node(run, run.root)
    assert not {"HF_TOKEN", MARK} & set(node.env)
    assert str(run.root) not in " ".join(node.argv), "a run's name stands in no command line"
