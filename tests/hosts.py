"""Real hosts on one machine: namespaces with a name, an address, processes and an sshd of their own; Slurm on them if asked.

    python tests/hosts.py up [--slurm] | down        # for trying by hand: `up` prints how to get on them

They share the machine's files, as a cluster's nodes share a file system. Nothing here touches the real network or ~/.ssh.
"""

from __future__ import annotations

import contextlib
import fcntl
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

SSHD, IP = "/usr/sbin/sshd", "/sbin/ip"
PACKAGES = {
    SSHD: "openssh-server",
    IP: "iproute2",
    "/usr/bin/ssh": "openssh-client",
    "/bin/ping": "iputils-ping",
    "/usr/bin/pdsh": "pdsh",
}
SLURM_PACKAGES = {"/usr/sbin/slurmd": "slurm-wlm", "/usr/sbin/munged": "munge"}
LOCK = "/run/lock/llm-wizard-hosts"
HEAD, NODE = "lwhead", "lwnode"
NET = "10.77.0"
ROOT = str(Path(__file__).parents[1])
# bash reaps what is left to it, as the first process of a machine must.
FIRST = "hostname {host}; {sshd} -D -e -f {folder}/sshd_config 2>>{folder}/sshd-{host}.log & while :; do sleep 3600 & wait $!; done"


class CannotMakeHosts(Exception):  # noqa: N818 (a reason to skip)
    """This machine forbids it, or lacks what it takes."""


class Hosts:
    """`head` and `nodes`; made by entering the context, gone when it is left."""

    def __init__(self, nodes: int = 4, slurm: bool = False) -> None:
        self.head = HEAD
        self.nodes = [f"{NODE}{number}" for number in range(1, nodes + 1)]
        self.folder = Path(tempfile.mkdtemp(prefix="llm-wizard-hosts-"))
        self._slurm = slurm
        self._first: dict[str, subprocess.Popen[bytes]] = {}
        self._lock: int | None = None

    def __enter__(self) -> Hosts:
        install(PACKAGES | (SLURM_PACKAGES if self._slurm else {}))
        self._lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # the names are the machine's: a second session waits for the first
        try:
            take_down()
            self._make()
            if self._slurm:
                self._start_slurm()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        take_down()
        for process in self._first.values():
            process.wait()
        if self._lock is not None:
            os.close(self._lock)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- What tests do on them

    def address(self, host: str) -> str:
        return f"{NET}.1" if host == self.head else f"{NET}.{10 + self.nodes.index(host) + 1}"

    def argv(self, host: str, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: str = "/") -> list[str]:
        """The command of this machine that runs `argv` on `host`."""
        values = {
            "PYTHONPATH": ROOT,
            "LLM_WIZARD_HOME": str(self.folder / "wizard"),
            **self._slurm_env(),
            **(env or {}),
        }
        shown = [f"{name}={value}" for name, value in values.items()]
        return ["nsenter", "-t", str(self._pid(host)), "-a", f"--wd={cwd}", "--", "env", *shown, *argv]

    def run(
        self, host: str, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: str = "/", timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(host, argv, env, cwd), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )

    def popen(
        self, host: str, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: str = "/"
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.argv(host, argv, env, cwd), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def all_pids(self, host: str) -> list[int]:
        """The processes of a host, by this machine's numbers."""
        found = []
        for pid in sh(IP, "netns", "pids", host, check=False).split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(int(pid))
        return found

    def pids(self, host: str, mark: str, name: str = "LLM_WIZARD_RUN") -> list[int]:
        """Those of them that carry `name`=`mark` in their environment."""
        wanted = f"{name}={mark}".encode()
        return [pid for pid in self.all_pids(host) if wanted in environment(pid)]

    def rank_pids(self, host: str, mark: str) -> dict[int, int]:
        """The ranks of a run on a host: pid by rank."""
        found: dict[int, int] = {}
        for pid in sorted(self.pids(host, mark)):
            rank = [entry[5:] for entry in environment(pid) if entry.startswith(b"RANK=")]
            if rank:
                found.setdefault(int(rank[0]), pid)  # helpers of a rank have higher numbers
        return found

    def kill_node(self, host: str) -> None:
        """SIGKILL every process of a host, its sshd too: the kernel ends all with the first."""
        os.kill(self._pid(host), signal.SIGKILL)
        self._first.pop(host).wait()
        while self.all_pids(host):
            time.sleep(0.02)

    def revive(self, host: str) -> None:
        """Start a killed host's sshd again."""
        self._boot(host)
        self._wait_for_sshd([host])

    def link_down(self, host: str) -> None:
        sh(IP, "-n", host, "link", "set", "eth0", "down")

    def link_up(self, host: str) -> None:
        sh(IP, "-n", host, "link", "set", "eth0", "up")

    def drop_packets(self, host: str) -> None:
        """Nothing gets through any more, either way, and neither end is told: its cable leads nowhere."""
        sh(IP, "-n", self.head, "link", "set", self._cable(host), "nomaster")

    def accept_packets(self, host: str) -> None:
        sh(IP, "-n", self.head, "link", "set", self._cable(host), "master", "br0")

    # --- How they are made

    def _make(self) -> None:
        folder = self.folder
        folder.chmod(0o755)
        for key in ("id", "hostkey"):
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
        everybody = [self.head, *self.nodes]
        names = "127.0.0.1 localhost\n" + "".join(f"{self.address(host)} {host}\n" for host in everybody)
        known = " ".join((folder / "hostkey.pub").read_text().split()[:2])
        (folder / "known_hosts").write_text("".join(f"{host},{self.address(host)} {known}\n" for host in everybody))
        client = (
            f"IdentityFile {folder}/id\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\nLogLevel ERROR\n"
        )
        # A home of the hosts' own: they are killed at the end, and a start-up file of this machine's user may then hold a lock
        # (pyenv's, left behind, makes each of his shells wait for a minute).
        (folder / "home").mkdir()
        (folder / "sshd_config").write_text(
            f"Port 22\nHostKey {folder}/hostkey\nAuthorizedKeysFile {folder}/id.pub\nPermitRootLogin prohibit-password\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\nMaxStartups 100\n"
            f"SetEnv HOME={folder}/home\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        for host in everybody:
            sh(IP, "netns", "add", host)
            sh(IP, "-n", host, "link", "set", "lo", "up")
            private = Path("/etc/netns") / host
            (private / "ssh").mkdir(parents=True)
            (private / "hosts").write_text(names)
            (private / "ssh" / "ssh_config").write_text(client)
        sh(IP, "-n", self.head, "link", "add", "br0", "type", "bridge")
        sh(IP, "-n", self.head, "addr", "add", f"{NET}.1/24", "dev", "br0")
        sh(IP, "-n", self.head, "link", "set", "br0", "up")
        for node in self.nodes:
            cable = self._cable(node)
            sh(IP, "-n", self.head, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", node)
            sh(IP, "-n", self.head, "link", "set", cable, "master", "br0")
            sh(IP, "-n", self.head, "link", "set", cable, "up")
            sh(IP, "-n", node, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            sh(IP, "-n", node, "link", "set", "eth0", "up")
        for host in everybody:
            self._boot(host)
        self._wait_for_sshd(everybody)

    def _boot(self, host: str) -> None:
        script = FIRST.format(host=host, sshd=SSHD, folder=self.folder)
        argv = [IP, "netns", "exec", host, "unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._first[host] = subprocess.Popen(
            [*argv, "bash", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def _wait_for_sshd(self, hosts: Sequence[str]) -> None:
        for host in hosts:
            for _ in range(100):
                with contextlib.suppress(CannotMakeHosts):
                    if self.run(self.head, ["ssh", host, "true"]).returncode == 0:
                        break
                time.sleep(0.05)
            else:
                raise CannotMakeHosts(f"sshd of {host} does not answer")

    def _pid(self, host: str) -> int:
        """The first process of a host, by this machine's number: the child of unshare."""
        unshare = self._first[host].pid
        for _ in range(100):
            children = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
            if children:
                return int(children[0])
            time.sleep(0.01)
        raise CannotMakeHosts(f"{host} did not start")

    def _cable(self, node: str) -> str:
        return f"v{self.nodes.index(node) + 1}"

    # --- Slurm

    def _slurm_env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm" / "slurm.conf")} if self._slurm else {}

    def _start_slurm(self) -> None:
        folder = self.folder / "slurm"
        for name in ("state", "spool", "log", "cgroup"):
            (folder / name).mkdir(parents=True)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        (folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder}/cgroup\n")
        settings = {
            "ClusterName": "llmwizard", "SlurmctldHost": f"{self.head}({NET}.1)", "SlurmUser": "root",
            "SlurmdUser": "root", "AuthType": "auth/munge", "AuthInfo": f"socket={folder}/munge.sock",
            "CredType": "cred/munge", "StateSaveLocation": f"{folder}/state", "SlurmdSpoolDir": f"{folder}/spool/%n",
            "SlurmctldPidFile": f"{folder}/slurmctld.pid", "SlurmdPidFile": f"{folder}/slurmd-%n.pid",
            "SlurmctldLogFile": f"{folder}/log/slurmctld.log", "SlurmdLogFile": f"{folder}/log/slurmd-%n.log",
            "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none", "AccountingStorageType": "accounting_storage/none",
            "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core", "SchedulerType": "sched/backfill",
            "SchedulerParameters": "sched_interval=2,bf_interval=2", "ReturnToService": "2", "MpiDefault": "none",
            "SwitchType": "switch/none", "SlurmctldTimeout": "30", "SlurmdTimeout": "30", "InactiveLimit": "0",
            "KillWait": "5", "MinJobAge": "300", "SlurmdParameters": "config_overrides",
        }  # fmt: skip
        lines = [f"{name}={value}" for name, value in settings.items()]
        lines += [f"NodeName={node} NodeAddr={self.address(node)} CPUs=4 RealMemory=20000" for node in self.nodes]
        lines += [f"PartitionName=debug Nodes={','.join(self.nodes)} Default=YES MaxTime=INFINITE State=UP"]
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        for host in (self.head, *self.nodes):
            # One socket serves all: they share the machine's files.
            if host == self.head:
                self._daemon(
                    host,
                    "munged",
                    f"munged --force --key-file={folder}/munge.key --socket={folder}/munge.sock "
                    f"--pid-file={folder}/munged.pid --log-file={folder}/log/munged.log --seed-file={folder}/munge.seed",
                )
                self._daemon(host, "slurmctld", f"slurmctld -c -f {folder}/slurm.conf")
            else:
                (folder / "spool" / host).mkdir()
                self._daemon(host, "slurmd", f"slurmd -f {folder}/slurm.conf")
        for _ in range(200):
            idle = self.run(self.head, ["sinfo", "-h", "-t", "idle", "-o", "%D"]).stdout.strip()
            if idle == str(len(self.nodes)):
                return
            time.sleep(0.1)
        raise CannotMakeHosts("Slurm's nodes do not become idle: " + self.run(self.head, ["sinfo"]).stdout)

    def _daemon(self, host: str, name: str, command: str) -> None:
        log = self.folder / "slurm" / "log" / f"{name}-{host}.out"
        done = subprocess.run(self.argv(host, ["bash", "-c", f"exec {command} >{log} 2>&1"]), timeout=30)
        if done.returncode:
            raise CannotMakeHosts(f"{name} on {host} does not start: {log.read_text()[-500:]}")


def sh(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise CannotMakeHosts(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def dot_ssh() -> dict[str, bytes]:
    """What is in the ~/.ssh that ssh reads, whatever HOME says."""
    folder = Path(pwd.getpwuid(os.getuid()).pw_dir, ".ssh")
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def install(packages: Mapping[str, str]) -> None:
    """Install what is missing, without starting any service. Raises CannotMakeHosts."""
    if os.getuid() != 0:
        raise CannotMakeHosts("network namespaces need root")
    missing = [package for path, package in packages.items() if not Path(path).exists()]
    if not missing:
        return
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        try:
            done = subprocess.run(["apt-get", "-q", *words], env=quiet, capture_output=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotMakeHosts(f"{', '.join(missing)} cannot be installed: {error}") from None
        if done.returncode and words != ["update"]:
            raise CannotMakeHosts(f"{', '.join(missing)} cannot be installed: {done.stderr.decode()[-300:]}")


def take_down() -> None:
    """End the hosts and remove what they had; also those that a session which was killed has left."""
    listed = [line.split()[0] for line in sh(IP, "netns", "list", check=False).splitlines() if line.strip()]
    for host in listed:
        if host == HEAD or host.startswith(NODE):
            while pids := sh(IP, "netns", "pids", host, check=False).split():
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.02)
            sh(IP, "netns", "del", host, check=False)
    for private in Path("/etc/netns").glob("lw*") if Path("/etc/netns").is_dir() else ():
        shutil.rmtree(private, ignore_errors=True)


@contextlib.contextmanager
def hosts_or_reason(nodes: int, slurm: bool = False) -> Iterator[Hosts | str]:
    """The hosts, or why there are none."""
    try:
        hosts = Hosts(nodes, slurm).__enter__()
    except CannotMakeHosts as error:
        yield str(error)
        return
    try:
        yield hosts
    finally:
        hosts.__exit__()


if __name__ == "__main__":
    if sys.argv[1:2] == ["up"]:
        with Hosts(4, "--slurm" in sys.argv) as made:
            for host in (made.head, *made.nodes):
                print(" ".join(made.argv(host, ["bash"])))
            print("Ctrl-C takes them down")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    else:
        take_down()
