"""Machines as far as processes are concerned: process namespaces of this one, each seeing only its own, without any network."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

RELAY = str(Path(__file__).with_name("relay.py"))


class Machines:
    """A way to nodes like core.cluster.reach.SshReach, by nsenter instead of ssh."""

    kind = "ssh"

    def __init__(self, *names: str) -> None:
        self._first = {name: _start() for name in names}

    def argv(self, node: str, command: Sequence[str]) -> list[str]:
        """The command, on that machine."""
        if self._first[node].poll() is not None:
            return ["sh", "-c", 'echo "$1: Connection refused" >&2; exit 255', "sh", node]
        return [sys.executable, RELAY, node, *self._enter(node), *command]

    def _enter(self, node: str) -> list[str]:
        return ["nsenter", "--target", str(_inside(self._first[node])), "--pid", "--mount", "--"]

    def link(self, node: str, number: signal.Signals) -> None:
        """Stop or continue the connections to a node: SIGSTOP, SIGCONT; or SIGKILL, when both ends see them end."""
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if child.cmdline()[1:3] == [RELAY, node]:
                    child.send_signal(number)

    def kill(self, node: str) -> None:
        """Every process there, at once."""
        process = self._first[node]
        os.kill(_inside(process), signal.SIGKILL)
        process.wait()

    def revive(self, node: str) -> None:
        self._first[node] = _start()

    def run(self, node: str, *argv: str) -> str:
        """What a command there prints."""
        return subprocess.run([*self._enter(node), *argv], capture_output=True, text=True, check=True).stdout

    def processes(self, node: str, mark: str) -> list[str]:
        """The command lines of what carries the mark there."""
        script = (
            'for p in /proc/[0-9]*; do if grep -zqxF -- "LLM_WIZARD_RUN=$1" $p/environ 2>/dev/null && '
            "! grep -q '^State:.Z' $p/status; then tr '\\0' ' ' < $p/cmdline; echo; fi; done; true"
        )
        return self.run(node, "sh", "-c", script, "sh", mark).splitlines()

    def close(self) -> None:
        """End them all."""
        for node, process in self._first.items():
            if process.poll() is None:
                self.kill(node)


def _start() -> subprocess.Popen[bytes]:
    argv = ["unshare", "--pid", "--fork", "--mount-proc", "--", "sh", "-c", "echo; exec sleep infinity"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _inside(unshare: subprocess.Popen[bytes]) -> int:
    """The first process of the namespace, as this machine numbers it."""
    with open(f"/proc/{unshare.pid}/task/{unshare.pid}/children") as file:
        return int(file.read().split()[0])


@pytest.fixture
def machines() -> Iterator[Machines]:
    """Two machines, a and b."""
    if subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode:
        pytest.skip("process namespaces need root")
    made = Machines("a", "b")
    yield made
    made.close()
