"""Fetching one file of the original pipeline's data sets, for the scripts beside this one. Standard library only."""

from __future__ import annotations

import fcntl
import http
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20
WAIT_S = 60.0
"""For the connection, and for each next part of the file."""
SAY_EVERY_S = 5.0


def fetch(url: str, target: Path, instead: str) -> bool:
    """Put what `url` has into `target`, which appears whole or not at all; a file that is there already is left alone. A fetch that
    was cut off goes on where it was when this is called again.

    Where that cannot be done, says why and what to do (`instead`) on stderr, and returns False.
    """
    if target.is_file():
        print(f"{target} is there already")
        return True
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            done = _get(url, file)
        part.replace(target)
    except BlockingIOError:
        print(f"error: another process is fetching {target}; wait for it", file=sys.stderr)
        return False
    except (OSError, http.client.HTTPException, ValueError) as error:
        kept = part.stat().st_size if part.is_file() else 0
        if not kept:
            part.unlink(missing_ok=True)
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        again = f" ({kept:,} bytes are kept, and the next try goes on there)" if kept else ""
        print(
            f"error: {url} cannot be fetched: {reason or type(error).__name__}{again}. Where there is no network, fetch it elsewhere, "
            f"copy it here, and {instead}",
            file=sys.stderr,
        )
        return False
    print(f"{target}: {done:,} bytes")
    return True


def _get(url: str, file: BinaryIO) -> int:
    """Append what is missing; the size then. Raises OSError for a connection that ended early."""
    have = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        answer = urllib.request.urlopen(request, timeout=WAIT_S)  # noqa: S310 (the callers' addresses are constants)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        file.truncate(0)  # what is here is not the beginning of what is there
        return _get(url, file)
    with answer:
        if have and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            file.truncate(0)
            have = 0
        length = int(answer.headers.get("Content-Length") or 0)
        expected = have + length if length else 0
        done = have + _copy(answer, file, have, expected)
    if expected and done != expected:
        raise OSError(f"the connection ended after {done:,} of {expected:,} bytes")
    return done


def _copy(answer: http.client.HTTPResponse, file: BinaryIO, have: int, expected: int) -> int:
    done, said = 0, time.monotonic()
    while part := answer.read(CHUNK):
        file.write(part)
        done += len(part)
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            print(f"{have + done:,} of {expected:,} bytes" if expected else f"{have + done:,} bytes", flush=True)
    return done
