"""The hosts of the other tests are what they claim: each its own machine but for the files, and nothing of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.hosts import Hosts
from scripted_runs import wait_for

SLEEP = ["sleep", "8675309"]
"""A process of these tests."""
LIVE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from cluster.hosts import Hosts
hosts = Hosts(1)
hosts.up()
hosts.run("lwhead", ["sh", "-c", "setsid sleep 8675309 &"], stdout=None, stderr=None)
print(hosts.folder, *(process.machine_pid for host in hosts.names for process in hosts.processes(host)), flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_login_is_on_another_machine_with_a_home_of_its_own(hosts: Hosts) -> None:
    boot_id = "/proc/sys/kernel/random/boot_id"
    script = f"hostname; hostname -I; cat {boot_id}; echo $HOME; touch ~/here; ls ~; ls /sys/class/net"
    said = hosts.run("lwhead", ["ssh", "lwnode2", script], check=True).stdout.split()
    assert said[:2] == ["lwnode2", hosts.addresses["lwnode2"]]
    assert said[3:] == [hosts.env["HOME"], "here", "eth0", "lo"]
    assert said[2] not in (Path(boot_id).read_text().strip(), hosts.run("lwnode1", ["cat", boot_id]).stdout.strip())
    assert [host for host in hosts.names if (hosts.home(host) / "here").exists()] == ["lwnode2"]


def test_hosts_reach_each_other_without_a_question_and_ssh_writes_nothing(hosts: Hosts) -> None:
    before = hosts.dot_ssh()
    assert str(hosts.known_hosts) in before
    for host, other in zip(hosts.names, (*hosts.names[1:], hosts.head), strict=True):
        strict = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]
        assert hosts.run(host, ["ssh", *strict, other, "hostname"]).stdout == f"{other}\n"
    assert hosts.dot_ssh() == before


def test_a_host_sees_its_own_processes_only_and_shares_the_files(hosts: Hosts, tmp_path: Path) -> None:
    mark = {"LLM_WIZARD_RUN": str(tmp_path), "RANK": "3"}
    with hosts.popen("lwnode1", SLEEP, mark) as one, hosts.popen("lwnode2", SLEEP, mark) as two:
        wait_for(lambda: hosts.pids("lwnode1", tmp_path) and hosts.pids("lwnode2", tmp_path))
        assert hosts.pids("lwnode1", tmp_path) == [one.pid]
        assert hosts.rank_pids("lwnode2", tmp_path) == {3: two.pid}
        assert hosts.pids("lwnode3", tmp_path) == hosts.pids("lwhead", tmp_path) == []
        # A sweep with the other's number, name and mark in hand.
        seen = hosts.run("lwnode1", ["sh", "-c", "pkill -c -x sleep; ls -d /proc/[0-9]* | wc -l"]).stdout.split()
        assert one.wait() == -signal.SIGTERM
        assert seen[0] == "1"
        assert int(seen[1]) < 10
        assert two.poll() is None
        two.kill()
    hosts.run("lwnode1", ["touch", tmp_path / "shared"])
    assert hosts.run("lwnode2", ["ls", tmp_path]).stdout == "shared\n"


def test_killing_a_host_ends_all_of_it_and_only_it(hosts: Hosts) -> None:
    begin = "for i in 1 2; do setsid -f sleep 8675309 >/dev/null 2>&1 </dev/null; done"
    for node in ("lwnode1", "lwnode2"):
        hosts.run("lwhead", ["ssh", node, begin], check=True)
    stream = hosts.popen("lwhead", ["ssh", "lwnode1", "sleep 8675309"], stderr=subprocess.DEVNULL)
    with hosts.popen("lwnode1", SLEEP) as child, stream:
        wait_for(lambda: sum(process.argv == tuple(SLEEP) for process in hosts.processes("lwnode1")) == 4)
        of_first, of_second = ([p.machine_pid for p in hosts.processes(node)] for node in ("lwnode1", "lwnode2"))
        hosts.kill_node("lwnode1")
        assert not any(alive(pid) for pid in of_first)
        assert all(alive(pid) for pid in of_second)
        assert child.wait() == -signal.SIGKILL
        assert stream.wait() == 255
    try:
        assert "refused" in hosts.run("lwhead", ["ssh", "lwnode1", "true"]).stderr
        assert hosts.run("lwhead", ["ping", "-c1", "-W1", "lwnode1"]).returncode == 0
        assert hosts.processes("lwnode1") == []
        with pytest.raises(ProcessLookupError, match="lwnode1"):
            hosts.run("lwnode1", ["true"])
    finally:
        hosts.revive("lwnode1")
    assert hosts.run("lwhead", ["ssh", "lwnode1", "hostname"]).stdout == "lwnode1\n"
    hosts.run("lwnode2", ["pkill", "-x", "sleep"], check=True)


def test_dropped_packets_make_a_stream_silent_and_it_goes_on_afterwards(hosts: Hosts) -> None:
    count = "i=0; while sleep 0.05; do echo $((i+=1)); done"
    with hosts.popen("lwhead", ["ssh", "lwnode1", count], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as stream:
        assert stream.stdout is not None
        seen = [int(stream.stdout.readline())]
        hosts.drop_packets("lwnode1")
        try:
            late = hosts.run("lwhead", ["ssh", "-o", "ConnectTimeout=1", "lwnode1", "true"])
            assert "timed out" in late.stderr  # no error comes back
            assert hosts.run("lwhead", ["ssh", "lwnode2", "hostname"]).stdout == "lwnode2\n"
            os.set_blocking(stream.stdout.fileno(), False)
            while stream.stdout.readline():
                pass
            assert hosts.run("lwhead", ["ping", "-c3", "-i0.2", "-W0.2", "lwnode1"]).returncode == 1
            assert stream.stdout.readline() == b""
            assert stream.poll() is None
        finally:
            hosts.accept_packets("lwnode1")
        os.set_blocking(stream.stdout.fileno(), True)
        seen += [int(stream.stdout.readline()) for _ in range(20)]
        assert seen[1:] == list(range(seen[1], seen[1] + 20))  # what was written in the meantime, then more
        assert stream.poll() is None
        stream.kill()
    assert hosts.run("lwhead", ["ip", "neigh", "show", "nud", "permanent"]).stdout == ""


def test_a_pulled_cable_is_seen_by_the_host_and_a_stream_survives_it(hosts: Hosts) -> None:
    carrier = ["cat", "/sys/class/net/eth0/carrier"]
    assert hosts.run("lwnode1", carrier).stdout == "1\n"
    with hosts.popen("lwhead", ["ssh", "lwnode1", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stream:
        assert stream.stdin is not None
        assert stream.stdout is not None
        stream.stdin.write(b"before\n")
        stream.stdin.flush()
        assert stream.stdout.readline() == b"before\n"
        hosts.link_down("lwnode1")
        try:
            assert hosts.run("lwnode1", carrier).stdout == "0\n"
            assert hosts.run("lwhead", ["ping", "-c1", "-W1", "lwnode1"]).returncode == 1
        finally:
            hosts.link_up("lwnode1")
        assert hosts.run("lwnode1", carrier).stdout == "1\n"
        output, _ = stream.communicate(b"after\n")
        assert (output, stream.returncode) == (b"after\n", 0)


def test_slurm_runs_steps_and_jobs_on_them(slurm_hosts: Hosts, tmp_path: Path) -> None:
    hosts = slurm_hosts
    assert set(hosts.run("lwhead", ["srun", "-N2", "hostname"], check=True).stdout.split()) < set(hosts.nodes)
    job = ["sbatch", "--wait", "-N2", "--gpus-per-node=8", f"--output={tmp_path}/output", "--wrap"]
    hosts.run("lwhead", [*job, "hostname; srun -l sh -c 'hostname; echo $CUDA_VISIBLE_DEVICES'"], check=True)
    assert sorted((tmp_path / "output").read_text().splitlines()) == [
        "0: 0,1,2,3,4,5,6,7",
        "0: lwnode1",
        "1: 0,1,2,3,4,5,6,7",
        "1: lwnode2",
        "lwnode1",
    ]
    hosts.kill_node("lwnode1")
    hosts.revive("lwnode1")
    assert hosts.run("lwhead", ["srun", "-w", "lwnode1", "hostname"], check=True, timeout=30).stdout == "lwnode1\n"


def test_a_driver_answers_on_every_host_and_gpus_where_there_are_some() -> None:
    program = (
        "from ctypes import *; n = CDLL('libnvidia-ml.so.1'); number = c_uint(); "
        "print(n.nvmlInit_v2(), n.nvmlDeviceGetCount_v2(byref(number)), number.value)"
    )
    with Hosts(2, gpus=True) as hosts:
        hosts.set_gpus("lwnode1", "90 60000 81920 55 480 700 1980 0 0 0 0\n" * 8)
        asked = [hosts.run("lwhead", ["ssh", node, f'{sys.executable} -c "{program}"']) for node in hosts.nodes]
    assert [one.stdout for one in asked] == ["0 0 8\n", "9 9 0\n"]  # 9: NVML_ERROR_DRIVER_NOT_LOADED


def test_a_session_that_is_killed_leaves_no_process_and_one_that_ends_leaves_nothing() -> None:
    def machine_wide() -> list[str]:
        folders = Path("/run/netns"), Path("/etc/netns"), Path("/sys/class/net")
        return sorted(str(path) for folder in folders if folder.exists() for path in folder.glob("*lw*"))

    before = machine_wide()
    with subprocess.Popen(
        [sys.executable, "-c", LIVE, str(Path(__file__).parents[1])], stdout=subprocess.PIPE, text=True
    ) as session:
        assert session.stdout is not None
        folder, *words = session.stdout.readline().split()
        pids = [int(word) for word in words]
        assert len(pids) == 3
        session.kill()
    wait_for(lambda: not any(alive(pid) for pid in pids))
    with Hosts(2) as hosts:  # beside the fixture's: nothing of them is the machine's
        hosts.run("lwnode1", ["sh", "-c", "setsid -f sleep 8675309"], stdout=None, stderr=None)
        pids = [process.machine_pid for host in hosts.names for process in hosts.processes(host)]
    assert not any(alive(pid) for pid in pids)
    assert not hosts.folder.exists()
    assert not Path(folder).exists()  # the next session has removed it
    assert machine_wide() == before
