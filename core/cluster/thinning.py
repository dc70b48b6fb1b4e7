"""Making the history of a node shorter: neighbouring lines of its older half become one that stands for the time of all of them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import orjson

MEANS = ("cpu", "load", "memory_used", "disk_free", "net_rx", "net_tx", "ib_rx", "ib_tx")
"""What the history has means of."""
GPU_MEANS = ("util", "memory_used", "power", "power_limit", "clock")
"""The same for each GPU; of "temperature" it has the maximum."""


def thin(path: Path, limit: int) -> None:
    """Rewrite a history of a little over `limit` bytes to at most three quarters of that; its younger half stays as it is.

    The older half gets the finest resolution, in doublings, that fits. (Halving whatever is there each time would soon put nearly
    all of a long run into its first line.) Lines on both sides of a pause of the run stay apart; where that, or damage, keeps the
    older half too large, its oldest lines go. Readers see the file as before or as after. Raises OSError.
    """
    beside = path.with_name(path.name + ".new")
    try:
        with path.open("rb") as old:
            size = os.fstat(old.fileno()).st_size
            old.seek(size // 2)
            old.readline()
            middle = old.tell()
            room = limit * 3 // 4 - (size - middle)
            longest = _finest(_read_until(old, middle), room)
            lines = []
            for document in _merged(_read_until(old, middle), longest):
                lines.append(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
            first, length = 0, sum(map(len, lines))
            while first < len(lines) and length > room:
                length -= len(lines[first])
                first += 1
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with os.fdopen(os.open(beside, flags, 0o600), "wb") as new:
                new.writelines(lines[first:])
                old.seek(middle)
                shutil.copyfileobj(old, new)
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _read_until(file: IO[bytes], end: int) -> Iterator[tuple[dict[str, Any], int]]:
    """The lines of a history before `end`, with their lengths; a damaged one is left out."""
    file.seek(0)
    while file.tell() < end:
        line = file.readline()
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(document, dict) and {"time", "period", "gpus", *MEANS} <= document.keys():
            yield document, len(line)


def _finest(lines: Iterable[tuple[Mapping[str, Any], int]], room: int) -> float:
    """The shortest time, in s, that one line may stand for if all are to fit in `room` bytes."""
    known = [({"time": one["time"], "period": one["period"]}, length) for one, length in lines]
    longest = 2 * min((one["period"] for one, _ in known), default=1.0)
    total = sum(one["period"] for one, _ in known)
    while longest < 2 * total:
        length = before = 0
        current: Mapping[str, Any] | None = None
        for one, own in known:
            if current is not None and _belong(current, one, longest):
                current = {**one, "period": current["period"] + one["period"]}
                before = max(before, own)
            else:
                length += before
                current, before = one, own
        if length + before <= room:
            break
        longest *= 2
    return longest


def _belong(first: Mapping[str, Any], second: Mapping[str, Any], longest: float) -> bool:
    follows = 0 < second["time"] - first["time"] < 2 * second["period"]
    return bool(follows and first["period"] + second["period"] <= longest)


def _merged(lines: Iterable[tuple[Mapping[str, Any], int]], longest: float) -> Iterator[Mapping[str, Any]]:
    current: Mapping[str, Any] | None = None
    for one, _ in lines:
        if current is not None and _belong(current, one, longest):
            current = merge(current, one)
            continue
        if current is not None:
            yield current
        current = one
    if current is not None:
        yield current


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """One line of a history for two that follow each other."""
    weights = (first.get("samples", 1), second.get("samples", 1))

    def mean(a: float | None, b: float | None) -> float | None:
        if a is None or b is None:
            return b if a is None else a
        value: float = (a * weights[0] + b * weights[1]) / sum(weights)
        return round(value) if abs(value) >= 1000 else round(value, 2)

    gpus_before = {gpu["index"]: gpu for gpu in first["gpus"]}
    gpus = []
    for gpu in second["gpus"]:
        before = gpus_before.get(gpu["index"], {})
        temperatures = [one["temperature"] for one in (before, gpu) if one.get("temperature") is not None]
        means = {name: mean(before.get(name), gpu.get(name)) for name in GPU_MEANS}
        gpus.append({**gpu, **means, "temperature": max(temperatures, default=None)})
    return {
        **second,
        **{name: mean(first[name], second[name]) for name in MEANS},
        "gpus": gpus,
        "period": first["period"] + second["period"],
        "nvml_blocked_s": max(first.get("nvml_blocked_s", 0.0), second.get("nvml_blocked_s", 0.0)),
        "samples": sum(weights),
    }
