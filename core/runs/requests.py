"""Requests to a running supervisor: small files that any shell, screen or second user can leave, each acted on once."""

from __future__ import annotations

from core.files import write_json
from core.runs.directory import RunDirectory

STOP = "stop"
CHECKPOINT = "checkpoint"


def ask(run: RunDirectory, request: str) -> None:
    """Leave a request; asking twice is asking once."""
    import getpass
    import time

    run.requests.mkdir(mode=0o700, exist_ok=True)
    write_json(run.requests / request, {"by": getpass.getuser(), "time": time.time()})


def take(run: RunDirectory, request: str) -> bool:
    """Whether the request was left; it is removed, so exactly one taker sees it."""
    try:
        (run.requests / request).unlink()
    except FileNotFoundError:
        return False
    return True
