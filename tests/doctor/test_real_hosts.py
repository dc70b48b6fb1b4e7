"""Three real nodes over the real ssh (tests/cluster/hosts.py)."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from cluster.hosts import Hosts, hosts_or_skip


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """The head, and the three nodes that the verb is run for."""
    yield from hosts_or_skip(nodes=3)


def argv_of(hosts: Hosts, *argv: str) -> list[str]:
    runs = hosts.folder / "runs"
    runs.mkdir(exist_ok=True)
    nodes = ("--nodes", "lwnode[1-3]", "--runs-dir", str(runs))
    return [sys.executable, "-m", "core.cli", "doctor", *nodes, *argv]


def verb(hosts: Hosts, *argv: str) -> subprocess.CompletedProcess[str]:
    """`llm-wizard doctor` on the head."""
    return hosts.run(hosts.head, argv_of(hosts, *argv), cwd=str(hosts.folder))


def doctor(hosts: Hosts, *argv: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The findings by check and node."""
    done = verb(hosts, "--json", *argv)
    assert "Traceback" not in done.stderr, done.stderr
    return {(finding["id"], finding["node"]): finding for finding in json.loads(done.stdout)["findings"]}


def on_a_terminal(hosts: Hosts, answer: str, *argv: str) -> tuple[int, str]:
    """Exit code and output where somebody sits there and answers."""
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    process = hosts.popen(
        hosts.head, argv_of(hosts, *argv), cwd=str(hosts.folder), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(ours, 1 << 16):
            said += chunk
    os.close(ours)
    return process.wait(), said.decode()


def known_are(hosts: Hosts, lines: list[str]) -> dict[str, bytes]:
    """Give the head's ssh these known hosts; every ~/.ssh as it is then, which no doctor may change."""
    hosts.known_hosts.write_text("".join(f"{line}\n" for line in lines))
    return hosts.dot_ssh()


def test_three_healthy_hosts_pass_and_find_each_other(hosts: Hosts) -> None:
    before = hosts.dot_ssh()
    found = doctor(hosts, "--only", "ssh,network,fs.shared,fs.space,limits,python.env,net.gloo")
    bad = {key: finding for key, finding in found.items() if finding["status"] not in ("pass", "skip")}
    assert not bad
    for check in ("ssh.same_host", "net.hostname", "fs.shared", "clock.skew", "fleet.equal", "net.gloo"):
        assert found[check, "all"]["status"] == "pass", found[check, "all"]
    for node in hosts.nodes:
        assert found["ssh.batch", node]["status"] == "pass"
        assert found["net.port", node]["summary"] == "the head is reached"
        assert found["net.iface", node]["summary"] == "by eth0"
    assert hosts.dot_ssh() == before


def test_a_host_that_is_gone_and_one_whose_key_changed_leave_the_third(hosts: Hosts) -> None:
    first, second, third = hosts.nodes
    known = hosts.known_hosts.read_text().splitlines()
    other = (hosts.folder / first / "hostkey.pub").read_text()  # not the third's
    kept = [line for line in known if not line.startswith(third)]
    before = known_are(hosts, [*kept, f"{third},{hosts.addresses[third]} {other.strip()}"])
    hosts.link_down(second)
    try:
        found = doctor(hosts, "--only", "ssh,limits,net.hostname")
        assert hosts.dot_ssh() == before
    finally:
        hosts.link_up(second)
        known_are(hosts, known)
    assert found["ssh.batch", first]["status"] == "pass"
    assert found["limits", first]["status"] in ("pass", "warn")
    gone = found["ssh.batch", second]
    assert gone["status"] in ("fail", "unknown")
    assert "timed out" in gone["found"] or "No route" in gone["found"] or "no answer" in gone["found"]
    assert found["limits", second]["status"] == "unknown"
    changed = found["ssh.batch", third]
    assert (changed["status"], changed["summary"]) == ("fail", "the host key has changed")
    assert not any("keygen -R" in line for line in changed["fix"]["preview"])


def test_a_host_that_is_not_known_is_trusted_once_its_fingerprint_is_confirmed(hosts: Hosts) -> None:
    """By a configuration of our own: ~/.ssh stays as it is, and what is set there and in /etc/ssh still holds."""
    first, *strangers = hosts.nodes
    home = hosts.folder / "wizard-home"
    known = hosts.known_hosts.read_text().splitlines()
    before = known_are(hosts, [line for line in known if not line.startswith(tuple(strangers))])
    keys = (["ssh-keygen", "-lf", str(hosts.folder / node / "hostkey.pub")] for node in strangers)
    fingerprints = [subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()[1] for argv in keys]
    try:
        found = doctor(hosts, "--only", "ssh.batch")
        assert found["ssh.batch", first]["status"] == "pass"
        stranger = found["ssh.batch", strangers[0]]
        assert (stranger["status"], stranger["summary"]) == ("fail", "the host key is not known")
        assert stranger["fix"]["id"] == "ssh.config"
        for node, fingerprint in zip(strangers, fingerprints, strict=True):
            assert f"# {node}: {fingerprint} (ssh-ed25519)" in found["ssh.batch", node]["fix"]["preview"]
        fix = ("--only", "ssh.batch", "--fix", "ssh.config")
        everything = verb(hosts, "--only", "ssh.batch", "--fix", "--yes")
        assert (everything.returncode, everything.stdout.splitlines()) == (2, ["left as it is: ssh.config"])
        code, said = on_a_terminal(hosts, "n", *fix)
        assert code == 2
        assert [said.count(fingerprint) for fingerprint in fingerprints] == [1, 1]
        assert not (home / "ssh").exists()
        code, said = on_a_terminal(hosts, "y", *fix)
        assert code == 0, said
        assert "connects without a question" in said
        assert "StrictHostKeyChecking yes" in (home / "ssh" / "config").read_text()
        assert len((home / "ssh" / "known_hosts").read_text().splitlines()) == 2
        assert hosts.dot_ssh() == before
    finally:
        known_are(hosts, known)
        shutil.rmtree(home, ignore_errors=True)
