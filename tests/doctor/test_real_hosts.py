"""Three real hosts over the real ssh: network namespaces with a name, an address and an sshd of their own.

What is missing of the tools is installed once; skipped where the machine allows neither that nor network namespaces.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HEAD = "lwdoctor0"
NODES = ("lwdoctor1", "lwdoctor2", "lwdoctor3")
SSHD, IP = "/usr/sbin/sshd", "/sbin/ip"
PACKAGES = {SSHD: "openssh-server", IP: "iproute2", "/usr/bin/ssh": "openssh-client", "/bin/ping": "iputils-ping"}


def sh(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, check=check, capture_output=True, text=True)
    return done.stdout


@pytest.fixture(scope="module")
def tools() -> None:
    """The tools, and the right to make a network namespace."""
    if os.getuid() != 0:
        pytest.skip("network namespaces need root")
    if missing := [package for path, package in PACKAGES.items() if not Path(path).exists()]:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # no sshd is started
        for words in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            try:
                done = subprocess.run(["apt-get", "-q", *words], env=environment, capture_output=True, timeout=300)
            except (OSError, subprocess.TimeoutExpired) as error:
                pytest.skip(f"{', '.join(missing)} cannot be installed: {error}")
            if done.returncode and words != ["update"]:
                pytest.skip(f"{', '.join(missing)} cannot be installed: {done.stderr.decode()[-300:]}")
    trial = f"lwdoctor-{os.getpid()}"
    made = subprocess.run([IP, "netns", "add", trial], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this machine forbids network namespaces: {made.stderr.strip()}")
    sh(IP, "netns", "del", trial)


@pytest.fixture(scope="module")
def hosts(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder with the hosts' files; a command runs on the head by `ip netns exec lwdoctor0`."""
    folder = tmp_path_factory.mktemp("hosts")
    folder.chmod(0o755)
    for key in ("id", "hostkey"):
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    addresses = {HEAD: "10.78.0.1"} | {node: f"10.78.0.1{number}" for number, node in enumerate(NODES, 1)}
    names = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items())
    known = " ".join((folder / "hostkey.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text("".join(f"{node},{addresses[node]} {known}\n" for node in NODES))
    client = f"IdentityFile {folder}/id\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\nLogLevel ERROR\n"
    server = (
        f"Port 22\nHostKey {folder}/hostkey\nAuthorizedKeysFile {folder}/id.pub\nPermitRootLogin prohibit-password\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\n"
    )
    # A home of the hosts' own: they are killed at the end, and a start-up file of this machine's user may then hold a lock
    # (pyenv's, left behind, makes each of his shells wait for a minute).
    (folder / "home-of-hosts").mkdir()
    (folder / "sshd_config").write_text(server + f"SetEnv HOME={folder}/home-of-hosts\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    servers: list[subprocess.Popen[bytes]] = []
    lock = os.open("/run/lock/llm-wizard-hosts", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # the names are the machine's: a second session waits for the first
    try:
        take_down()
        for name in (HEAD, *NODES):
            sh(IP, "netns", "add", name)
            sh(IP, "-n", name, "link", "set", "lo", "up")
            private = Path("/etc/netns") / name
            (private / "ssh").mkdir(parents=True)
            (private / "hosts").write_text(names)
            (private / "ssh" / "ssh_config").write_text(client)
        sh(IP, "-n", HEAD, "link", "add", "br0", "type", "bridge")
        sh(IP, "-n", HEAD, "addr", "add", f"{addresses[HEAD]}/24", "dev", "br0")
        sh(IP, "-n", HEAD, "link", "set", "br0", "up")
        for number, node in enumerate(NODES, 1):
            sh(IP, "-n", HEAD, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", node)
            sh(IP, "-n", HEAD, "link", "set", f"v{number}", "master", "br0")
            sh(IP, "-n", HEAD, "link", "set", f"v{number}", "up")
            sh(IP, "-n", node, "addr", "add", f"{addresses[node]}/24", "dev", "eth0")
            sh(IP, "-n", node, "link", "set", "eth0", "up")
            script = f"hostname {node}; exec {SSHD} -D -e -f {folder}/sshd_config"
            start = [IP, "netns", "exec", node, "unshare", "--uts", "sh", "-c", script]
            servers.append(
                subprocess.Popen(start, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            )
        for node in NODES:
            for _ in range(50):
                if (
                    subprocess.run([IP, "netns", "exec", HEAD, "ssh", node, "true"], capture_output=True).returncode
                    == 0
                ):
                    break
                time.sleep(0.1)
        yield folder
    finally:
        take_down()
        for one in servers:
            one.wait()
        os.close(lock)


def take_down() -> None:
    """End the hosts and remove what they had; also those that a session which was killed has left."""
    for name in (HEAD, *NODES):
        for pid in sh(IP, "netns", "pids", name, check=False).split():
            os.kill(int(pid), signal.SIGKILL)
        sh(IP, "netns", "del", name, check=False)
        shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def argv_of(folder: Path, *argv: str) -> list[str]:
    """The verb run on the head, for the three nodes."""
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    nodes = ("--nodes", f"{NODES[0][:-1]}[1-3]", "--runs-dir", str(runs))
    return [IP, "netns", "exec", HEAD, sys.executable, "-m", "core.cli", "doctor", *nodes, *argv]


def environment_of(folder: Path) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "LLM_WIZARD_HOME": str(folder / "home")}


def verb(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv_of(folder, *argv), env=environment_of(folder), cwd=folder, capture_output=True, text=True
    )


def doctor(folder: Path, *argv: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The findings by check and node."""
    done = verb(folder, "--json", *argv)
    assert "Traceback" not in done.stderr, done.stderr
    return {(finding["id"], finding["node"]): finding for finding in json.loads(done.stdout)["findings"]}


def on_a_terminal(folder: Path, answer: str, *argv: str) -> tuple[int, str]:
    """Exit code and output where somebody sits there and answers."""
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    process = subprocess.Popen(
        argv_of(folder, *argv), env=environment_of(folder), cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(ours, 1 << 16):
            said += chunk
    os.close(ours)
    return process.wait(), said.decode()


def dot_ssh() -> dict[str, bytes]:
    """ssh's own, whatever HOME says."""
    folder = Path(pwd.getpwuid(os.getuid()).pw_dir, ".ssh")
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_three_healthy_hosts_pass_and_find_each_other(hosts: Path) -> None:
    before = dot_ssh()
    found = doctor(hosts, "--only", "ssh,network,fs.shared,fs.space,limits,python.env,net.gloo")
    bad = {key: finding for key, finding in found.items() if finding["status"] not in ("pass", "skip")}
    assert not bad
    for check in ("ssh.same_host", "net.hostname", "fs.shared", "clock.skew", "fleet.equal", "net.gloo"):
        assert found[check, "all"]["status"] == "pass", found[check, "all"]
    for node in NODES:
        assert found["ssh.batch", node]["status"] == "pass"
        assert found["net.port", node]["summary"] == "the head is reached"
        assert found["net.iface", node]["summary"] == "by eth0"
    assert dot_ssh() == before


def test_a_host_that_is_gone_and_one_whose_key_changed_leave_the_third(hosts: Path) -> None:
    before = dot_ssh()
    known = (hosts / "known_hosts").read_text()
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(hosts / "other"))
    other = " ".join((hosts / "other.pub").read_text().split()[:2])
    lines = [line for line in known.splitlines() if not line.startswith(NODES[2])]
    (hosts / "known_hosts").write_text("\n".join([*lines, f"{NODES[2]},10.78.0.13 {other}"]) + "\n")
    sh(IP, "-n", HEAD, "link", "set", "v2", "down")
    try:
        found = doctor(hosts, "--only", "ssh,limits,net.hostname")
    finally:
        sh(IP, "-n", HEAD, "link", "set", "v2", "up")
        (hosts / "known_hosts").write_text(known)
    assert found["ssh.batch", NODES[0]]["status"] == "pass"
    assert found["limits", NODES[0]]["status"] in ("pass", "warn")
    gone = found["ssh.batch", NODES[1]]
    assert gone["status"] in ("fail", "unknown")
    assert "timed out" in gone["found"] or "No route" in gone["found"] or "no answer" in gone["found"]
    assert found["limits", NODES[1]]["status"] == "unknown"
    changed = found["ssh.batch", NODES[2]]
    assert (changed["status"], changed["summary"]) == ("fail", "the host key has changed")
    assert not any("keygen -R" in line for line in changed["fix"]["preview"])
    assert dot_ssh() == before


def test_a_host_that_is_not_known_is_trusted_once_its_fingerprint_is_confirmed(hosts: Path) -> None:
    """By a configuration of our own: ~/.ssh stays as it is, and what is set there and in /etc/ssh still holds."""
    before, known, home = dot_ssh(), (hosts / "known_hosts").read_text(), hosts / "home"
    lines = [line for line in known.splitlines() if not line.startswith((NODES[1], NODES[2]))]
    (hosts / "known_hosts").write_text("\n".join(lines) + "\n")
    fingerprint = sh("ssh-keygen", "-lf", str(hosts / "hostkey.pub")).split()[1]
    try:
        found = doctor(hosts, "--only", "ssh.batch")
        assert found["ssh.batch", NODES[0]]["status"] == "pass"
        stranger = found["ssh.batch", NODES[1]]
        assert (stranger["status"], stranger["summary"]) == ("fail", "the host key is not known")
        assert stranger["fix"]["id"] == "ssh.config"
        assert f"# {NODES[1]}: {fingerprint} (ssh-ed25519)" in stranger["fix"]["preview"]
        fix = ("--only", "ssh.batch", "--fix", "ssh.config")
        everything = verb(hosts, "--only", "ssh.batch", "--fix", "--yes")
        assert (everything.returncode, everything.stdout.splitlines()) == (2, ["left as it is: ssh.config"])
        code, said = on_a_terminal(hosts, "n", *fix)
        assert code == 2
        assert said.count(fingerprint) == 2
        assert not (home / "ssh").exists()
        code, said = on_a_terminal(hosts, "y", *fix)
        assert code == 0, said
        assert "connects without a question" in said
        assert "StrictHostKeyChecking yes" in (home / "ssh" / "config").read_text()
        assert len((home / "ssh" / "known_hosts").read_text().splitlines()) == 2
    finally:
        (hosts / "known_hosts").write_text(known)
        shutil.rmtree(home, ignore_errors=True)
    assert dot_ssh() == before
