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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster import packages
from cluster.host_files import FIRST_PROCESS, home_of, write_boot_id, write_files
from cluster.host_processes import Process, processes_in
from cluster.namespaces import open_namespaces, popen_inside
from cluster.packages import PATH, CannotMakeHosts
from cluster.slurm_hosts import Slurm
from cluster.switch import Switch

HEAD = "lwhead"
REPOSITORY = Path(__file__).parents[2]


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
        self._switch = Switch(self.addresses)
        self._first: dict[str, subprocess.Popen[bytes]] = {}
        self._namespaces: dict[str, dict[str, int]] = {}
        self._started: list[tuple[str, subprocess.Popen[Any]]] = []
        self._with_slurm = slurm
        self._slurm: Slurm | None = None

    # From start to end ------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Start them; they accept connections afterwards. CannotMakeHosts, with a host's own words where one does not start.

        They end with the thread that calls this.
        """
        try:
            packages.install(packages.HOSTS | (packages.SLURM if self._with_slurm else {}))
            write_files(self.folder, self.addresses, self._gpus)
            self._switch.up()
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
        self._switch.down()
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
        write_boot_id(self.folder / host)
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
        return home_of(self.folder, host)

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
        inside = processes_in(self._namespaces[host]["pid"])
        return [one for one in inside if mark is None or one.env.get("LLM_WIZARD_RUN") == str(mark)]

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
        self._switch.pull_cable(host)

    def link_up(self, host: str) -> None:
        """Plug it in again."""
        self._switch.plug_in(host)

    def drop_packets(self, host: str) -> None:
        """Lose its packets in both directions from now on; nobody gets an error, a connection is silent."""
        self._switch.drop_packets(host)

    def accept_packets(self, host: str) -> None:
        """End drop_packets."""
        self._switch.accept_packets(host)

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

    def _start(self, host: str) -> None:
        """Its first process, which the kernel kills with us, and with it all others."""
        apart = ["--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--mount-proc"]
        first = ["sh", "-c", FIRST_PROCESS, "sh", host, str(self.folder)]
        argv = ["setpriv", "--pdeathsig", "KILL", "unshare", *apart, *first]
        with (self.folder / host / "log").open("ab") as log:
            self._first[host] = popen_inside(
                {"net": self._switch.networks[host]},
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
        return any(
            line.split()[1:4:2] == ["00000000:0016", "0A"]
            for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()
        )
    return False


def _new_folder() -> Path:
    """One named after this process; those of sessions that were killed are removed."""
    for left in Path(tempfile.gettempdir()).glob("llm-wizard-hosts-of-*-*"):
        if not Path("/proc", left.name.split("-")[4]).exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"llm-wizard-hosts-of-{os.getpid()}-"))


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
        signal.signal(signal.SIGINT, lambda *_: None)  # ^C is for the command
        with hosts.popen(HEAD, sys.argv[1:] or ["bash"]) as process:
            return process.wait()


if __name__ == "__main__":
    sys.exit(main())
