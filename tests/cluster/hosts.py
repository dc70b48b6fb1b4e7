"""Real hosts on this machine, for runs on several nodes: a head `lwhead` and nodes `lwnode1` ... with an sshd each.

    with Hosts(nodes=4) as hosts:
        hosts.run("lwhead", ["ssh", "lwnode1", "hostname"]).stdout        # "lwnode1\\n"

A host has namespaces of its own for processes, network, mounts, host name and shared memory, so it sees its own processes only
(killing its first process ends them all, and no other), has the address 10.77.0.N on eth0, and has its own /run, /dev/shm,
/proc, boot id and home of root, with ssh's files in it. All else of the file system is the machine's, and shared. A switch in a
network namespace without processes joins them; nothing reaches the machine's own network.

Nothing is machine-wide: no named network namespace, no file in /etc. Two sessions have each their own lwhead, and when a
session is killed the kernel ends its hosts. Needs root. As a command, in the tests folder: python -m cluster.hosts [COMMAND]
runs a command (bash) on the head of four hosts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster import packages
from cluster.namespaces import new_network, open_namespaces, popen_inside
from cluster.packages import PATH, CannotMakeHosts
from cluster.slurm_hosts import Slurm

HEAD = "lwhead"
REPOSITORY = Path(__file__).parents[2]
FIRST_PROCESS = """
set -e
exec 2>&1
host=$1 folder=$2
hostname "$host"
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir /run/sshd /run/lock
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/$host/hostname" /etc/hostname
mount --bind "$folder/passwd" /etc/passwd
mount --bind "$folder/$host/home" "$folder/home"
mount --bind "$folder/$host/boot_id" /proc/sys/kernel/random/boot_id
if [ -e "$folder/ld.so.cache" ]; then
    mount --bind "$folder/ld.so.cache" /etc/ld.so.cache
    ln -s "$folder/$host/gpus" /run/fake_nvml
fi
exec /usr/sbin/sshd -D -e -f "$folder/sshd_config" -h "$folder/$host/hostkey"
"""
"""A host from its start on: sshd is its first process, and takes in what others leave behind."""


@dataclass(frozen=True)
class Process:
    """A process on a host."""

    pid: int
    """As the host numbers it."""
    machine_pid: int
    """As this machine numbers it: for os.kill."""
    argv: tuple[str, ...]
    env: Mapping[str, str]


class Hosts:
    """The hosts; they are there from `up` to `down`, or inside `with`.

    nodes: how many beside the head, at most 240. slurm: whether Slurm is up on them. gpus: whether each host finds a
    libnvidia-ml.so.1 as its driver; `set_gpus` says which GPUs a host has, none at first. folder: for their files, a new one
    in /tmp otherwise. CannotMakeHosts, from `up`, where this machine forbids namespaces or lacks what it takes.
    """

    def __init__(self, nodes: int = 4, slurm: bool = False, gpus: bool = False, folder: Path | None = None) -> None:
        self.head = HEAD
        self.nodes = tuple(f"lwnode{number}" for number in range(1, nodes + 1))
        self.names = (self.head, *self.nodes)
        self.addresses = {HEAD: "10.77.0.1"} | {node: f"10.77.0.{10 + n}" for n, node in enumerate(self.nodes, 1)}
        self._made_folder = folder is None
        self.folder = folder or _new_folder()
        self._gpus = gpus
        self._networks: dict[str, int] = {}
        self._first: dict[str, subprocess.Popen[bytes]] = {}
        self._namespaces: dict[str, dict[str, int]] = {}
        self._started: list[tuple[str, subprocess.Popen[Any]]] = []
        self._with_slurm = slurm
        self._slurm: Slurm | None = None

    # From start to end ------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Start them; they accept connections afterwards. CannotMakeHosts, with a host's own words where one does not start."""
        packages.install(packages.HOSTS | (packages.SLURM if self._with_slurm else {}))
        try:
            self._write_files()
            self._wire()
            for host in self.names:
                self._start(host)
            for host in self.names:
                self._wait_for_sshd(host)
            if self._with_slurm:
                self.slurm_up()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End every process of every host and remove what they had."""
        for host in self.names:
            if host in self._first:
                self.kill_node(host)
        for descriptor in self._networks.values():
            os.close(descriptor)
        self._networks.clear()
        if self._made_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Hosts:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def kill_node(self, host: str) -> None:
        """SIGKILL to all its processes at once, sshd too, and none is left on return. Its address still answers a ping."""
        first = self._first[host]
        # With the first process the kernel ends all others. unshare waits for it, and takes it along when it is killed itself.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._first_pid(host) or first.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while first.poll() is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{host} does not end: {self.processes(host)}")
            for where, process in self._started:
                if where == host:
                    process.poll()  # the host ends only when each of its processes was waited for
            time.sleep(0.01)
        del self._first[host]
        self._started = [(where, process) for where, process in self._started if where != host]
        for descriptor in self._namespaces.pop(host, {}).values():
            os.close(descriptor)

    def revive(self, host: str) -> None:
        """Start a host that was killed: a new boot id, an empty /run, the same address and keys."""
        if host in self._first:
            raise RuntimeError(f"{host} is not dead")
        (self.folder / host / "boot_id").write_text(f"{uuid.uuid4()}\n")
        self._start(host)
        self._wait_for_sshd(host)
        if self._slurm:
            self._slurm.start_on(host)

    # Commands and processes -------------------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        """The environment of a command on the head: that of a login, this Python first, the wizard's home and modules."""
        return self.login_env() | {
            "LLM_WIZARD_HOME": str(self.folder / "wizard-home"),
            "PYTHONPATH": str(REPOSITORY),
        }

    def login_env(self) -> dict[str, str]:
        """What a login on any host has, with this Python first."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{PATH}",
            "HOME": str(self.folder / "home"),
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
        }

    def home(self, host: str) -> Path:
        """The home of its root, from outside. On every host it is at one path, $HOME and `~` of ssh, and another folder."""
        return self.folder / host / "home"

    def popen(
        self, host: str, argv: Sequence[str | Path], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """A process on a host, a child of ours: its pid is the machine's, and kill() reaches it.

        env is added to the host's (`self.env` on the head, `login_env` on a node). ProcessLookupError where the host is dead.
        """
        if host not in self._namespaces:
            raise ProcessLookupError(errno.ESRCH, f"{host} is dead")
        full = (self.env if host == HEAD else self.login_env()) | dict(env or {})
        words = [str(word) for word in argv]
        process = popen_inside(self._namespaces[host], words, env=full, **options)
        self._started = [(where, one) for where, one in self._started if one.returncode is None] + [(host, process)]
        return process

    def run(
        self,
        host: str,
        argv: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        check: bool = False,
        input: str | None = None,
        timeout: float | None = 120,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """subprocess.run on a host: text, both outputs kept, nothing on stdin."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        options.setdefault("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE)
        with self.popen(host, argv, env, **options) as process:
            try:
                output, errors = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode:
            raise RuntimeError(f"{host}: {' '.join(map(str, argv))} ended with {process.returncode}: {output}{errors}")
        return subprocess.CompletedProcess(list(argv), process.returncode, output, errors)

    def processes(self, host: str, mark: str | Path | None = None) -> list[Process]:
        """Its living processes, all or those that carry the mark LLM_WIZARD_RUN=MARK in their environment."""
        if host not in self._namespaces:
            return []
        namespace = f"pid:[{os.stat(self._namespaces[host]['pid']).st_ino}]"
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):  # it has ended, or is a zombie
                if os.readlink(entry / "ns/pid") != namespace:
                    continue
                words = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                env = dict(word.split("=", 1) for word in words if "=" in word)
                status = dict(
                    line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line
                )
                if status["State"].startswith(("Z", "X")) or (
                    mark is not None and env.get("LLM_WIZARD_RUN") != str(mark)
                ):
                    continue
                argv = tuple((entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1])
                found.append(Process(int(status["NSpid"].split()[-1]), int(entry.name), argv, env))
        return sorted(found, key=lambda process: process.pid)

    def pids(self, host: str, mark: str | Path) -> list[int]:
        """The processes there that carry the mark, as this machine numbers them: for os.kill."""
        return [process.machine_pid for process in self.processes(host, mark)]

    def rank_pids(self, host: str, mark: str | Path) -> dict[int, int]:
        """The ranks of a run there: their processes as this machine numbers them, by rank."""
        found: dict[int, int] = {}
        for process in self.processes(host, mark):  # in the order of their start: what a rank has started comes later
            if process.env.get("RANK", "").isdigit():
                found.setdefault(int(process.env["RANK"]), process.machine_pid)
        return found

    # The network ------------------------------------------------------------------------------------------------------

    def link_down(self, host: str) -> None:
        """Pull its cable: eth0 loses its carrier. Others learn it after seconds, as the address can't be resolved any more."""
        self._ip("switch", f"link set {host} down")

    def link_up(self, host: str) -> None:
        self._ip("switch", f"link set {host} up")

    def drop_packets(self, host: str) -> None:
        """The switch drops its packets in both directions and says nothing; its address is still resolved, and no error comes."""
        for one in self.names:
            others = [host] if one != host else [other for other in self.names if other != host]
            pinned = (f"neigh replace {self.addresses[o]} lladdr {self._mac(o)} dev eth0 nud permanent" for o in others)
            self._ip(one, *pinned)
        self._switch_port(host, "disabled")

    def accept_packets(self, host: str) -> None:
        """End drop_packets."""
        self._switch_port(host, "forwarding")
        for one in self.names:
            others = [host] if one != host else [other for other in self.names if other != host]
            self._ip(one, *(f"neigh del {self.addresses[other]} dev eth0" for other in others))

    # Slurm ------------------------------------------------------------------------------------------------------------

    def slurm_up(self) -> None:
        """Slurm on these hosts: the head submits, partition `debug` has all nodes, each with 8 cores and 8 GPUs to Slurm's eyes."""
        packages.install(packages.SLURM)
        self._slurm = Slurm(self)
        self._slurm.up()

    def slurm_down(self) -> None:
        """End Slurm's daemons and every job."""
        if self._slurm:
            self._slurm.down()
            self._slurm = None

    # What else a node has ---------------------------------------------------------------------------------------------

    def set_gpus(self, host: str, lines: str) -> None:
        """Its GPUs in the words of fake_nvml.c, at once; no driver answers there while this was never called."""
        file = self.folder / host / "gpus"
        file.with_name("gpus.new").write_text(lines)
        file.with_name("gpus.new").replace(file)

    def dot_ssh(self) -> dict[str, bytes]:
        """Every file in ~/.ssh: of this machine's user and of each host's."""
        folders = (_machine_home(), *(self.home(host) for host in self.names))
        return {path: content for folder in folders for path, content in _files(folder / ".ssh").items()}

    @property
    def known_hosts(self) -> Path:
        """The file of the head's ssh."""
        return self.home(HEAD) / ".ssh/known_hosts"

    # How it is made ---------------------------------------------------------------------------------------------------

    def _mac(self, host: str) -> str:
        return "02:00:" + ":".join(f"{int(part):02x}" for part in self.addresses[host].split("."))

    def _write_files(self) -> None:
        self.folder.chmod(0o755)
        names = "".join(f"{address} {host}\n" for host, address in self.addresses.items())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (self.folder / "sshd_config").write_text(
            "Port 22\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\nPidFile none\n"
            "SetEnv LANG=C.UTF-8\n"
        )
        if self._gpus:
            driver = self.folder / "driver"
            driver.mkdir()
            source = Path(__file__).with_name("fake_nvml.c")
            state = '-DFAKE_NVML_FILE="/run/fake_nvml"'
            compiler = ["cc", "-shared", "-fPIC", state, "-o", str(driver / "libnvidia-ml.so.1"), str(source)]
            subprocess.run(compiler, check=True)
            subprocess.run(
                ["ldconfig", "-C", str(self.folder / "ld.so.cache"), str(driver)], check=True, capture_output=True
            )
        (self.folder / "home").mkdir()
        others = [line for line in _lines("/etc/passwd") if not line.startswith("root:")]
        root = f"root:x:0:0:root:{self.folder}/home:/bin/bash"
        (self.folder / "passwd").write_text("\n".join([root, *others]) + "\n")
        key = self.folder / "id_ed25519"
        _make_key(key)
        for host in self.names:
            folder, home = self.folder / host, self.home(host)
            (home / ".ssh").mkdir(parents=True)
            (home / ".ssh").chmod(0o700)
            (folder / "hostname").write_text(f"{host}\n")
            (folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
            _make_key(folder / "hostkey")
            for name in ("id_ed25519", "id_ed25519.pub"):
                shutil.copy(key.with_name(name), home / ".ssh" / name)
            shutil.copy(key.with_suffix(".pub"), home / ".ssh/authorized_keys")
            (home / ".ssh/config").write_text("Host lwnode* lwhead\n    LogLevel ERROR\n")
        keys = {host: (self.folder / host / "hostkey.pub").read_text().split()[:2] for host in self.names}
        known = "".join(f"{host},{self.addresses[host]} {' '.join(keys[host])}\n" for host in self.names)
        for host in self.names:
            (self.home(host) / ".ssh/known_hosts").write_text(known)

    def _wire(self) -> None:
        """A switch, and a cable from it to each host's eth0."""
        self._networks = {name: new_network() for name in ("switch", *self.names)}
        wiring = ["link add br0 type bridge", "link set br0 up"]
        for host in self.names:
            other_end = f"peer name eth0 address {self._mac(host)} netns /proc/{os.getpid()}/fd/{self._networks[host]}"
            wiring += [f"link add {host} type veth {other_end}", f"link set {host} master br0", f"link set {host} up"]
        self._ip("switch", *wiring)
        for host in self.names:
            self._ip(host, "link set lo up", f"addr add {self.addresses[host]}/24 dev eth0", "link set eth0 up")

    def _ip(self, network: str, *lines: str, command: Sequence[str] = ("ip", "-batch", "-")) -> None:
        """Lines of `ip -batch` in a host's network, also while the host is dead, or in the switch's."""
        inside = {"net": self._networks[network]}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with popen_inside(inside, command, env={"PATH": PATH}, **pipes) as process:
            said, _ = process.communicate("\n".join(lines) + "\n")
        if process.returncode:
            raise RuntimeError(f"{network}: {' '.join(command)}: {said}")

    def _switch_port(self, host: str, state: str) -> None:
        number = {"disabled": "0", "forwarding": "3"}[state]
        self._ip("switch", command=("bridge", "link", "set", "dev", host, "state", number))

    def _start(self, host: str) -> None:
        """Its first process, which the kernel kills with us, and with it all others."""
        apart = ["--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--mount-proc"]
        argv = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            *apart,
            "sh",
            "-c",
            FIRST_PROCESS,
            "sh",
            host,
            str(self.folder),
        ]
        with (self.folder / host / "log").open("ab") as log:
            self._first[host] = popen_inside(
                {"net": self._networks[host]},
                argv,
                cwd="/",
                env={"PATH": PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _first_pid(self, host: str) -> int | None:
        """Its first process as this machine numbers it; None before it is there and after it has ended."""
        outer = self._first[host].pid
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{outer}/task/{outer}/children").read_text().split():
                return int(child)
        return None

    def _wait_for_sshd(self, host: str) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._first[host].poll() is None:
            pid = self._first_pid(host)
            if pid is not None and _listens_on_22(pid):
                self._namespaces[host] = open_namespaces(pid)
                return
            time.sleep(0.005)
        raise CannotMakeHosts(f"{host} does not start: {(self.folder / host / 'log').read_text()}")


def _listens_on_22(pid: int) -> bool:
    """Whether that happens in a process's network, by /proc/net/tcp: 16 is 22, state 0A is LISTEN (proc(5))."""
    with contextlib.suppress(OSError):
        return any(line.split()[1:4:2] == ["00000000:0016", "0A"] for line in _lines(f"/proc/{pid}/net/tcp"))
    return False


def _new_folder() -> Path:
    """One named after this process; those of sessions that were killed are removed."""
    for left in Path(tempfile.gettempdir()).glob("llm-wizard-hosts-of-*-*"):
        if not Path("/proc", left.name.split("-")[4]).exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"llm-wizard-hosts-of-{os.getpid()}-"))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)


def _machine_home() -> Path:
    """ssh's, whatever HOME says."""
    return Path(pwd.getpwuid(os.getuid()).pw_dir)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hosts_or_skip(nodes: int = 4, **options: Any) -> Iterator[Hosts]:
    """For a fixture: `yield from hosts_or_skip()`; skips, with the reason, where this machine can have no hosts."""
    import pytest  # not needed by a script that uses the hosts

    hosts = Hosts(nodes, **options)
    try:
        hosts.up()
    except CannotMakeHosts as error:
        pytest.skip(str(error))
    try:
        yield hosts
    finally:
        hosts.down()


def main() -> int:
    with Hosts() as hosts:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the command
        with hosts.popen(HEAD, sys.argv[1:] or ["bash"]) as process:
            return process.wait()


if __name__ == "__main__":
    sys.exit(main())
