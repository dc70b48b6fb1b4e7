"""A stage's log on a terminal: control sequences are removed, and it can be followed while it grows."""

from __future__ import annotations

import time
from typing import TextIO

from core.errors import InputError
from core.runs.directory import RunDirectory
from core.runs.state import ENDED, read_status
from core.text.plain import plain

CHUNK = 1 << 16


def print_log(run: RunDirectory, stage_id: str | None, follow: bool, out: TextIO) -> None:
    """Print the log of a stage, or of the one that runs or ran last; with `follow`, on into the next stages to the end."""
    document = read_status(run).document
    wanted = stage_id or document["stage"]
    if stage_id is not None and stage_id not in document["stages"]:
        raise InputError(f"run {run.name} has no stage {stage_id!r}", f"one of: {', '.join(document['stages'])}")
    if wanted is None:
        raise InputError(f"run {run.name} has not started a stage yet")
    path = run.log(wanted)
    if not path.exists() and not follow:
        raise InputError(f"there is no log of {wanted}: the stage is {document['stages'][wanted]['state']}")
    position = 0
    while True:
        position = _print_from(path, position, out)
        if not follow:
            return
        document = read_status(run).document
        if document["stages"][wanted]["state"] != "running":
            _print_from(path, position, out)
            moved_on = stage_id is None and document["stage"] != wanted
            if not moved_on and document["state"] in ENDED:
                return
            if not moved_on and stage_id is not None and document["stages"][wanted]["state"] != "waiting":
                return
            if moved_on:
                wanted, position = document["stage"], 0
                path = run.log(wanted)
                print(f"--- {wanted}", file=out, flush=True)
                continue
        time.sleep(0.3)


def _print_from(path: object, position: int, out: TextIO) -> int:
    """Print the whole lines behind `position`; returns where the next print begins."""
    from pathlib import Path

    assert isinstance(path, Path)
    try:
        with path.open("rb") as file:
            file.seek(position)
            while chunk := file.read(CHUNK):
                end = chunk.rfind(b"\n") + 1
                if not end and len(chunk) < CHUNK:
                    break  # an unfinished line: wait for its end
                end = end or len(chunk)
                out.write(plain(chunk[:end].decode("utf-8", "replace")))
                position += end
                file.seek(position)
    except FileNotFoundError:
        return position
    out.flush()
    return position
