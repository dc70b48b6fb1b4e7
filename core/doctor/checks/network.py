"""Checks of names, interfaces, ports and links between the nodes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from core.doctor.check import Check, Values
from core.doctor.finding import Verdict
from core.doctor.fix import advice
from core.doctor.fold import differences, each_alone, fold
from core.doctor.needs import Needs
from core.language import tr, tr_later

MANY_LINK_DOWNS = 10
"""An InfiniBand link that went down this often since the driver was loaded is not a maintenance any more."""


def _alone(needs: Needs) -> Verdict | None:
    return Verdict("skip", tr("one machine: it talks to itself only")) if len(needs.nodes) < 2 else None


def hostname(value: Values, needs: Needs) -> Verdict:
    """Ranks find each other by name: a name that is not known, or is 127.0.0.1 to its own machine, ends in a time-out."""
    if skip := _alone(needs):
        return skip
    unknown = [name for name, address in value["peers"].items() if address is None]
    if unknown:
        return Verdict(
            "fail",
            tr("{node} does not know {names}", node=value["host"], names=", ".join(unknown)),
            expected=tr("every node's name resolves"),
            found=", ".join(f"{name}: {address}" for name, address in value["peers"].items()),
            why=tr("the rendezvous waits for an address that never comes"),
            fix=advice("net.hostname", "# " + tr("an administrator adds them to DNS or /etc/hosts of every node")),
        )
    own = str(value["own"])
    if value["host"] in value["peers"] and own.startswith("127."):
        return Verdict(
            "fail",
            tr("{node} takes its own name for {address}", node=value["host"], address=own),
            expected=tr("an address that other nodes can reach"),
            found=own,
            why=tr("as the head it would listen where nobody else can come"),
            fix=advice(
                "net.hostname", f"# /etc/hosts: {tr('take the name out of the line of {address}', address=own)}"
            ),
        )
    return Verdict("pass", tr("{count} names resolve", count=len(value["peers"])))


def compare_names(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """Every node must mean the same machine by a name."""
    verdicts = each_alone(values, needs, hostname)
    if "all" not in verdicts:
        return verdicts
    for name in needs.nodes:
        meant = {node: str(value["peers"].get(name)) for node, value in values.items() if node != name}
        if len(set(meant.values())) > 1:
            return {
                "all": Verdict(
                    "fail",
                    tr("{name} is not the same machine everywhere", name=name),
                    expected=tr("one address on every node"),
                    found=fold(meant),
                    why=tr("ranks would meet at different places"),
                    fix=advice("net.hostname", "# " + tr("an administrator makes /etc/hosts equal on every node")),
                )
            }
    return verdicts


def interface(value: Values, needs: Needs) -> Verdict:
    """NCCL and gloo take the first interface unless they are told: a bridge of Docker's makes every node listen on 172.17.0.1."""
    interfaces = {entry["name"]: entry for entry in value["interfaces"]}
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        stated = str(value["variables"][variable])
        if not stated or stated.startswith("^"):
            continue
        exact = stated.startswith("=")
        names = [name.strip() for name in stated.lstrip("=").split(",")]
        meant = [
            entry
            for entry in interfaces.values()
            if any(entry["name"] == name or (not exact and entry["name"].startswith(name)) for name in names)
        ]
        if not any(entry["up"] and entry["address"] for entry in meant) or (
            len(needs.nodes) > 1 and all(entry["name"] == "lo" or entry["name"].startswith("docker") for entry in meant)
        ):
            return Verdict(
                "fail",
                tr("{variable}={stated} names no usable interface", variable=variable, stated=stated),
                expected=tr("an interface that is up and has an address"),
                found=", ".join(f"{name} ({entry['address'] or '-'})" for name, entry in interfaces.items()),
                why=tr("ranks would wait for each other on it until they time out"),
                fix=advice("net.iface", f"unset {variable}"),
                stages=needs.training,
            )
    if skip := _alone(needs):
        return skip
    lost = [node for node, route in value["routes"].items() if not route.get("interface") and not route.get("local")]
    if lost:
        return Verdict(
            "fail",
            tr("no route to {nodes}", nodes=", ".join(lost)),
            expected=tr("a route to every node"),
            found=", ".join(
                f"{node}: {route.get('error') or route.get('address')}" for node, route in value["routes"].items()
            ),
            why=tr("ranks on them are never reached"),
            fix=advice("net.iface", "ip route"),
        )
    used = sorted({str(route["interface"]) for route in value["routes"].values() if not route.get("local")})
    return Verdict("pass", tr("by {interfaces}", interfaces=", ".join(used)))


def port(value: Values, needs: Needs) -> Verdict:
    """The ranks meet at one port of the head: it must be free there, and no firewall may stand before it."""
    if not value["free"] and value["reached"] is None:
        return Verdict(
            "warn",
            tr("port {port} is taken", port=value["port"]),
            expected=tr("a free port for the rendezvous"),
            found=str(value["error"]),
            why=tr("a launcher with a fixed port ends with “Address already in use”; ours takes a free one"),
            fix=advice("net.port", f"ss -ltnp | grep :{value['port']}"),
        )
    if value["reached"] is False:
        return Verdict(
            "fail",
            tr("a port of the head cannot be reached"),
            expected=tr("a connection from every node to the head"),
            found=str(value["error"]),
            why=tr("the rendezvous would time out: a firewall stands between"),
            fix=advice("net.port", "# " + tr("an administrator opens the ports between the nodes")),
            stages=needs.training,
        )
    return Verdict(
        "pass", tr("port {port} is free", port=value["port"]) if value["reached"] is None else tr("the head is reached")
    )


def mtu(value: Values, needs: Needs) -> Verdict:
    """Where one switch passes smaller packets than the interfaces send, small messages arrive and large ones vanish."""
    if skip := _alone(needs):
        return skip
    paths = dict(value["paths"])
    holes = [node for node, path in paths.items() if path["answers"] and not path["large"]]
    if holes:
        return Verdict(
            "fail",
            tr("packets of full size do not reach {nodes}", nodes=", ".join(holes)),
            expected=tr("packets as large as the interface's MTU arrive"),
            found=", ".join(f"{node}: MTU {paths[node]['mtu']}" for node in holes),
            why=tr("ranks connect and then hang in their first large message"),
            fix=advice("net.mtu", "# " + tr("an administrator sets the same MTU on interfaces and switches")),
        )
    if not any(path["answers"] for path in paths.values()):
        return Verdict("skip", tr("no node answers a ping"))
    return Verdict("pass", ", ".join(f"{node}: MTU {path['mtu']}" for node, path in paths.items()))


def compare_mtus(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """One MTU on all nodes."""
    bad = {node: verdict for node, value in values.items() if (verdict := mtu(value, needs)).status == "fail"}
    sizes = {
        node: "/".join(sorted({str(path["mtu"]) for path in value["paths"].values()})) or "-"
        for node, value in values.items()
    }
    if set(sizes.values()) == {"-"}:
        return bad or {"all": Verdict("skip", tr("no node answers a ping"))}
    return bad or differences(
        sizes, tr("the same MTU on every node"), tr("large messages vanish between nodes with different ones"), "warn"
    )


def infiniband(value: Values, needs: Needs) -> Verdict:
    """A port that is down or slow takes its node's traffic to Ethernet, and every collective with it."""
    ports = [entry for entry in value["ports"] if entry["link_layer"] != "Ethernet" or "ACTIVE" in str(entry["state"])]
    if not ports:
        return Verdict("skip", tr("no InfiniBand on this machine"))
    down = [
        f"{entry['device']}/{entry['port']}: {entry['state']}" for entry in ports if "ACTIVE" not in str(entry["state"])
    ]
    if down:
        return Verdict(
            "fail",
            tr("InfiniBand ports are not active: {ports}", ports=", ".join(down)),
            expected="ACTIVE",
            found=", ".join(down),
            why=tr("collectives take another, slower way, or hang"),
            fix=advice(
                "net.ib",
                "ibstat",
                "export NCCL_IB_HCA=" + ",".join(e["device"] for e in ports if "ACTIVE" in str(e["state"])),
            ),
            stages=needs.training,
        )
    flapping = [f"{e['device']}: {e['link_downed']}" for e in ports if (e["link_downed"] or 0) > MANY_LINK_DOWNS]
    if flapping:
        return Verdict(
            "warn",
            tr("InfiniBand links went down again and again: {ports}", ports=", ".join(flapping)),
            expected=tr("a link that stays up"),
            found=", ".join(flapping),
            why=tr("a cable or a port that is about to fail"),
            stages=needs.training,
        )
    rates = sorted({str(entry["rate"]) for entry in ports})
    if len(rates) > 1:
        return Verdict(
            "warn",
            tr("InfiniBand ports of different speeds: {rates}", rates=", ".join(rates)),
            expected=tr("one speed"),
            found=", ".join(f"{entry['device']}: {entry['rate']}" for entry in ports),
            why=tr("collectives go at the slowest port's speed"),
            stages=needs.training,
        )
    return Verdict("pass", tr("{count} ports, {rate}", count=len(ports), rate=rates[0]))


def compare_infiniband(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """A node with fewer or slower ports than its peers."""
    verdicts = {node: infiniband(value, needs) for node, value in values.items()}
    bad = {node: verdict for node, verdict in verdicts.items() if verdict.status in ("fail", "warn")}
    if bad or all(verdict.status == "skip" for verdict in verdicts.values()):
        return bad or {"all": next(iter(verdicts.values()))}
    texts = {node: verdict.summary for node, verdict in verdicts.items()}
    return differences(
        texts, tr("the same ports on every node"), tr("collectives go at the slowest port's speed"), "warn"
    )


def gloo(value: Values, needs: Needs) -> Verdict:
    """An all-reduce over all nodes on CPUs shows at once whether they can meet and exchange numbers."""
    return _collective(value, needs, "gloo")


def nccl(value: Values, needs: Needs) -> Verdict:
    """The collective of the training itself, with large messages: what hangs or is slow here hangs or is slow there."""
    return _collective(value, needs, "nccl")


def _collective(value: Values, needs: Needs, name: str) -> Verdict:
    if not value["asked"]:
        return Verdict("skip", tr("one machine: it talks to itself only"))
    if value["ok"]:
        return Verdict("pass", tr("all-reduce over all nodes, {speed} GB/s", speed=f"{float(value['gb_per_s']):.2g}"))
    return Verdict(
        "fail",
        tr("the all-reduce ({backend}) failed at {stage}", backend=name, stage=value.get("stage") or tr("its start")),
        expected=tr("every node takes part"),
        found=str(value["error"]),
        why=tr("the training would hang or end at the same place"),
        fix=advice(f"net.{name}", "# " + tr("take the node out of the hostfile, or mend what the other findings name")),
        stages=needs.training,
    )


CHECKS: tuple[Check, ...] = (
    Check("net.hostname", tr_later("the nodes' names"), "network", hostname, scope="fleet", compare=compare_names),
    Check("net.iface", tr_later("the network interfaces"), "network", interface, stages="training"),
    Check("net.port", tr_later("the rendezvous port"), "network", port, scope="pair", stages="training"),
    Check("net.mtu", tr_later("the size of packets"), "network", mtu, scope="fleet", compare=compare_mtus),
    Check("net.ib", tr_later("InfiniBand"), "network", infiniband, compare=compare_infiniband, stages="training"),
    Check(
        "net.gloo",
        tr_later("an all-reduce on CPUs"),
        "network",
        gloo,
        scope="fleet",
        tier="full",
        compare=partial(each_alone, judge=gloo),
    ),
    Check(
        "net.nccl",
        tr_later("an all-reduce on GPUs"),
        "network",
        nccl,
        scope="fleet",
        tier="deep",
        compare=partial(each_alone, judge=nccl),
    ),
)
