"""A stage's processes: started in a session of their own, their output masked into the log, ended without leftovers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

import psutil

from core.cluster.starter import catches
from core.runs.masking import Masker

MARK = "LLM_WIZARD_RUN"
"""The variable that every process of a run carries; its value is the run directory."""

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent ends: a trainer whose supervisor was killed saves and stops."""
    _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def write_if_possible(log: FileIO, data: bytes) -> None:
    """Append to a log. A full disk must not end a training run that could go on: the line is lost, the run is not."""
    with contextlib.suppress(OSError):
        log.write(data)


@dataclass(frozen=True)
class Trouble:
    """What ended the processes of a stage, or threatens to: `kind` is "rank", "launcher", "node", "link", "start" or "hang".

    `node` is empty for a hang, which may be anywhere.
    """

    kind: str
    node: str
    text: str
    rank: int | None = None


class Processes(Protocol):
    """The processes of one running stage, on this machine or on many."""

    @property
    def troubles(self) -> Sequence[Trouble]:
        """What has gone wrong, the cause first; empty where only the exit code tells."""

    @property
    def pid(self) -> int | None:
        """The first process on this machine."""

    def pump(self, timeout: float) -> int | None:
        """Move output into the log for up to `timeout` seconds; the exit code once all have ended, else None."""

    def terminate(self) -> None:
        """Ask the stage to save and stop."""

    def ask_for_stacks(self) -> None:
        """Let every rank write what it is doing (SIGUSR1)."""

    def kill_all(self) -> None:
        """End every process of this run, and no other."""


class StageProcess:
    """One running stage. `pump` moves its output into the log; call it until `exit_code` is not None."""

    def __init__(self, argv: list[str], env: Mapping[str, str], cwd: str, run_root: Path, log: FileIO) -> None:
        self.troubles: Sequence[Trouble] = ()
        self._log = log
        self._masker = Masker()
        self._run_root = str(run_root)
        self._process = subprocess.Popen(
            argv,
            env={**env, MARK: self._run_root},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        os.set_blocking(self._pipe, False)
        self._open = True

    @property
    def pid(self) -> int:
        return self._process.pid

    def pump(self, timeout: float) -> int | None:
        """Write what came within `timeout` seconds into the log; the exit code once the process ended, else None.

        A negative code is the signal that ended it. A grandchild that keeps the pipe open does not keep us waiting.
        """
        if self._open:
            ready, _, _ = select.select([self._pipe], [], [], timeout)
            self._write(self._masker.feed(self._read()) if ready else self._masker.flush())
        else:
            time.sleep(timeout)
        code = self._process.poll()
        if code is not None:
            self._write(self._masker.feed(self._read()) + self._masker.flush())
        return code

    def _read(self) -> bytes:
        chunks = []
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._pipe, 1 << 16):
                chunks.append(chunk)
                if len(chunks) >= 64:  # 4 MiB: let the supervisor look at its requests in between
                    break
            else:
                self._open = False
        return b"".join(chunks)

    def _write(self, data: bytes) -> None:
        if data:
            write_if_possible(self._log, data)

    def terminate(self) -> None:
        # Straight to the ranks where there are some: torchrun would kill them 30 s after it has passed the signal on, which
        # is too early for a large checkpoint.
        ranks = self._ranks()
        _signal_all(ranks, signal.SIGTERM)
        if not ranks:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def ask_for_stacks(self) -> None:
        # SIGUSR1 ends a rank that has no handler for it: one of another program's.
        _signal_all([rank for rank in self._ranks() if catches(rank.pid, signal.SIGUSR1)], signal.SIGUSR1)

    def kill_all(self) -> None:
        kill_run_processes(Path(self._run_root))

    def _ranks(self) -> list[psutil.Process]:
        """The ranks themselves, without their loaders and helpers, which inherit RANK."""
        found = {
            process.pid: process for process in run_processes(Path(self._run_root)) if "RANK" in environment_of(process)
        }
        ranks = []
        for process in found.values():
            with contextlib.suppress(psutil.Error):
                if process.ppid() not in found:
                    ranks.append(process)
        return ranks


def environment_of(process: psutil.Process) -> dict[str, str]:
    """The environment that a process was started with; empty where it may not be read."""
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def run_processes(run_root: Path) -> list[psutil.Process]:
    """The living processes of this user that carry this run's mark, but for the caller."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if environment_of(process).get(MARK) == str(run_root) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_run_processes(run_root: Path, grace: float = 0, still: Callable[[], None] = lambda: None) -> int:
    """SIGTERM, up to `grace` seconds, SIGKILL, until none is left; returns how many were found at first."""
    first = run_processes(run_root)
    deadline = time.monotonic() + grace
    if grace:
        _signal_all(first, signal.SIGTERM)
    while (left := run_processes(run_root)) and time.monotonic() < deadline:
        still()
        time.sleep(0.1)
    while left := run_processes(run_root):
        _signal_all(left, signal.SIGKILL)
        time.sleep(0.05)
    return len(first)


def _signal_all(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
