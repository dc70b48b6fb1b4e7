"""Checks of the way from this machine to the others. Their observations are made here, by the connections themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.doctor.check import Check, Values
from core.doctor.finding import Verdict
from core.doctor.fix import AddLines, Fix, WriteFile, advice
from core.doctor.fold import nodes_text
from core.doctor.needs import Needs
from core.language import tr, tr_later

SLOW_S = 2.0


def has_changed(words: str) -> bool:
    """Whether ssh says that a node has another key than the one it knows."""
    return "HOST IDENTIFICATION HAS CHANGED" in words or ("host key" in words.lower() and "changed" in words.lower())


def is_unknown(words: str) -> bool:
    """Whether ssh refused a node because it knows no key of it."""
    return "Host key verification failed" in words and not has_changed(words)


def batch(value: Values, needs: Needs) -> Verdict:
    """Every launcher starts ranks over ssh without a terminal: a password, an unknown key or a question ends it."""
    if not value["asked"]:
        return Verdict("skip", tr("one machine: no ssh is needed"))
    if value["connected"]:
        return Verdict("pass", tr("connects without a question"))
    words = str(value["words"])
    if has_changed(words):
        summary = tr("the host key has changed")
        fix = advice(
            "ssh.batch", "# " + tr("ask an administrator whether the machine was reinstalled, before anything else")
        )
    elif is_unknown(words):
        summary = tr("the host key is not known")
        fix = _trust(value) or advice(
            "ssh.batch", f"ssh-keyscan {value['node']} | ssh-keygen -lf -", f"ssh {value['node']} true"
        )
    elif "Permission denied" in words:
        summary = tr("the key is not accepted")
        fix = advice("ssh.batch", "ssh-keygen -t ed25519", f"ssh-copy-id {value['node']}")
    else:
        summary = tr("no connection")
        fix = advice("ssh.batch", f"ssh -v -o BatchMode=yes {value['node']} true")
    return Verdict(
        "fail",
        summary,
        expected=tr("`ssh -o BatchMode=yes NODE true` works"),
        found=words or tr("no words of ssh's"),
        why=tr("ranks are started over it, without anybody to answer"),
        fix=fix,
    )


def _trust(value: Values) -> Fix | None:
    """The keys that the node offers go into a file of our own, with an ssh configuration that names it."""
    offered = value.get("offered")
    if offered is None:
        return None
    config = Path(str(offered["config_file"]))
    return Fix(
        "ssh.config",
        "safe",
        (
            AddLines(str(config.with_name("known_hosts")), tuple(map(str, offered["keys"]))),
            WriteFile(str(config), str(offered["config"])),
        ),
        (
            *(f"# {line}" for line in offered["fingerprints"]),
            "# " + tr("on the node itself: {command}", command="cat /etc/ssh/ssh_host_*_key.pub | ssh-keygen -lf -"),
        ),
        tr("are these the node's own fingerprints? [y/N] "),
    )


def latency(value: Values, needs: Needs) -> Verdict:
    """A log-in that takes seconds makes every start, look and stop of a run take minutes on many nodes."""
    if not value["asked"]:
        return Verdict("skip", tr("one machine: no ssh is needed"))
    if not value["connected"]:
        return Verdict("skip", tr("no connection"))
    seconds = float(value["seconds"])
    if seconds > SLOW_S:
        return Verdict(
            "warn",
            tr("the log-in took {seconds} s", seconds=f"{seconds:.1f}"),
            expected=tr("less than {seconds} s", seconds=SLOW_S),
            found=f"{seconds:.1f} s",
            why=tr("every start and stop waits for it, node by node"),
            fix=advice(
                "ssh.latency", "# sshd_config: UseDNS no", "# ~/.ssh/config: ControlMaster auto, ControlPersist 60"
            ),
        )
    return Verdict("pass", tr("log-in in {seconds} s", seconds=f"{seconds:.2f}"))


def same_host(value: Values, needs: Needs) -> Verdict:
    """Two names of one machine would put two nodes' ranks on the same GPUs."""
    if not value["boot"] and not value["machine"]:
        raise ValueError("neither machine-id nor boot id")
    return Verdict("skip", tr("one machine: nothing to confuse it with"))


def compare_hosts(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """Machines are told apart by boot id and addresses: cloned images share their machine-id, namespaces their boot id."""
    by_machine: dict[tuple[str, ...], list[str]] = {}
    for node, value in values.items():
        addresses = tuple(address for address in value["addresses"] if not address.startswith("127."))
        by_machine.setdefault((str(value["boot"]), *addresses), []).append(node)
    doubled = [nodes for nodes in by_machine.values() if len(nodes) > 1]
    if not doubled:
        return {"all": Verdict("pass", tr("{count} different machines", count=len(values)))}
    verdict = Verdict(
        "fail",
        tr("{nodes} are one machine", nodes="; ".join(nodes_text(nodes) for nodes in doubled)),
        expected=tr("a machine a name"),
        found=", ".join(f"{node}: {values[node]['host']}" for nodes in doubled for node in nodes),
        why=tr("their ranks would share the same GPUs"),
        fix=advice("ssh.same_host", "# " + tr("take one of the names out of the hostfile")),
    )
    return {"all": verdict}


CHECKS: tuple[Check, ...] = (
    Check("ssh.batch", tr_later("ssh without a question"), "ssh", batch, scope="pair", fix="ssh.config"),
    Check("ssh.latency", tr_later("the time of a log-in"), "ssh", latency, scope="pair", observes="ssh.batch"),
    Check("ssh.same_host", tr_later("one machine a name"), "ssh", same_host, scope="fleet", compare=compare_hosts),
)
