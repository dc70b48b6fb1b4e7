"""The network of the real hosts: a switch in a network namespace without processes, and a cable from it to each host's eth0."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from cluster.namespaces import new_network, popen_inside
from cluster.packages import PATH


class Switch:
    """Networks by host; they are there from `up` to `down`, whether the hosts live or not."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = addresses
        self.networks: dict[str, int] = {}
        """The open files of the hosts' network namespaces."""
        self._own = -1

    def up(self) -> None:
        """Make the networks and join them."""
        self._own = new_network()
        self.networks = {host: new_network() for host in self._addresses}
        wiring = ["link add br0 type bridge", "link set br0 up"]
        for host, network in self.networks.items():
            other_end = f"peer name eth0 address {self._mac(host)} netns /proc/{os.getpid()}/fd/{network}"
            wiring += [f"link add {host} type veth {other_end}", f"link set {host} master br0", f"link set {host} up"]
        _ip(self._own, wiring)
        for host, network in self.networks.items():
            address = f"addr add {self._addresses[host]}/24 dev eth0"
            _ip(network, ["link set lo up", address, "link set eth0 up"])

    def down(self) -> None:
        """Give them up; the kernel removes them with the last process inside."""
        for network in self.networks.values():
            os.close(network)
        self.networks = {}
        if self._own >= 0:
            os.close(self._own)
            self._own = -1

    def pull_cable(self, host: str) -> None:
        _ip(self._own, [f"link set {host} down"])

    def plug_in(self, host: str) -> None:
        _ip(self._own, [f"link set {host} up"])

    def drop_packets(self, host: str) -> None:
        """Forward nothing from it or to it. Its address stays resolved at its peers, as behind a router: no error comes back."""
        for one, peers in self._peers(host):
            pinned = (f"{self._addresses[peer]} lladdr {self._mac(peer)}" for peer in peers)
            _ip(self.networks[one], [f"neigh replace {peer} dev eth0 nud permanent" for peer in pinned])
        self._forward(host, "0")  # BR_STATE_DISABLED; the carrier stays

    def accept_packets(self, host: str) -> None:
        """End drop_packets."""
        self._forward(host, "3")  # BR_STATE_FORWARDING
        for one, peers in self._peers(host):
            _ip(self.networks[one], [f"neigh del {self._addresses[peer]} dev eth0" for peer in peers])

    def _peers(self, host: str) -> Iterator[tuple[str, list[str]]]:
        """Of each host those of its peers that dropping one host's packets cuts it off from."""
        for one in self._addresses:
            yield one, [other for other in self._addresses if other != one and host in (one, other)]

    def _forward(self, host: str, state: str) -> None:
        _command(self._own, ["bridge", "link", "set", "dev", host, "state", state])

    def _mac(self, host: str) -> str:
        return "02:00:" + ":".join(f"{int(part):02x}" for part in self._addresses[host].split("."))


def _ip(network: int, lines: Sequence[str]) -> None:
    _command(network, ["ip", "-batch", "-"], "\n".join(lines) + "\n")


def _command(network: int, argv: Sequence[str], text: str = "") -> None:
    """A command in a network; RuntimeError with its words where it fails."""
    pipe = subprocess.PIPE
    with popen_inside(
        {"net": network}, argv, env={"PATH": PATH}, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True
    ) as process:
        said, _ = process.communicate(text)
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {said}{text}")
