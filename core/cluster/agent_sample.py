"""Checking what a node agent says: a sample is averaged, written and drawn, and what a node sends is not trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

_NUMBERS = ("cpu", "cores", "load", "memory_used", "memory_total", "disk_free", "disk_total")
_RATES = ("net_rx", "net_tx", "ib_rx", "ib_tx")
_GPU_NUMBERS = ("util", "memory_used", "memory_total", "temperature", "power", "power_limit", "clock")
_PROCESS_NUMBERS = ("pid", "rank", "local_rank", "gpu", "cpu", "rss", "gpu_memory")


def read_sample(line: bytes) -> dict[str, Any] | None:
    """The sample in a line of an agent, its fields of the right types; None for anything else (a banner, an error)."""
    try:
        sample = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(sample, dict) or not _is_number(sample.get("time")) or not _is_number(sample.get("period")):
        return None
    good = (
        isinstance(sample.get("seq"), int)
        and sample["period"] > 0
        and isinstance(sample.get("nvml"), str)
        and _is_number(sample.get("nvml_blocked_s"))
        and _has_numbers(sample, (*_NUMBERS, *_RATES))
        and _are_gpus(sample.get("gpus"), _GPU_NUMBERS)
        and _is_slow_part(sample.get("slow", "missing"))
    )
    return sample if good else None


def _is_slow_part(slow: object) -> bool:
    if not isinstance(slow, dict):
        return slow is None
    processes = slow.get("processes")
    return (
        isinstance(processes, list)
        and all(isinstance(process, dict) and _has_numbers(process, _PROCESS_NUMBERS) for process in processes)
        and _are_gpus(slow.get("gpus"), ("ecc",))
    )


def _are_gpus(gpus: object, numbers: Sequence[str]) -> bool:
    return isinstance(gpus, list) and all(
        isinstance(gpu, dict) and isinstance(gpu.get("index"), int) and _has_numbers(gpu, numbers) for gpu in gpus
    )


def _has_numbers(document: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether each is there, as a number or None."""
    return all(name in document and (document[name] is None or _is_number(document[name])) for name in names)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
