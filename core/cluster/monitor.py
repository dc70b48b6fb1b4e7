"""`llm-wizard monitor`: this machine's GPUs, load and processes in plain lines, without a run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from core.cluster.collector import PERIOD_S, Collector, Node, local_node
from core.cluster.samples import NodeView, node_view
from core.errors import StageError
from core.language import tr, tr_later
from core.quantities import size
from core.text.plain import plain

FIRST_SAMPLE_S = 15.0

STATUS_WORDS = {"ok": tr_later("ok"), "stale": tr_later("STALE"), "lost": tr_later("LOST")}


class Latest:
    """Keeps the newest sample of each node; a sink of the collector."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._began = time.time()
        self._hosts = [node.host for node in nodes]
        self._samples: dict[str, dict[str, Any]] = {}
        self._slow: dict[str, dict[str, Any]] = {}
        self._errors: dict[str, str] = {}
        self._news = threading.Condition()

    def sample(self, host: str, sample: Mapping[str, Any]) -> None:
        with self._news:
            self._samples[host] = dict(sample)
            self._errors.pop(host, None)
            if sample["slow"]:
                self._slow[host] = sample["slow"]
            self._news.notify_all()

    def failure(self, host: str, time: float, text: str, restarts: int, is_news: bool) -> None:
        with self._news:
            self._errors[host] = text
            self._news.notify_all()

    def close(self) -> None:
        pass

    def wait_for_all(self, seconds: float) -> None:
        """Wait until each node has been heard of, well or not."""
        with self._news:
            self._news.wait_for(lambda: {*self._samples, *self._errors} >= {*self._hosts}, seconds)

    def views(self) -> list[NodeView]:
        with self._news:
            return [
                node_view(
                    host,
                    self._samples.get(host),
                    self._slow.get(host),
                    self._began,
                    self._errors.get(host, ""),
                    time.time(),
                )
                for host in self._hosts
            ]


def monitor(once: bool, as_json: bool, out: TextIO = sys.stdout) -> dict[str, Any] | None:
    """Print a block of lines every two seconds until interrupted; with `once` one block.

    With `as_json` nothing is printed: the samples are returned as one document, after the first of each node.

    Raises:
        StageError: no agent could be started.
    """
    nodes = [local_node(None, Path.cwd())]
    latest = Latest(nodes)
    collector = Collector(nodes, latest)
    collector.start()
    try:
        latest.wait_for_all(FIRST_SAMPLE_S)
        views = latest.views()
        if not any(view.sample for view in views):
            why = "; ".join(f"{view.host}: {view.error or 'no answer'}" for view in views)
            raise StageError(f"no node could be looked at: {plain(why)}", "run `llm-wizard doctor`")
        if as_json:
            return {"schema_version": 1, "nodes": [document(view) for view in views]}
        while True:
            for view in latest.views():
                print("\n".join(block(view)), file=out, flush=True)
            if once:
                return None
            print(file=out)
            time.sleep(PERIOD_S)
    finally:
        collector.stop()


def document(view: NodeView) -> dict[str, Any]:
    """A node for `--json`: its sample with the slow part, and how old it is."""
    return {
        "host": view.host,
        "status": view.status,
        "age_s": round(view.age_s, 1),
        "error": view.error,
        "sample": view.sample and {**view.sample, "slow": view.slow},
    }


def block(view: NodeView) -> list[str]:
    """A node in lines of at most 80 columns."""
    state = tr(STATUS_WORDS[view.status])
    age = "" if view.status == "ok" else " " + tr("(last heard of {seconds} s ago)", seconds=f"{view.age_s:.0f}")
    lines = [f"{plain(view.host)}  {time.strftime('%H:%M:%S')}  {state}{age}"]
    if view.error:
        lines.append(plain(view.error))
    if view.sample:
        lines += _machine(view.sample) + _gpus(view.sample) + _processes(view.slow or {"processes": []})
    return lines


def _machine(sample: Mapping[str, Any]) -> list[str]:
    lines = [
        tr(
            "CPU {used} of {cores} cores, load {load}   memory {memory} of {total}",
            used=_number(sample["cpu"], "%"),
            cores=_number(sample["cores"]),
            load=_number(sample["load"]),
            memory=_size(sample["memory_used"]),
            total=_size(sample["memory_total"]),
        ),
        tr(
            "disk {free} free of {total}   network in {received}/s out {sent}/s",
            free=_size(sample["disk_free"]),
            total=_size(sample["disk_total"]),
            received=_size(sample["net_rx"]),
            sent=_size(sample["net_tx"]),
        ),
    ]
    if sample["ib_rx"] is not None:
        received, sent = _size(sample["ib_rx"]), _size(sample["ib_tx"])
        lines.append(tr("InfiniBand in {received}/s out {sent}/s", received=received, sent=sent))
    return lines


def _gpus(sample: Mapping[str, Any]) -> list[str]:
    lines = []
    if sample["nvml_blocked_s"]:
        lines.append(tr("the GPU driver has not answered for {seconds} s", seconds=f"{sample['nvml_blocked_s']:.0f}"))
    elif sample["nvml"] == "absent":
        lines.append(tr("no NVIDIA driver was found"))
    elif sample["nvml"] != "ok":
        lines.append(tr("the GPU driver says: {words}", words=plain(sample["nvml"])))
    if sample["gpus"]:
        lines.append(f"GPU  {'':<20}{'util':>5}{'memory':>19}{'temp':>7}{'power':>12}{'clock':>10}")
    for gpu in sample["gpus"]:
        memory = f"{_size(gpu['memory_used'])}/{_size(gpu['memory_total'])}"
        power = f"{_number(gpu['power'])}/{_number(gpu['power_limit'], ' W')}"
        lines.append(
            f"{gpu['index']:>3}  {plain(str(gpu['name'] or '-')):<20.20}{_number(gpu['util'], '%'):>5}{memory:>19}"
            f"{_number(gpu['temperature'], ' C'):>7}{power:>12}{_number(gpu['clock'], ' MHz'):>10}"
        )
    return lines


def _processes(slow: Mapping[str, Any]) -> list[str]:
    if not slow["processes"]:
        return []
    lines = [f"{'pid':>9} {'rank':>5} {'GPU':>4} {'CPU':>6} {'memory':>9} {'GPU mem':>9}  process"]
    for process in slow["processes"]:
        lines.append(
            f"{process['pid']:>9} {_number(process['rank']):>5} {_number(process['gpu']):>4} "
            f"{_number(process['cpu'], '%'):>6} {_size(process['rss']):>9} {_size(process['gpu_memory']):>9}  "
            f"{plain(str(process['name'])):.31}"
        )
    return lines


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:.0f}{unit}" if isinstance(value, int) or abs(value) >= 10 else f"{value:.1f}{unit}"


def _size(value: float | None) -> str:
    return "-" if value is None else size(value)
