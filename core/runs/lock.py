"""The lock of a run: held by its supervisor with flock. Alive means that the lock is held, not that a pid exists."""

from __future__ import annotations

import fcntl
import os
import time
from typing import Any

import orjson

from core.runs.directory import RunDirectory


class LockTaken(Exception):  # noqa: N818 (the ordinary answer to "is it running?")
    """Another process holds the lock; `owner` is what it wrote there."""

    def __init__(self, owner: dict[str, Any]) -> None:
        super().__init__(f"held by pid {owner.get('pid', '?')} on {owner.get('host', '?')}")
        self.owner = owner


def take_lock(run: RunDirectory, patience: float = 0.0) -> int:
    """Take the lock for the rest of this process's life; the descriptor is not inherited by children.

    Raises:
        LockTaken: another process holds it, and does so after `patience` seconds. The kernel frees it with its holder, however that
            ends; a network file system frees that of a machine that is gone only after a while.
    """
    descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if time.monotonic() >= deadline:
                owner = _read_owner(descriptor)
                os.close(descriptor)
                raise LockTaken(owner) from None
            time.sleep(0.5)
    os.ftruncate(descriptor, 0)
    return descriptor


def sign_lock(descriptor: int) -> None:
    """Write into the lock who holds it. The supervisor does so when its state is on disk: who started it waits for that."""
    owner = {"pid": os.getpid(), "host": os.uname().nodename, "since": time.time()}
    os.pwrite(descriptor, orjson.dumps(owner), 0)


def lock_owner(run: RunDirectory) -> dict[str, Any] | None:
    """Who holds the lock, or None when nobody does. Looks only: a shared lock is taken for an instant."""
    try:
        descriptor = os.open(run.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read_owner(descriptor)
    finally:
        os.close(descriptor)
    return None


def _read_owner(descriptor: int) -> dict[str, Any]:
    try:
        owner = orjson.loads(os.pread(descriptor, 4096, 0))
    except orjson.JSONDecodeError:
        return {}
    return owner if isinstance(owner, dict) else {}
