"""The survey of a node: says once what the machine is that it runs on, and ends.

Like the agent it is never started as a file: its text is piped into the training Python, here or over ssh, which may be an old
one. So: only the standard library, Python 3.8 and later, one file. One line of JSON follows the text:

    {"agent": the agent's text, for its reading of the GPUs, "folder": a folder that all nodes must share, "note": the name of a
     file in it, "nonce": what stands there, "peers": names of other nodes, the one where all meet first, "interface": name or ""}

It prints {"survey": "here"} at once, and then one line:

    {"survey": "done", "host": name, "machine": who else says the same is the same machine, or "", "python", "python_version",
     "cores", "memory": bytes, "gpus": [{"name", "memory": bytes}], "no_gpus": why not, "address", "interface": by which the peers
     are reached, "no_route": why not, "port": free, "not_shared": why not}

What may block for ever (the GPU driver, a name server, a network file system) is asked in threads of its own.
"""
# ruff: noqa: PTH116, PTH118, PTH123, UP031 (pathlib costs more to import than all that is read here)

from __future__ import annotations

import array
import fcntl
import json
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from typing import Any, Callable  # noqa: UP035 (collections.abc.Callable cannot be subscripted in 3.8)

DRIVER_S = 30.0
"""Without persistence mode the driver of eight GPUs takes ten seconds to wake."""
NAMES_S = 5.0
FOLDER_S = 10.0
LAG_S = 3.0
"""A network file system may show a new file late."""
END_S = 60
SIOCGIFCONF = 0x8912
PORTS = range(20000, 30000)
MOST_PEERS = 8


def text_in(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


class Look(threading.Thread):
    """A look that may never end."""

    def __init__(self, look: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._look = look
        self._arguments = arguments
        self._value: Any = None
        self._began = time.monotonic()
        self.start()

    def run(self) -> None:
        try:
            self._value = self._look(*self._arguments)
        except Exception as error:  # what cannot be seen must not keep the rest from being said
            self._value = {"trouble": repr(error)}

    def within(self, seconds: float, silent: str) -> dict[str, Any]:
        """What it saw, if it ends within so many seconds of its beginning; else {"trouble": silent}."""
        self.join(max(0.0, self._began + seconds - time.monotonic()))
        return self._value or {"trouble": silent}


# --- who and what


def machine_identity() -> str:
    """The same for two processes exactly if they are on one machine and in one network namespace; "" where it is unknown.

    A container with a network of its own is a machine of its own: it has addresses and ports of its own.
    """
    boot = text_in("/proc/sys/kernel/random/boot_id")
    try:
        network = os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return ""
    return f"{boot}:{network}" if boot else ""


def look_at_gpus(agent: dict[str, Any]) -> dict[str, Any]:
    """The GPUs that a process started here sees: the driver's list, narrowed by CUDA_VISIBLE_DEVICES as core.facts does."""
    seen = agent["Gpus"]().look(False)
    gpus = seen["gpus"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        wanted = [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
        # UUIDs and MIG names are counted, not resolved: the plan needs how many and how large.
        gpus = [gpus[int(name)] if name.isdigit() and int(name) < len(gpus) else gpus[0] for name in wanted if gpus]
    lost = [gpu for gpu in gpus if gpu["name"] is None or gpu["memory_total"] is None]
    trouble = ""
    if lost:
        which = ", ".join(str(gpu["index"]) for gpu in lost)
        trouble = "GPU {} does not answer ({})".format(which, seen["nvml"])
    elif not seen["gpus"] and seen["nvml"] not in ("ok", "absent"):
        trouble = "the NVIDIA driver does not work: {}".format(seen["nvml"])
    healthy = [{"name": gpu["name"], "memory": gpu["memory_total"]} for gpu in gpus if gpu not in lost]
    return {"gpus": healthy, "trouble": trouble}


# --- the network


def addresses() -> list[tuple[str, str]]:
    """Interface and IPv4 address, for each address of this machine."""
    size = 40 * 1024
    buffer = array.array("B", bytes(size))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("iL", size, buffer.buffer_info()[0])
        used = struct.unpack("iL", fcntl.ioctl(any_socket.fileno(), SIOCGIFCONF, request))[0]
    found = []
    for begin in range(0, used, 40):  # struct ifreq: 16 bytes name, then a sockaddr_in
        name = buffer[begin : begin + 16].tobytes().partition(b"\0")[0].decode("utf-8", "replace")
        found.append((name.partition(":")[0], socket.inet_ntoa(buffer[begin + 20 : begin + 24].tobytes())))
    return found


def look_at_route(peers: list[str], interface: str) -> dict[str, Any]:
    """The address of this machine at which the peers reach it, and the interface that has it."""
    own = addresses()
    if interface:
        for name, address in own:
            if name == interface:
                return {"address": address, "interface": name, "trouble": ""}
        there = ", ".join(f"{name} ({address})" for name, address in own)
        return {"trouble": f"no interface {interface} with an IPv4 address; there are {there}"}
    if not peers:
        return {"address": "127.0.0.1", "interface": "", "trouble": ""}
    troubles = []
    for peer in peers[:MOST_PEERS]:
        try:
            address = source_towards(peer)
        except OSError as error:
            troubles.append(f"{peer}: {error.strerror or error}")
            continue
        for name, one in own:
            if one == address:
                return {"address": address, "interface": name, "trouble": ""}
    # Names that only the head's ssh knows: the address by which it came is the best guess.
    came_to = os.environ.get("SSH_CONNECTION", "").split()[2:3]
    for name, one in own:
        if [one] == came_to:
            return {"address": one, "interface": name, "trouble": ""}
    return {"trouble": "no route to {}".format("; ".join(troubles) or ", ".join(peers[:MOST_PEERS]))}


def source_towards(peer: str) -> str:
    """The address from which this machine would send to a peer; nothing is sent. Raises OSError."""
    for *_, address in socket.getaddrinfo(peer, 9, socket.AF_INET, socket.SOCK_DGRAM):
        if str(address[0]).startswith("127."):
            continue  # Debian gives a machine's own name such an address
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    raise OSError("its name means this machine's loopback")


def free_port() -> int:
    """A TCP port on which nobody listens, and which no outgoing connection is given in the meantime."""
    given = text_in("/proc/sys/net/ipv4/ip_local_port_range").split()
    low, high = (int(given[0]), int(given[1])) if len(given) == 2 else (32768, 60999)
    outside = [port for port in PORTS if not low <= port <= high]
    for port in [*random.sample(outside, min(64, len(outside))), 0]:
        with socket.socket() as one:
            try:
                one.bind(("", port))
            except OSError:
                continue
            return int(one.getsockname()[1])
    return 0


# --- the shared folder


def look_at_folder(folder: str, note: str, nonce: str) -> dict[str, Any]:
    """Whether the head's note is there, and a file of ours can be put beside it."""
    path = os.path.join(folder, note)
    deadline = time.monotonic() + LAG_S
    while True:
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                seen = file.read(len(nonce) + 1)
            if seen == nonce:
                break
            trouble = "a file that the head wrote is empty or another one there"
        except OSError as error:
            trouble = error.strerror or str(error)
        if time.monotonic() > deadline:
            if not os.path.isdir(folder):  # noqa: PTH112
                return {"trouble": "there is no such folder"}
            return {"trouble": f"a file that the head writes there is not seen ({trouble})"}
        time.sleep(0.2)
    own = f"{path}.{os.uname().nodename}.{os.getpid()}"
    try:
        with open(own, "x"):
            pass
        os.unlink(own)  # noqa: PTH108
    except OSError as error:
        return {"trouble": f"it cannot be written: {error.strerror or error}"}
    return {"trouble": ""}


# --- the answer


def say(document: dict[str, Any]) -> None:
    line = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    while line:
        line = line[os.write(1, line) :]


def survey(config: dict[str, Any]) -> dict[str, Any]:
    agent: dict[str, Any] = {"__name__": "llm_wizard_agent"}
    exec(compile(config["agent"], "llm-wizard-agent", "exec"), agent)  # noqa: S102 (the head's own text, like this one)
    gpus = Look(look_at_gpus, agent)
    route = Look(look_at_route, config["peers"], config["interface"])
    folder = Look(look_at_folder, config["folder"], config["note"], config["nonce"])
    way = route.within(NAMES_S, "the names of the other nodes were not resolved within %.0f s" % NAMES_S)
    shared = folder.within(FOLDER_S, "the file system did not answer within %.0f s" % FOLDER_S)
    found = gpus.within(DRIVER_S, "the NVIDIA driver did not answer within %.0f s" % DRIVER_S)
    return {
        "survey": "done",
        "host": os.uname().nodename,
        "machine": machine_identity(),
        "python": sys.executable,
        "python_version": "%d.%d.%d" % sys.version_info[:3],
        "cores": len(os.sched_getaffinity(0)),
        "memory": agent["Machine"]().look()["memory_total"] or 0,
        "gpus": found.get("gpus", []),
        "no_gpus": found["trouble"],
        "address": way.get("address", ""),
        "interface": way.get("interface", ""),
        "no_route": way["trouble"],
        "port": free_port(),
        "not_shared": shared["trouble"],
    }


def main() -> None:
    signal.alarm(END_S)  # whatever hangs: nothing of ours is left on the node
    config = json.loads(sys.stdin.buffer.readline())
    say({"survey": "here"})
    say(survey(config))


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        pass
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # not sys.exit: a thread that the driver blocks would be waited for
