"""`llm-wizard` as a user's terminal runs it: a real process in a real pty, whose text can be waited for."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SEQUENCE = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()=>][0-9A-Z]?")
REPOSITORY = Path(__file__).parent.parent
TERMINAL = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


def start_in_pty(
    argv: Sequence[str],
    variables: Mapping[str, str],
    columns: int,
    rows: int,
    cwd: Path | None = None,
    redirected: Mapping[int, Path] | None = None,
) -> tuple[int, int]:
    """Start a program, named by its path, with just these variables in a pty of its own; (its pid, our side of the pty)."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if cwd is not None:
            os.chdir(cwd)
        for descriptor, path in (redirected or {}).items():
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
        os.execve(argv[0], argv, variables)
    return pid, terminal


class ScreenInPty:
    """One process with the terminal to itself; `environment` is added to the test's own, None takes a variable away.

    `redirected` puts a file in the place of a descriptor: {2: path} is the shell's `2>path`.
    """

    def __init__(
        self,
        *argv: str,
        cwd: Path,
        columns: int = 80,
        rows: int = 24,
        redirected: Mapping[int, Path] | None = None,
        **environment: str | None,
    ) -> None:
        wanted = {**os.environ, "PYTHONPATH": str(REPOSITORY), **TERMINAL, **environment}
        variables = {name: value for name, value in wanted.items() if value is not None}
        self.output = b""
        command = [sys.executable, "-m", "tui.main", *argv]
        self.pid, self.terminal = start_in_pty(command, variables, columns, rows, cwd, redirected)

    def read(self, seconds: float = 0.1) -> bool:
        """Take in what the process prints within the time; False when it has closed the terminal."""
        if not select.select([self.terminal], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.terminal, 1 << 16)
        except OSError:  # EIO: the other side is gone
            return False
        self.output += data
        return bool(data)

    @property
    def text(self) -> str:
        """Everything printed so far, without escape sequences."""
        return SEQUENCE.sub(b"", self.output).decode("utf-8", "replace")

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Read until the text has been printed; forgets what came before the call."""
        self.output = self.output[-200:] if text in self.text else b""
        deadline = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < deadline, f"no {text!r} in {self.text[-2000:]!r}"
            if not self.read() and text not in self.text:
                raise AssertionError(f"it ended without {text!r}: {self.text[-2000:]!r}")

    def send(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def hang_up(self) -> None:
        """What a dropped SSH connection does: the terminal goes, and with it comes SIGHUP."""
        os.close(self.terminal)
        self.terminal = -1

    def wait(self, seconds: float = 20) -> int:
        """The exit code, negative for a signal; the process is killed where it does not end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            if self.terminal >= 0:
                self.read(0.02)
            else:
                time.sleep(0.02)
        self.close()
        raise AssertionError(f"the process did not end: {self.text[-1500:]!r}")

    def close(self) -> None:
        """End it, whatever it does."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        if self.terminal >= 0:
            os.close(self.terminal)
            self.terminal = -1
