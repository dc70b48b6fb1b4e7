"""`llm-wizard monitor`: GPUs, load and processes in plain lines, without a run: of this machine, a Slurm job's or named nodes.

Up to BLOCKS nodes have a block of lines each; more of them a line each, and what is wrong is said below.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from core.cluster.agent_stream import Interruption, Node
from core.cluster.collector import PERIOD_S, Collector, local_node, nodes_to_watch
from core.cluster.inventory import inventory_of, slurm_nodes
from core.cluster.reach import reach_of
from core.cluster.samples import NodeView, node_view
from core.errors import StageError
from core.language import tr, tr_later
from core.quantities import size
from core.text.plain import plain

FIRST_SAMPLE_S = 15.0
NODES_PER_S = 10
"""As fast at least do agents start on many nodes; more time is waited for more of them."""
BLOCKS = 4
MOST_PROBLEMS = 20
WIDTH = 80

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

    def interruption(self, what: Interruption) -> None:
        with self._news:
            self._errors[what.host] = f"{what.kind}: {what.words}"
            self._news.notify_all()

    def back(self, host: str, away_s: float) -> None:
        pass  # its sample has said so

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


def watched_nodes(nodes: str, hostfile: Path | None, python: str) -> list[Node]:
    """The nodes that are named, or the Slurm job's, or this machine; by srun where they are of the job, else by ssh.

    Raises:
        InputError: what names them is wrong.
    """
    named = bool(nodes or hostfile)
    inventory = inventory_of(nodes, hostfile, "ssh" if named else "auto", os.environ)
    if inventory is None:
        return [local_node(None, Path.cwd())]
    in_job = set(inventory.nodes) <= set(slurm_nodes(os.environ))
    reach = reach_of("slurm" if in_job else "ssh", os.environ)
    return nodes_to_watch(inventory.nodes, reach, python, None, Path.cwd())


def monitor(nodes: Sequence[Node], once: bool, as_json: bool, out: TextIO = sys.stdout) -> dict[str, Any] | None:
    """Print what the nodes are doing every two seconds until interrupted; with `once` one time.

    With `as_json` nothing is printed: the samples are returned as one document, after the first of each node.

    Raises:
        StageError: no node could be looked at.
    """
    latest = Latest(nodes)
    collector = Collector(nodes, latest)
    collector.start()
    try:
        latest.wait_for_all(FIRST_SAMPLE_S + len(nodes) / NODES_PER_S)
        views = latest.views()
        if not any(view.sample for view in views):
            reasons = [f"{view.host}: {view.error or 'no answer'}" for view in views]
            more = f"; and {len(reasons) - BLOCKS} more" if len(reasons) > BLOCKS else ""
            raise StageError(
                f"no node could be looked at: {plain('; '.join(reasons[:BLOCKS]))}{more}",
                "--python PATH names a Python that the nodes have; `llm-wizard doctor` says more, with the same --nodes or --hostfile",
            )
        if as_json:
            return {"schema_version": 1, "nodes": [document(view) for view in views]}
        while True:
            views = latest.views()
            lines = table(views) if len(views) > BLOCKS else [line for view in views for line in block(view)]
            print("\n".join(lines), file=out, flush=True)
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


def table(views: Sequence[NodeView]) -> list[str]:
    """A line a node, of at most 80 columns; then what is wrong, and how many are well."""
    head = f"{'node':<18}{'GPUs':>5}{'util':>6}{'GPU mem':>9}{'temp':>6}{'CPU':>6}{'memory':>8}{'net':>11}"
    problems = [f"! {plain(view.host)}: {words}" for view in views for words in _problems(view)]
    more = len(problems) - MOST_PROBLEMS
    counts = [(status, sum(view.status == status for view in views)) for status in STATUS_WORDS]
    return [
        f"{head}  {time.strftime('%H:%M:%S')}",
        *map(_row, views),
        *(f"{line:.{WIDTH}}" for line in problems[:MOST_PROBLEMS]),
        *([tr("and {count} more", count=more)] if more > 0 else []),
        tr("{count} nodes: {states}", count=len(views), states=_states(counts)),
    ]


def _states(counts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {tr(STATUS_WORDS[status])}" for status, count in counts if count)


def _row(view: NodeView) -> str:
    name = plain(view.host)
    name = name if len(name) < 18 else f"{name:.16}~"
    state = tr(STATUS_WORDS[view.status]) + (" !" if _problems(view) else "")
    sample = view.sample
    if sample is None or view.status == "lost":  # what it was doing then says nothing of now
        return f"{name:<69}  {state}"
    gpus = sample["gpus"]
    used = _mean([_share(gpu["memory_used"], gpu["memory_total"]) for gpu in gpus])
    hottest = max((gpu["temperature"] for gpu in gpus if gpu["temperature"] is not None), default=None)
    rates = [rate for rate in (sample[key] for key in ("net_rx", "net_tx", "ib_rx", "ib_tx")) if rate is not None]
    return (
        f"{name:<18}{len(gpus) or '-':>5}{_number(_mean([gpu['util'] for gpu in gpus]), '%'):>6}"
        f"{_number(used, '%'):>9}{_number(hottest, ' C'):>6}{_number(sample['cpu'], '%'):>6}"
        f"{_number(_share(sample['memory_used'], sample['memory_total']), '%'):>8}"
        f"{size(sum(rates)) + '/s' if rates else '-':>11}  {state}"
    )


def _problems(view: NodeView) -> list[str]:
    found = [plain(view.error)] if view.error else []
    if view.status != "ok":
        found.append(tr("last heard of {seconds} s ago", seconds=f"{view.age_s:.0f}"))
    if view.sample and view.sample["nvml"] != "absent":
        found += _driver_words(view.sample)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _share(used: float | None, total: float | None) -> float | None:
    return 100 * used / total if used is not None and total else None


def _driver_words(sample: Mapping[str, Any]) -> list[str]:
    if sample["nvml_blocked_s"]:
        return [tr("the GPU driver has not answered for {seconds} s", seconds=f"{sample['nvml_blocked_s']:.0f}")]
    if sample["nvml"] == "absent":
        return [tr("no NVIDIA driver was found")]
    if sample["nvml"] != "ok":
        return [tr("the GPU driver says: {words}", words=plain(sample["nvml"]))]
    return []


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
    lines = _driver_words(sample)
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
