"""Requests to a running supervisor: small files that any shell, screen or second user can leave, each acted on once."""

from __future__ import annotations

from typing import Any

import orjson

from core.files import read_json, write_json
from core.runs.directory import RunDirectory

STOP = "stop"
CHECKPOINT = "checkpoint"


def ask(run: RunDirectory, request: str) -> None:
    """Leave a request; asking twice is asking once, and the first who asked is named."""
    import getpass
    import os
    import time

    if pending(run, request) is not None:
        return
    run.requests.mkdir(mode=0o700, exist_ok=True)
    who = f"{getpass.getuser()}@{os.uname().nodename}"
    write_json(run.requests / request, {"by": who, "time": time.time()})


def pending(run: RunDirectory, request: str) -> dict[str, Any] | None:
    """Who asked and when: {"by", "time"}; None when nobody did or the request has been taken."""
    try:
        return dict(read_json(run.requests / request))
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, TypeError, ValueError):
        return {"by": "?", "time": 0.0}  # left by hand: a request all the same


def take(run: RunDirectory, request: str) -> dict[str, Any] | None:
    """The request if it was left, as `pending` gives it; it is removed, so exactly one taker sees it."""
    asked = pending(run, request)
    if asked is None:
        return None
    try:
        (run.requests / request).unlink()
    except FileNotFoundError:
        return None
    return asked
