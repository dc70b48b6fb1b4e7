"""Slurm on the real hosts: munged everywhere, slurmctld on the head, slurmd on each node, with the paths that a cluster has.

Their state is in the hosts' folder; /etc/slurm is the hosts' own, mounted over the machine's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.packages import CannotMakeHosts

if TYPE_CHECKING:
    from cluster.hosts import Hosts

DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd")
GPUS = 8
DAEMONS_OF_A_HOST = """
set -e
mount --bind "$2/etc" /etc/slurm
mkdir -p /run/munge && chmod 755 /run/munge
munged --force --key-file="$2/munge.key" --seed-file=/run/munge/seed --log-file="$2/log/munged-$1"
[ "$1" = lwhead ] && exec slurmctld
exec slurmd -N "$1"
"""


class Slurm:
    """Slurm's daemons on hosts that are up; they end with their host, and a revived host gets them again."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._folder = hosts.folder / "slurm"

    def up(self) -> None:
        """Start them and wait until every node is idle. CannotMakeHosts, with Slurm's own words, where that does not happen."""
        self._write_files()
        for host in self._hosts.names:
            self.start_on(host)
        self.wait_for_idle()

    def start_on(self, host: str) -> None:
        """The daemons of one host."""
        done = self._hosts.run(host, ["sh", "-c", DAEMONS_OF_A_HOST, "sh", host, self._folder], check=False)
        if done.returncode:
            raise CannotMakeHosts(f"Slurm on {host} does not start: {done.stdout}{done.stderr}{self._logs()}")

    def wait_for_idle(self, seconds: float = 30) -> None:
        """Until every node of Slurm can take a job."""
        deadline = time.monotonic() + seconds
        while self._hosts.run("lwhead", ["sinfo", "-h", "-t", "idle", "-o", "%D"], check=False).stdout.strip() != str(
            len(self._hosts.nodes)
        ):
            if time.monotonic() > deadline:
                seen = self._hosts.run("lwhead", ["scontrol", "show", "nodes"], check=False)
                raise CannotMakeHosts(f"not every node is idle: {seen.stdout}{seen.stderr}{self._logs()}")
            time.sleep(0.05)

    def down(self) -> None:
        """End the daemons, and the steps of jobs with all that these started."""
        for host in self._hosts.names:
            for process in self._hosts.processes(host):
                if (
                    "SLURM_JOB_ID" in process.env
                    or Path(process.argv[0] if process.argv else "").name.rstrip(":") in DAEMONS
                ):
                    os.kill(process.machine_pid, signal.SIGKILL)

    def _write_files(self) -> None:
        folder = self._folder
        for name in ("etc", "state", "log", "cgroup", "gpus", *(f"spool/{node}" for node in self._hosts.nodes)):
            (folder / name).mkdir(parents=True)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        for number in range(GPUS):
            subprocess.run(["mknod", str(folder / f"gpus/{number}"), "c", "1", "3"], check=True)
        (folder / "etc/gres.conf").write_text(f"Name=gpu File={folder}/gpus/[0-{GPUS - 1}]\n")
        # slurmd looks for cgroups although no plugin here uses them, and this version has no word for none.
        (folder / "etc/cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder}/cgroup\n")
        addresses = self._hosts.addresses
        nodes = [f"NodeName={node} NodeAddr={addresses[node]}" for node in self._hosts.nodes]
        (folder / "etc/slurm.conf").write_text(
            f"""ClusterName=lw
SlurmctldHost=lwhead({addresses["lwhead"]})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
KillWait=5
MinJobAge=300
SlurmdParameters=config_overrides
GresTypes=gpu
PartitionName=debug Nodes={",".join(self._hosts.nodes)} Default=YES MaxTime=INFINITE State=UP
"""
            + "".join(f"{node} CPUs=8 RealMemory=20000 Gres=gpu:{GPUS} State=UNKNOWN\n" for node in nodes)
        )

    def _logs(self) -> str:
        return "".join(f"\n{log.name}: {log.read_text()[-800:]}" for log in sorted((self._folder / "log").iterdir()))
