"""Linux namespaces: processes started inside the ones of another process (os.setns exists from Python 3.12 on)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

KINDS = {"mnt": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "net": 0x40000000, "pid": 0x20000000}
"""The names in /proc/PID/ns and the CLONE_NEW* flags of namespaces(7)."""

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def open_namespaces(pid: int) -> dict[str, int]:
    """Open files of a process's namespaces; they live on while these are open."""
    return {kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in KINDS}


@contextlib.contextmanager
def _for_now(kind: str) -> Iterator[None]:
    """This thread may change its namespace of a kind inside."""
    # For processes, ns/pid would be the one this thread is in, which never changes; what changes is that of its children.
    own = os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _checked(_libc.setns(own, KINDS[kind]))
        os.close(own)


def new_network() -> int:
    """The open file of a new network namespace, which goes when the file is closed and no process is in it."""
    with _for_now("net"):
        _checked(_libc.unshare(KINDS["net"]))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def popen_inside(
    namespaces: Mapping[str, int], argv: Sequence[str], cwd: str | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """A process inside these namespaces; its pid is the one that this machine gives it.

    nsenter(1) is no substitute: it waits between us and the process, and a signal to it does not reach the process.
    ProcessLookupError where the namespace's first process has ended.
    """
    # The machine's folders are everywhere, but entering a mount namespace changes to its root.
    folder = os.path.abspath(cwd or os.getcwd())

    def enter() -> None:
        for kind, namespace in namespaces.items():
            if kind != "pid":
                _checked(_libc.setns(namespace, KINDS[kind]))
        os.chdir(folder)

    with contextlib.ExitStack() as until_started:
        if "pid" in namespaces:
            until_started.enter_context(_for_now("pid"))
            _checked(_libc.setns(namespaces["pid"], KINDS["pid"]))
        try:
            return subprocess.Popen(argv, preexec_fn=enter, **options)
        except OSError as error:
            if error.errno == errno.ENOMEM:  # fork's word for it
                raise ProcessLookupError(errno.ESRCH, "this host's first process has ended") from error
            raise
