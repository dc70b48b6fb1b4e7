"""Numbers as people read them: counts, bytes, durations."""

from __future__ import annotations


def count(value: float) -> str:
    """1234567 -> 1.23M; below ten thousand the number itself."""
    if abs(value) < 10_000:
        return f"{value:.0f}"
    for limit, divisor, unit in ((1e6, 1e3, "k"), (1e9, 1e6, "M"), (1e12, 1e9, "B"), (float("inf"), 1e12, "T")):
        if abs(value) < limit:
            return f"{value / divisor:.3g}{unit}"
    return str(value)


def size(value: float) -> str:
    """Bytes with a binary unit: 1536 -> 1.5 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value} B"


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m05s, 2h07m or 5d03h."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 48 * 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
