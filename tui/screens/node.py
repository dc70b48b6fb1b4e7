"""One node of a run: its GPUs with their last minutes, the machine, and the processes of the run on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.events import ScreenResume, ScreenSuspend
from textual.widget import Widget
from textual.widgets import Static

from core.cluster.samples import NodeSamples, NodeView
from core.language import tr, tr_later
from core.quantities import duration, size
from core.runs.directory import RunDirectory
from core.runs.state import read_status
from core.text.plain import one_line, plain
from tui.background import in_background
from tui.messages import NodeLooked, WorkFailed
from tui.node_rows import problems, rate, share_of, sum_of_known
from tui.screens.base import WizardScreen
from tui.status_marks import ascii_only, mark
from tui.widgets.cells import fitted
from tui.widgets.small_chart import BARS, BARS_ASCII, NO_NUMBER, SmallChart, bar_heights

LOOK_S = 2.0
MINUTES = (5, 30, 240)

GPU_SHOWN = (
    ("util", tr_later("load"), 100.0),
    ("memory", tr_later("memory"), 1.0),
    ("temperature", tr_later("temperature"), 100.0),
    ("power", tr_later("power"), 1.0),
)
"""What the bars of a GPU show: key, title, the value of a full bar."""
MACHINE = (("cpu", "CPU"), ("memory", tr_later("memory")), ("net", tr_later("network/s")), ("ib", "InfiniBand/s"))


class NodeScreen(WizardScreen[None]):
    """Escape goes back to the run."""

    MODE = "run"
    HELP = tr_later(
        "What the agent on this node last said, and the minutes before. The node itself is never asked from here."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,b", "app.pop_screen", tr_later("Back"), key_display="esc"),
        Binding("v", "next_value", tr_later("Value"), tooltip=tr_later("Bars of load, memory, temperature or power.")),
        Binding("m", "next_minutes", tr_later("Minutes"), tooltip=tr_later("The last 5, 30 or 240 minutes.")),
        Binding("q", "app.quit", tr_later("Quit"), show=False, tooltip=tr_later("Leave; runs go on.")),
    ]

    def __init__(self, run: RunDirectory, host: str) -> None:
        super().__init__()
        self.watched_run = run
        self.host = host
        self.value = 0
        self.minutes = 0
        self._samples = NodeSamples(run)
        self._looking = False
        self._last: NodeLooked | None = None

    def body(self) -> Iterable[Widget]:
        yield Static(id="node-head", markup=False)
        yield Static(id="node-problems", markup=False)
        yield Static(id="node-gpus", markup=False)
        with Horizontal(id="node-machine"):
            for name, title in MACHINE:
                yield SmallChart(tr(title), id=f"machine-{name}", from_zero=True)
        with VerticalScroll(id="node-processes"):
            yield Static(id="processes", markup=False)

    def on_mount(self) -> None:
        self.query_one("#node-problems").display = False
        self._timer = self.set_interval(LOOK_S, self._look)
        self.query_one("#node-processes").focus()

    @on(ScreenResume)
    def look_again(self) -> None:
        self._timer.resume()
        self._look()

    @on(ScreenSuspend)
    def rest(self) -> None:
        self._timer.pause()

    def _look(self) -> None:
        if self._looking:  # the last look still waits for the file system
            return
        self._looking = True
        minutes = MINUTES[self.minutes]

        def look() -> NodeLooked:
            try:
                status = read_status(self.watched_run)
                ended = status.document.get("ended") if status.state != "running" else None
                views = self._samples.look(ended or time.time())
                view = next((view for view in views if view.host == self.host), None)
                return NodeLooked(view, self._samples.history(self.host, minutes))
            finally:
                self._looking = False

        in_background(self, look, "node")

    @on(WorkFailed)
    def say_failure(self, message: WorkFailed) -> None:
        """The files of the node could not be read."""
        self.query_one("#node-problems", Static).update(message.reason)
        self.query_one("#node-problems").display = True

    @on(NodeLooked)
    def show_node(self, message: NodeLooked) -> None:
        self._last = message
        view = message.view
        if view is None:
            self.query_one("#node-head", Static).update(tr("{host} has not reported.", host=plain(self.host)))
            return
        found = problems(view)
        self.query_one("#node-head", Static).update(node_head(view))
        self.query_one("#node-problems").display = bool(found)
        self.query_one("#node-problems", Static).update(Text("! " + "; ".join(found), style="yellow"))
        key, title, full = GPU_SHOWN[self.value]
        words = tr("{value}, last {minutes} min", value=tr(title), minutes=MINUTES[self.minutes])
        gpus = gpu_lines(view, message.history, key, full, words, self.size.width)
        self.query_one("#node-gpus", Static).update(gpus)
        self._draw_machine(view.sample or {}, message.history)
        self.query_one("#processes", Static).update(process_lines(view.slow))

    def _draw_machine(self, sample: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        both: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
            "cpu": lambda one: one.get("cpu"),
            "memory": lambda one: share_of(one.get("memory_used"), one.get("memory_total")),
            "net": lambda one: sum_of_known(one.get("net_rx"), one.get("net_tx")),
            "ib": lambda one: sum_of_known(one.get("ib_rx"), one.get("ib_tx")),
        }
        used, total = sample.get("memory_used"), sample.get("memory_total")
        words = {
            "cpu": "-" if sample.get("cpu") is None else f"{sample['cpu']:.0f}%",
            "memory": "-" if used is None or not total else f"{size(used)} / {size(total)}",
            "net": f"{rate(sample.get('net_rx'))} / {rate(sample.get('net_tx'))}",
            "ib": "-" if sample.get("ib_rx") is None else f"{rate(sample['ib_rx'])} / {rate(sample['ib_tx'])}",
        }
        full = {"cpu": 100.0, "memory": 1.0}
        for name, value_of in both.items():
            values = [_number(value_of(one)) for one in history]
            self.query_one(f"#machine-{name}", SmallChart).show(words[name], values, full.get(name, float("nan")))

    def action_next_value(self) -> None:
        self.value = (self.value + 1) % len(GPU_SHOWN)
        if self._last is not None:
            self.show_node(self._last)

    def action_next_minutes(self) -> None:
        self.minutes = (self.minutes + 1) % len(MINUTES)
        self._look()


def node_head(view: NodeView) -> Text:
    """`✔ ok  node-003  2s ago  96 cores, load 30  disk 931 GiB of 3.7 TiB free`"""
    text = mark(view.status).append(f"  {plain(view.host)}", style="bold")
    text.append("  " + tr("{time} ago", time=duration(view.age_s)))
    sample = view.sample or {}
    if sample.get("cores") is not None:
        text.append("  " + tr("{count} cores", count=sample["cores"]))
    if sample.get("load") is not None:
        text.append("  " + tr("load {load}", load=f"{sample['load']:.1f}"))
    free, total = sample.get("disk_free"), sample.get("disk_total")
    if free is not None and total:
        text.append("  " + tr("disk {free} of {total} free", free=size(free), total=size(total)))
    return text


def gpu_lines(
    view: NodeView,
    history: Sequence[Mapping[str, Any]],
    key: str,
    full: float,
    words: str,
    width: int,
) -> Text:
    """A heading, then a line a GPU: bars of the last minutes and the newest values."""
    grey = view.status == "lost"
    gpus = (view.sample or {}).get("gpus") or ()
    if not gpus:
        return Text(tr("No GPU: {why}", why=plain(str((view.sample or {}).get("nvml", "?")))), style="bright_black")
    bars = max(8, min(90, width - 51))
    slow = {gpu.get("index"): gpu for gpu in (view.slow or {}).get("gpus") or ()}
    name = plain(str(gpus[0].get("name") or ""))
    head = f"GPU {fitted(words, bars)} {fitted(tr('load'), 5, True)} {fitted(tr('memory'), 11, True)} {fitted(tr('temp'), 5, True)} {fitted(tr('power'), 9, True)} {fitted(tr('clock'), 8, True)}"
    lines = [Text(head, style="bold")]
    for gpu in gpus:
        values = [_number(_of_gpu(sample, gpu["index"], key)) for sample in history]
        marks_of = BARS_ASCII if ascii_only() else BARS
        heights = bar_heights(values, bars, 8, True, full)
        drawn = "".join(NO_NUMBER if height is None else marks_of[height] for height in heights)
        line = Text(f"{gpu['index']:>3} ", style="bright_black" if grey else "")
        line.append(fitted(drawn, bars), style="bright_black" if grey else "green")
        line.append(
            f" {_percent(gpu.get('util')):>5} {_pair(gpu.get('memory_used'), gpu.get('memory_total')):>11}"
            f" {_whole(gpu.get('temperature'), 'C'):>5} {_watts(gpu):>9} {_whole(gpu.get('clock'), 'MHz'):>8}"
        )
        own = slow.get(gpu["index"], {})
        if own.get("throttle") or own.get("ecc") or own.get("xid"):
            line.append(" !", style="bold yellow")
        lines.append(line)
    return Text("\n").join([*lines, Text(name, style="bright_black")])


def process_lines(slow: Mapping[str, Any] | None) -> Text:
    """The run's processes on the node."""
    processes = (slow or {}).get("processes") or ()
    head = f"{fitted(tr('pid'), 8, True)} {fitted(tr('rank'), 5, True)} GPU {'CPU':>6} {fitted(tr('memory'), 9, True)} {fitted(tr('of GPU'), 9, True)}  {tr('process')}"
    if not processes:
        return Text(tr("No process of this run has been seen here."), style="bright_black")
    lines = [Text(head, style="bold")]
    for one in processes:
        cells = [
            f"{_plain(one.get('pid')):>8}",
            f"{_plain(one.get('rank')):>5}",
            f"{_plain(one.get('gpu')):>3}",
            f"{_percent(one.get('cpu')):>6}",
            f"{'-' if one.get('rss') is None else size(one['rss']):>9}",
            f"{'-' if one.get('gpu_memory') is None else size(one['gpu_memory']):>9}",
            " " + _plain(one.get("name")),
        ]
        lines.append(Text(" ".join(cells)))
    return Text("\n").join(lines)


def _of_gpu(sample: Mapping[str, Any], index: Any, key: str) -> float | None:
    gpu: Mapping[str, Any] = next((gpu for gpu in sample.get("gpus") or () if gpu.get("index") == index), {})
    if key == "memory":
        return share_of(gpu.get("memory_used"), gpu.get("memory_total"))
    if key == "power":
        return share_of(gpu.get("power"), gpu.get("power_limit"))
    return gpu.get(key)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}%"


def _whole(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.0f}{unit}"


def _pair(used: float | None, total: float | None) -> str:
    return "-" if used is None or not total else f"{used / 2**30:.0f}/{total / 2**30:.0f}GiB"


def _watts(gpu: Mapping[str, Any]) -> str:
    if gpu.get("power") is None:
        return "-"
    limit = gpu.get("power_limit")
    return f"{gpu['power']:.0f}/{limit:.0f}W" if limit else f"{gpu['power']:.0f}W"


def _plain(value: Any) -> str:
    return "-" if value is None else one_line(str(value))
