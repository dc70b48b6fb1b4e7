"""What is wrong with a node that fell silent, and which of several signs of trouble is the cause of the others."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from core.cluster.reach import Reach
from core.exit_codes import ExitCode

LOOK_S = 0.9
"""For one look at a silent node: with Limits.silent it is named within 5 s."""
SLURMD_PORT = 6818
"""Where slurm.conf does not say otherwise."""


@dataclass(frozen=True)
class Sign:
    """Something that went wrong. `code` is an exit code, or -signal."""

    kind: str
    """"rank", "launcher", "start", "node" or "link"."""
    node: str
    text: str
    at: float
    rank: int | None = None
    code: int | None = None

    @property
    def weight(self) -> int:
        """The lower, the less it can be the consequence of something else.

        A node that goes ends the collectives, and with them the ranks, of the others. A rank that was killed did not fail over
        another's end, nor did one with an exit code of its own: with 1 end those that lose a peer. SIGTERM is what torchrun
        sends to the ranks beside one that failed.
        """
        if self.kind in ("node", "link"):
            return 0
        return 1 if self.kind == "start" or self.code not in (None, 1, ExitCode.INTERRUPTED, -signal.SIGTERM) else 2


def judge(signs: Iterable[Sign]) -> list[Sign]:
    """The causes among signs that came together: the first of the heaviest kind, and every node that is gone."""
    ordered = sorted(signs, key=lambda sign: (sign.weight, sign.at))
    return [sign for sign in ordered if sign is ordered[0] or sign.weight == 0]


def how(code: int | None) -> str:
    """The words for an exit code, or -signal."""
    if code is None:
        return "ended"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"


def how_work_ended(code: int | None) -> str:
    """The same for a rank or its launcher, which the kernel ends where memory runs out."""
    return how(code) + (" (out of memory?)" if code == -signal.SIGKILL else "")


@dataclass(frozen=True)
class Silent:
    """A node that is not heard; `kind` is "node" or "link"."""

    kind: str
    text: str


def look_at(reach: Reach, node: str, address: tuple[str, int] | None) -> Silent:
    """Why a node may be silent, found within about LOOK_S; `address` is where its sshd was when it was last heard."""
    if reach.kind == "local":
        return Silent(
            "link", f"{node}: what starts the ranks here does not answer (stopped, or the machine is overloaded)"
        )
    daemon, words = "sshd", ""
    if reach.kind == "slurm":
        daemon = "slurmd"
        address, words = _ask_slurm(node)
    if address is None:
        return Silent("link", f"{node}: no contact")
    ping = _start_ping(address[0])
    port = _try_port(*address)
    if port == "refused":
        text = (
            f"{node}: the machine answers, but its {daemon} is gone ({address[0]} port {address[1]} is closed){words}"
        )
        return Silent("node", text)
    if port == "open" or _ends_well(ping):
        text = f"{node}: the machine answers, but nothing comes over the connection to it any more{words}"
        return Silent("link", text)
    return Silent(
        "link", f"{node}: no contact; its link is down, its packets are dropped, or the machine is off{words}"
    )


def _ask_slurm(node: str) -> tuple[tuple[str, int], str]:
    """The address and port of a node's slurmd, and how Slurm says that the node is."""
    said = _scontrol("show", "node", node, "--oneliner")
    address = re.search(r"\bNodeAddr=([A-Za-z0-9][A-Za-z0-9.:_-]*)", said)
    state = re.search(r"\bState=([A-Z+_*~#!%$@^-]+)", said)
    port = re.search(r"\bPort=(\d+)", said) or re.search(r"^SlurmdPort\s*= (\d+)", _scontrol("show", "config"), re.M)
    words = f"; Slurm says {state[1]}" if state else ""
    return (address[1] if address else node, int(port[1]) if port else SLURMD_PORT), words


def _scontrol(*argv: str) -> str:
    try:
        return subprocess.run(
            ["scontrol", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LOOK_S,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _start_ping(host: str) -> subprocess.Popen[bytes] | None:
    try:
        return subprocess.Popen(
            ["ping", "-n", "-q", "-c1", "-W1", "--", host],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:  # no ping here: the port must do
        return None


def _ends_well(ping: subprocess.Popen[bytes] | None) -> bool:
    if ping is None:
        return False
    try:
        return ping.wait(LOOK_S) == 0
    except subprocess.TimeoutExpired:
        ping.kill()
        ping.wait()
        return False


def _try_port(host: str, port: int) -> str | None:
    """ "open" or "refused"; None for no answer."""
    try:
        socket.create_connection((host, port), LOOK_S).close()
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return None
    return "open"
