"""The Debian packages of the real hosts, installed once."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Mapping

HOSTS = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "pdsh": "pdsh",  # of DeepSpeed's launcher
    "ping": "iputils-ping",
    "ip": "iproute2",
    "ps": "procps",
}
"""What the hosts need: a program, and the package that has it."""
SLURM = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "srun": "slurm-wlm", "munged": "munge"}
"""What Slurm on them needs."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TRIAL = [
    "unshare",
    "--fork",
    "--pid",
    "--mount",
    "--uts",
    "--ipc",
    "--net",
    "--mount-proc",
    "mount",
    "-t",
    "tmpfs",
    "t",
    "/run",
]


class CannotMakeHosts(Exception):  # noqa: N818  a reason to skip
    """This machine forbids it, or lacks what it takes."""


def install(programs: Mapping[str, str]) -> None:
    """Install what is missing, starting no service. Raises CannotMakeHosts, also where namespaces are forbidden."""
    if os.getuid() != 0:
        raise CannotMakeHosts("namespaces need root")
    tried = subprocess.run(TRIAL, capture_output=True, text=True)
    if tried.returncode:
        raise CannotMakeHosts(f"this machine forbids namespaces: {tried.stderr.strip()}")
    with open("/run/lock/llm-wizard-packages", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two sessions the second waits; apt's own lock would make it fail
        if missing := sorted(
            {package for program, package in programs.items() if not shutil.which(program, path=PATH)}
        ):
            _apt_get(missing)


def _apt_get(packages: list[str]) -> None:
    # Under RUNLEVEL=1 invoke-rc.d starts no daemon of the machine's own.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        try:
            done = subprocess.run(
                ["apt-get", "-q", *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=300
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotMakeHosts(f"{', '.join(packages)} cannot be installed: {error}") from None
        if done.returncode and words != ["update"]:
            raise CannotMakeHosts(f"{', '.join(packages)} cannot be installed: {done.stderr.decode()[-300:]}")
