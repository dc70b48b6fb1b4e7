"""The processes of a real host, looked at from outside: by the process namespace that they are in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process on a host."""

    pid: int
    """As the host numbers it."""
    machine_pid: int
    """As this machine numbers it: for os.kill."""
    argv: tuple[str, ...]
    env: Mapping[str, str]


def processes_in(namespace: int) -> list[Process]:
    """The living processes of a process namespace, an open /proc/PID/ns/pid, by their numbers there."""
    wanted = f"pid:[{os.stat(namespace).st_ino}]"
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is a zombie
            if os.readlink(entry / "ns/pid") != wanted:
                continue
            lines = (entry / "status").read_text().splitlines()
            status = {name: value for name, _, value in (line.partition(":\t") for line in lines)}
            if status["State"].startswith(("Z", "X")):
                continue
            env = dict(word.split("=", 1) for word in _words(entry / "environ") if "=" in word)
            argv = tuple(_words(entry / "cmdline"))
            found.append(Process(int(status["NSpid"].split()[-1]), int(entry.name), argv, env))
    return sorted(found, key=lambda process: process.pid)


def _words(file: Path) -> list[str]:
    return file.read_bytes().decode(errors="replace").split("\0")[:-1]
