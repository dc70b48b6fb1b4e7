"""What the screens say of a node: pure functions from a NodeView to words, bars and an order, worst first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.cluster.samples import NodeView
from core.language import tr
from core.quantities import duration
from core.text.plain import plain
from tui.status_marks import ascii_only
from tui.widgets.node_grid import NodeRow

HOT_C = 85
"""Where data-centre GPUs begin to slow themselves down (NVIDIA's slowdown temperatures lie between 85 and 95 C)."""
BLOCKED_S = 5.0
LEVELS = "▁▂▃▄▅▆▇█"


def node_rows(views: Iterable[NodeView]) -> list[NodeRow]:
    """The rows of the grid, the worst node first; equally bad ones by name, so that rows do not jump about."""
    judged = [(view, problems(view)) for view in views]
    judged.sort(key=lambda pair: (badness(*pair), pair[0].host))
    return [_row(view, found) for view, found in judged]


def badness(view: NodeView, found: Sequence[str]) -> tuple[int, int, int]:
    """What to sort by: lost, then with problems, then stale, then well; within that by temperature in steps of 5 degrees."""
    hottest = worst_temperature(view.sample)
    rank = 0 if view.status == "lost" else 1 if found else 2 if view.status == "stale" else 3
    return rank, -len(found), -int(hottest // 5) if hottest is not None else 0


def problems(view: NodeView) -> list[str]:
    """What is wrong with a node, in words; the worst first."""
    found = []
    if view.error:
        found.append(plain(view.error))
    sample = view.sample or {}
    if (blocked := sample.get("nvml_blocked_s") or 0) > BLOCKED_S:
        found.append(tr("GPU driver silent for {time}", time=duration(blocked)))
    elif sample.get("nvml") not in ("ok", "absent", None):
        found.append("NVML: " + plain(str(sample["nvml"])))
    for gpu in (view.slow or {}).get("gpus") or ():
        if gpu.get("ecc"):
            found.append(tr("GPU {index}: {count} memory errors", index=gpu["index"], count=gpu["ecc"]))
        if gpu.get("xid"):
            found.append(f"GPU {gpu['index']}: Xid {gpu['xid']}")
        if gpu.get("throttle"):
            found.append(tr("GPU {index} slowed: {reason}", index=gpu["index"], reason=plain(str(gpu["throttle"]))))
    hottest = worst_temperature(view.sample)
    if hottest is not None and hottest >= HOT_C:
        found.append(tr("{degrees} C is hot", degrees=round(hottest)))
    free, total = sample.get("disk_free"), sample.get("disk_total")
    if free is not None and total and free < 0.02 * total:
        found.append(tr("disk {share:.0%} free", share=free / total))
    return found


def worst_temperature(sample: Mapping[str, Any] | None) -> float | None:
    """The hottest GPU's, in C; None where no GPU tells."""
    found = [gpu["temperature"] for gpu in (sample or {}).get("gpus") or () if gpu.get("temperature") is not None]
    return max(found, default=None)


def gpu_bar(util: float | None) -> str:
    """One cell for 0 to 100 %; `?` where it is not known. In ASCII the digit of the tens, 9 for 90 and more."""
    if util is None:
        return "?"
    share = min(100.0, max(0.0, util)) / 100
    return str(min(9, int(share * 10))) if ascii_only() else LEVELS[min(7, int(share * 8))]


def bar_colour(util: float | None) -> str:
    """An idle GPU of a running job is what to look for."""
    if util is None:
        return "magenta"
    return "red" if util < 10 else "yellow" if util < 50 else "green"


def memory_share(sample: Mapping[str, Any] | None) -> float | None:
    """Of the fullest GPU's memory, or of the machine's where there is no GPU."""
    sample = sample or {}
    shares = [share_of(gpu.get("memory_used"), gpu.get("memory_total")) for gpu in sample.get("gpus") or ()]
    known = [share for share in shares if share is not None]
    if known or sample.get("gpus"):
        return max(known, default=None)
    return share_of(sample.get("memory_used"), sample.get("memory_total"))


def share_of(used: float | None, total: float | None) -> float | None:
    return used / total if used is not None and total else None


def power(sample: Mapping[str, Any] | None) -> float | None:
    """Of all GPUs together, in W."""
    return sum_of_known(*(gpu.get("power") for gpu in (sample or {}).get("gpus") or ()))


def sum_of_known(*values: float | None) -> float | None:
    """None where no value is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def rate(bytes_per_s: float | None) -> str:
    """`1.2G` for 1.2 GB/s: a decimal prefix, as networks are rated."""
    if bytes_per_s is None:
        return "?"
    for limit, divisor, unit in ((1e3, 1, "B"), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if bytes_per_s < limit:
            return f"{bytes_per_s / divisor:.3g}{unit}"
    return f"{bytes_per_s / 1e9:.3g}G"


def _row(view: NodeView, found: Sequence[str]) -> NodeRow:
    sample = view.sample or {}
    hottest, memory, watts = worst_temperature(sample), memory_share(sample), power(sample)
    gpus = sample.get("gpus") or ()
    both = sum_of_known(sample.get("net_rx"), sample.get("net_tx"))
    fabric = sum_of_known(sample.get("ib_rx"), sample.get("ib_tx"))
    return NodeRow(
        host=view.host,
        status=view.status,
        bars=tuple((gpu_bar(gpu.get("util")), bar_colour(gpu.get("util"))) for gpu in gpus),
        temperature="" if hottest is None else f"{hottest:.0f}C",
        hot=hottest is not None and hottest >= HOT_C,
        memory="" if memory is None else f"{memory:.0%}",
        power="" if watts is None else f"{watts / 1000:.1f}kW" if watts >= 1000 else f"{watts:.0f}W",
        cpu="" if sample.get("cpu") is None else f"{sample['cpu']:.0f}%",
        network=rate(both) if both is not None else "",
        fabric=rate(fabric) if fabric is not None else "",
        age=duration(view.age_s),
        problems=tuple(found),
    )
