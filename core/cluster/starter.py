"""The starter: runs one node's part of a stage, tells the head how it goes, and ends it when the head is no longer there.

It is never started as a file: its text is piped into a Python on the node, which may be an old one. So: only the standard
library, Python 3.8 and later, one file. One line of JSON follows the text:

    {"argv": [...], "env": {...}, "pass_env": names taken from the login's environment, "cwd": folder, "mark": run directory,
     "beat": s, "silence": s, "grace": s}
    {"sweep": true, "mark": run directory, "grace": s}: only end what is left of that run

Up, on stderr, JSON lines (any other line is words of ssh or of a login script):

    {"lw": "alive", "n": number, "ranks": [[rank, pid], ...], "address": [this node's as the head sees it, ssh port] | null}
    {"lw": "started", "pid": pid} | {"lw": "failed", "text": why argv could not be started}
    {"lw": "rank-ended", "rank": rank, "pid": pid, "code": exit code, -signal, or null where it could not be seen}
    {"lw": "ended", "code": of argv}
    {"lw": "clean", "killed": n}: the last line; no process of this run is left on this node
    {"lw": "left", "pids": [...]}: the last line; these did not end by SIGKILL

Down, on stdin: "alive N" answers the beat with that number; "start", "term", "kill", "stacks". The head says nothing before the first
beat, and argv is not started before it says so. The output of argv goes to our stdout, not through us.

Contact is a lease: it lasts for `silence` seconds from when the newest beat that the head has answered was *sent*. A head that
has heard nothing of this node for `silence` + `grace` seconds thus knows that nothing of the run is alive here, whichever
direction of the link failed and however late its packets arrive.
"""
# pathlib costs more than the reading itself, and more than all the rest of this file to import.
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import select
import signal
import subprocess
import sys
import time
from typing import Any, Callable, NamedTuple  # noqa: UP035 (collections.abc.Callable cannot be subscripted in 3.8)

MARK = b"LLM_WIZARD_RUN="
KILL_S = 10.0
"""A process that SIGKILL has not ended by then is held in the kernel (a driver, a dead file system): it is reported, not waited for."""
LOOK_S, LOOK_SELDOM_S = 0.25, 10.0
"""Between looks for ranks: until there are some, as one that fails while it starts must be seen before it is gone; and once for so
long no new one has come (a look costs 20 us for each process of the machine)."""
PR_SET_PDEATHSIG = 1


def now() -> float:
    """Seconds that go on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# --- Processes of the run


class Process(NamedTuple):
    """One process, told from a later one with the same pid by its start time (clock ticks since boot)."""

    pid: int
    start: int
    parent: int
    rank: int | None


def read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def stat_of(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on (state, parent, ...); empty where there is no such process."""
    return read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()


def start_of(pid: int) -> int | None:
    """When a process started; None for one that is gone or a zombie."""
    fields = stat_of(pid)
    return int(fields[19]) if len(fields) > 19 and fields[0] not in (b"Z", b"X") else None


def processes_of(mark: bytes) -> dict[int, Process]:
    """The living processes of this user whose environment holds exactly this mark, but for ourselves."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        # Sessions of others cannot be read, so this is no check of rights but a shorter way.
        environment = read(f"/proc/{name}/environ").split(b"\0")
        if MARK + mark not in environment:
            continue
        fields = stat_of(int(name))
        if len(fields) <= 19 or fields[0] in (b"Z", b"X"):
            continue
        rank = next((int(word[5:]) for word in environment if word.startswith(b"RANK=") and word[5:].isdigit()), None)
        found[int(name)] = Process(int(name), int(fields[19]), int(fields[1]), rank)
    return found


def ranks_of(processes: dict[int, Process]) -> list[Process]:
    """The ranks themselves, without their loaders and helpers, which inherit RANK."""
    ranks = {pid: process for pid, process in processes.items() if process.rank is not None}
    return [process for process in ranks.values() if process.parent not in ranks]


def open_pidfd(process: Process) -> int | None:
    """A descriptor of exactly this process; None where it is gone, or the kernel (5.3) or Python (3.9) has none."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        return None
    if start_of(process.pid) == process.start:
        return descriptor
    os.close(descriptor)
    return None


def send(process: Process, number: int) -> None:
    """Signal this process and no later one with its pid."""
    descriptor = open_pidfd(process)
    with contextlib.suppress(OSError):
        if descriptor is not None:
            signal.pidfd_send_signal(descriptor, number)
        elif start_of(process.pid) == process.start:
            os.kill(process.pid, number)
    if descriptor is not None:
        os.close(descriptor)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal: SIGUSR1 ends one that has none."""
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith(b"SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def exit_code_of(pid: int) -> int | None:
    """The exit code of a zombie, or -signal; None where its parent has already fetched it (proc(5), field 52)."""
    fields = stat_of(pid)
    if len(fields) < 50 or fields[0] != b"Z":
        return None
    status = int(fields[49])
    return -(status & 0x7F) if status & 0x7F else status >> 8


# --- The channel to the head


class Channel:
    """Lines to the head. Never waits: where the link is stuck, what it does not take is dropped."""

    MOST = 1 << 16

    def __init__(self) -> None:
        # Not stdin or stdout: under sshd those two are one socket, and a rank whose print would block must not fail.
        os.set_blocking(2, False)
        self._waiting = b""
        self.broken = False

    def say(self, what: str, **values: Any) -> None:
        line = json.dumps({"lw": what, **values}, separators=(",", ":")).encode() + b"\n"
        if len(self._waiting) + len(line) <= self.MOST:
            self._waiting += line
        self.flush()

    def flush(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(2, self._waiting) :]
        except BlockingIOError:
            pass
        except OSError:
            self.broken = True
            self._waiting = b""

    def finish(self, seconds: float) -> None:
        """Wait for what has been said to be taken."""
        until = now() + seconds
        while self._waiting and now() < until:
            select.select([], [2], [], 0.1)
            self.flush()


def kill_all(mark: bytes, until: float, still: Callable[[], None]) -> tuple[int, list[int]]:
    """SIGKILL until nothing of the run is left; how many there were, and the pids that were left at the time `until`."""
    killed: set[tuple[int, int]] = set()
    while True:
        left = processes_of(mark)
        if not left or now() > until:
            return len(killed), sorted(left)
        for process in left.values():
            killed.add((process.pid, process.start))
            send(process, signal.SIGKILL)
        still()
        time.sleep(0.05)


def prove(channel: Channel, mark: bytes, already: int = 0, still: Callable[[], None] = lambda: None) -> None:
    """End what is left and say so."""
    killed, left = kill_all(mark, now() + KILL_S, still)
    if left:
        channel.say("left", pids=left)
    else:
        channel.say("clean", killed=killed + already)
    channel.finish(2.0)


def sweep(channel: Channel, mark: bytes, grace: float) -> None:
    """End what is left of a run: first those that the others come from, which know how to end them."""
    first = processes_of(mark)
    for process in first.values():
        if process.parent not in first:
            send(process, signal.SIGTERM)
    until = now() + grace
    left = first
    while left and now() < until:
        time.sleep(0.1)
        left = processes_of(mark)
    prove(channel, mark, len(first) - sum(left.get(pid) == process for pid, process in first.items()))


# --- One node's part of a stage


class Starter:
    """Runs `argv` and sees it through; `step` is one turn of its loop."""

    def __init__(self, config: dict[str, Any], channel: Channel, wake: int) -> None:
        self._channel = channel
        self._wake = wake
        self._mark = encoded(config["mark"])
        self._beat = float(config["beat"])
        self._silence = float(config["silence"])
        self._grace = float(config["grace"])
        self._ranks: dict[int, tuple[Process, int | None]] = {}
        self._beats = 0
        self._unanswered: dict[int, float] = {}
        self._address = own_address()
        self._answered_at = now()
        self._beat_due = self._look_due = self._new_at = 0.0
        self._held = b""
        self._kill_at: float | None = None
        self._config = config
        self._child: subprocess.Popen[bytes] | None = None
        self._start_asked = False
        self.wanted_away = False
        """Set by a signal."""

    def _start(self) -> subprocess.Popen[bytes] | None:
        config = self._config
        try:
            libc = ctypes.CDLL(None)
            child = subprocess.Popen(
                [encoded(word) for word in config["argv"]],
                env=environment_of(config),
                cwd=encoded(config["cwd"]),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Somebody may kill us: what we started must not go on alone.
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0),
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            name = getattr(error, "filename", None)
            what = os.fsdecode(name) if name else config["argv"][0]
            self._channel.say("failed", text=f"{what}: {getattr(error, 'strerror', None) or error}")
            return None
        self._channel.say("started", pid=child.pid)
        return child

    def carry_out(self) -> None:
        self._tell()
        while self._kill_at is None and not self._start_asked:
            self._wait()
            self._tell()
            self._check_contact()
        if self._kill_at is None:
            self._child = self._start()
        while self._child is not None:
            self._wait()
            self._look_at_ends()
            self._look_for_ranks()
            self._tell()
            self._check_contact()
        prove(self._channel, self._mark, still=self._tell)

    def _wait(self) -> None:
        """Until something comes, or something is due."""
        due = self._beat_due if self._child is None else min(self._beat_due, self._look_due)
        due = min(due, self._kill_at or self._answered_at + self._silence)
        watched = [self._wake, *(pidfd for _, pidfd in self._ranks.values() if pidfd is not None)]
        if self._kill_at is None:
            watched.append(0)
        ready, _, _ = select.select(watched, [], [], min(max(0.0, due - now()), self._beat))
        if self._wake in ready:
            os.read(self._wake, 4096)
        if 0 in ready:
            self._hear()

    def _hear(self) -> None:
        try:
            data = os.read(0, 1 << 16)
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            word, _, number = line.partition(b" ")
            if word == b"alive" and number.isdigit() and int(number) in self._unanswered:
                self._answered_at = self._unanswered[int(number)]
                self._unanswered = {n: sent for n, sent in self._unanswered.items() if n > int(number)}
            elif word == b"start":
                self._start_asked = True
            elif word == b"term":
                self._ask_to_stop()
            elif word == b"kill":
                self._kill()
            elif word == b"stacks":
                for process, _ in self._ranks.values():
                    if catches(process.pid, signal.SIGUSR1):
                        send(process, signal.SIGUSR1)

    def _look_at_ends(self) -> None:
        """Report what has ended, in the order in which one was the cause of the other."""
        assert self._child is not None
        code = self._child.poll()
        if code is not None and code < 0:
            # A launcher that is killed takes its ranks along; one that ends by itself does so after a rank.
            self._channel.say("ended", code=code)
        for pid, (process, pidfd) in list(self._ranks.items()):
            if start_of(pid) != process.start:
                self._channel.say("rank-ended", rank=process.rank, pid=pid, code=exit_code_of(pid))
                del self._ranks[pid]
                if pidfd is not None:
                    os.close(pidfd)
        if code is not None:
            if code >= 0:
                self._channel.say("ended", code=code)
            self._child = None

    def _look_for_ranks(self) -> None:
        if now() < self._look_due or self._child is None:
            return
        for process in ranks_of(processes_of(self._mark)):
            # The place of a known rank that is gone may be taken by its orphans, which are no ranks.
            if process.pid not in self._ranks and all(known.rank != process.rank for known, _ in self._ranks.values()):
                self._ranks[process.pid] = process, open_pidfd(process)
                self._new_at = now()
        pause = LOOK_SELDOM_S if now() - self._new_at > LOOK_SELDOM_S else self._beat
        self._look_due = now() + (pause if self._ranks else min(self._beat, LOOK_S))

    def _tell(self) -> None:
        self._channel.flush()
        if now() < self._beat_due:
            return
        self._beat_due = now() + self._beat
        number, self._beats = self._beats, self._beats + 1
        self._unanswered[number] = now()
        ranks = sorted((process.rank or 0, pid) for pid, (process, _) in self._ranks.items())
        self._channel.say("alive", n=number, ranks=ranks, address=self._address)

    def _check_contact(self) -> None:
        if self._kill_at is None:
            if self.wanted_away or self._channel.broken or now() > self._answered_at + self._silence:
                self._lose()
        elif now() > self._kill_at:
            self._kill()

    def _lose(self) -> None:
        if self._kill_at is None:
            # At the end of stdin much of the lease is left for saving; after a silence, `grace`.
            self._kill_at = self._answered_at + self._silence + self._grace
            self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        """SIGTERM to the ranks, or to the child where there are none yet.

        Not to their loaders, whose end would be an error to them; nor to torchrun, which kills ranks that save for over 30 s.
        """
        ranks = ranks_of(processes_of(self._mark))
        for process in ranks:
            send(process, signal.SIGTERM)
        if not ranks and self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        kill_all(self._mark, now() + 1.0, self._tell)
        if self._child is not None and self._child.poll() is None:
            self._child.kill()


def encoded(text: str) -> bytes:
    """The bytes of a path or value as the head has them, whatever this machine's locale is."""
    return text.encode("utf-8", "surrogateescape")


def environment_of(config: dict[str, Any]) -> dict[bytes, bytes]:
    """What the child gets: of the login only what is named, then what the head says, then the mark."""
    passed = {}
    with contextlib.suppress(KeyError):  # a user without an entry
        entry = pwd.getpwuid(os.getuid())
        passed = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name, "SHELL": entry.pw_shell}
    passed.update(os.environ)  # srun gives us none of these
    environment = {encoded(name): os.fsencode(passed[name]) for name in config["pass_env"] if name in passed}
    environment.update({encoded(name): encoded(value) for name, value in config["env"].items()})
    environment[MARK[:-1]] = encoded(config["mark"])
    return environment


def own_address() -> list[Any] | None:
    """Address and port at which sshd has us here."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return [words[2], int(words[3])] if len(words) == 4 and words[3].isdigit() else None


def main() -> None:
    config = json.loads(sys.stdin.buffer.readline())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    channel = Channel()
    if config.get("sweep"):
        sweep(channel, encoded(config["mark"]), float(config["grace"]))
        return
    wake, woken = os.pipe()
    for descriptor in (wake, woken):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    starter = Starter(config, channel, wake)

    def go_away(_signal: int, _frame: Any) -> None:
        starter.wanted_away = True

    # From Slurm at a job's end, or at the end of who started us here: as if the head were gone.
    signal.signal(signal.SIGTERM, go_away)
    starter.carry_out()


if __name__ == "__main__":
    main()
