"""How a command gets to a node: as a process of this machine, over the system's ssh, or by srun inside a Slurm job.

Only fixed text, the node's checked name and the path of its Python ever stand in a remote command line. All else (a program's
text, paths, environment values, secrets) goes down its stdin: a command line is parsed by a shell over there, and everyone on
the node can read it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from core.doctor.host_keys import own_configuration
from core.errors import InputError, StageError
from core.runs.masking import secret_names
from core.runs.process import MARK

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")

SSH_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "5",
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "2",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "ClearAllForwardings": "yes",
    # A shared connection would end with, or outlive, what somebody else does with it.
    "ControlMaster": "no",
    "ControlPath": "none",
    # What a user's configuration may have for his own sessions.
    "RemoteCommand": "none",
}
"""For every ssh of ours, over the user's own configuration: no questions, no unknown keys, nothing forwarded."""

STREAM_OPTIONS = {**SSH_OPTIONS, "ServerAliveInterval": "20", "ServerAliveCountMax": "3"}
"""For a connection with a heartbeat of its own, which judges the link first: ssh asks nothing before 20 s of silence. (Its question,
unanswered, would stand before our own words in TCP's queue and make them wait for its retransmission when the link is back.) What
it is for: where the link is cut and we were killed, ssh would wait for the kernel to give up, a quarter of an hour."""

STEP_OPTIONS = (
    "--nodes=1",
    "--ntasks=1",
    "--overlap",
    "--cpu-bind=none",  # one task, but of many processes: they share all cores that the job has there
    "--mpi=none",
    "--unbuffered",
    "--quiet",
    "--export=NONE",
)

PYTHON_OPTIONS = ("-I", "-S")
"""No PYTHON* variable, no working folder, no site-packages: what is piped needs only the standard library."""
READER = "import sys;r=sys.stdin.buffer;exec(compile(r.read(int(r.readline())),sys.argv[1],'exec'))"
"""Reads a program from stdin, its length first, and leaves stdin open."""


class Reach(Protocol):
    """A way to nodes."""

    kind: ClassVar[str]
    """local, ssh or slurm."""

    def argv(self, node: str, command: Sequence[str]) -> list[str]:
        """The command of this machine that runs `command` on `node`, its stdin, stdout and stderr connected to it."""


@dataclass(frozen=True)
class LocalReach:
    """This machine, by whatever name."""

    kind: ClassVar[str] = "local"

    def argv(self, node: str, command: Sequence[str]) -> list[str]:
        return list(command)


@dataclass(frozen=True)
class SshReach:
    """The system's ssh, with the user's configuration and, where there is one, ours before it. ~/.ssh is never written."""

    kind: ClassVar[str] = "ssh"

    def argv(self, node: str, command: Sequence[str]) -> list[str]:
        return ssh_argv(node, command, STREAM_OPTIONS)


def ssh_argv(node: str, command: Sequence[str], options: Mapping[str, str]) -> list[str]:
    """The ssh that runs `command` on `node`, with our configuration where there is one. Raises InputError for no host name."""
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    # The user's shell over there parses the command once more.
    return ["ssh", *own_configuration(), "-T", *words, "--", checked_node(node), shlex.join(command)]


@dataclass(frozen=True)
class SlurmReach:
    """srun inside the allocation `job`; takes no GPU and no core away from other steps."""

    job: str
    kind: ClassVar[str] = "slurm"

    def argv(self, node: str, command: Sequence[str]) -> list[str]:
        return ["srun", f"--jobid={self.job}", *STEP_OPTIONS, f"--nodelist={checked_node(node)}", "--", *command]


def reach_of(launcher: str, environ: Mapping[str, str]) -> Reach:
    """The way that a launcher takes: local, ssh, slurm, or deepspeed, whose nodes are reached by ssh.

    Raises:
        StageError: slurm without a job.
    """
    if launcher == "local":
        return LocalReach()
    if launcher != "slurm":
        return SshReach()
    job = environ.get("SLURM_JOB_ID", "")
    if not job.isdigit():
        raise StageError(
            "cluster.launcher is slurm, but this is no Slurm job",
            "llm-wizard run --submit makes one; inside salloc or sbatch it is found by SLURM_JOB_ID",
        )
    return SlurmReach(job)


def checked_node(name: str) -> str:
    """A name that ssh and srun take as a host and nothing else. Raises InputError."""
    if not NODE_NAME.fullmatch(name):
        raise InputError(f"{name!r} is no host name", "letters, digits, '.', '_' and '-', a letter or digit first")
    return name


def piped_python(python: str, name: str) -> list[str]:
    """A Python that runs what `piped_program` makes; `name` is what ps and tracebacks show."""
    return [python, *PYTHON_OPTIONS, "-c", READER, name]


def piped_program(file: Path, config: Mapping[str, Any]) -> bytes:
    """The stdin of `piped_python`: the program's length and text, then its one line of JSON."""
    text = file.read_bytes()
    return b"%d\n%b%b\n" % (len(text), text, json.dumps(dict(config)).encode())


def client_environment() -> dict[str, str]:
    """This process's environment for ssh, srun or a program of ours: without secrets, and without the mark of a run.

    What carries the mark is ended with the run; these must outlive it.
    """
    # A number of cores for each task would cut our one task down to that (srun(1), --exact).
    hidden = {MARK, "SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", *secret_names(os.environ)}
    return {name: value for name, value in os.environ.items() if name not in hidden}
