"""A stage of the plan as the screens show it: its numbers, a memory bar, its files and its exact command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from core.language import tr, tr_later
from core.plan_text import HIDDEN_ENV, derived_rows, near
from core.quantities import count, duration, size
from core.stages.base import StagePlan
from core.text.plain import plain
from tui.status_marks import mark

Row = tuple[str, Text]

MEMORY_PARTS = (
    ("memory_weights", "█", tr_later("weights"), "cyan"),
    ("memory_gradients", "▓", tr_later("gradients"), "green"),
    ("memory_optimizer", "▒", tr_later("optimizer"), "yellow"),
    ("memory_activations", "░", tr_later("activations"), "magenta"),
)
"""Key of the plan, the glyph by which the part is known without colour, name, colour."""
BAR_CELLS = (12, 40)
_LABELS_AND_MARGINS = 18


def number_rows(stage: StagePlan, width: int, brief: bool = False) -> list[Row]:
    """What follows from the settings by arithmetic; `width` is that of the whole panel in cells, `brief` one line each."""
    if stage.skip:
        return [(tr("skipped"), Text(tr(stage.skip)))]
    if "memory_total" in stage.derived:
        return _training_rows(stage.derived, width, brief)
    if "global_batch" in stage.derived:
        return _finetune_rows(stage.derived)
    rows = [(name, Text(plain(value))) for name, value in derived_rows(stage.derived)]
    # The corpus script's own command; the stage's is in a row of that name.
    return [("script" if name == "command" else name, value) for name, value in rows]


def file_rows(stage: StagePlan) -> list[Row]:
    """What the stage reads and makes, and on which machine."""
    rows = [(tr("runs on"), _text(", ".join(stage.nodes)))]
    rows += [
        (tr("reads {name}", name=name), _text(", ".join(map(near, paths)))) for name, paths in stage.inputs.items()
    ]
    return rows + [(tr("makes {name}", name=name), _text(near(path))) for name, path in stage.outputs.items()]


def command_row(stage: StagePlan) -> Row:
    """The command as it is typed from the current folder."""
    return tr("command"), _text(shlex.join(near(word) for word in stage.argv))


def process_rows(stage: StagePlan) -> list[Row]:
    """Everything else that the stage's process gets: environment, folder, the names of the secrets it may see."""
    variables = "\n".join(f"{name}={near(value)}" for name, value in stage.env.items() if name not in HIDDEN_ENV)
    rows = [(tr("environment"), _text(variables)), (tr("folder"), _text(near(stage.cwd)))]
    return rows + ([(tr("secrets"), _text(", ".join(stage.secrets)))] if stage.secrets else [])


def as_table(rows: Iterable[Row], brief: bool = False) -> Table:
    """The rows under each other; long values are wrapped in a column of their own, or cut where it is to be `brief`."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, no_wrap=brief, overflow="ellipsis" if brief else "fold")
    for label, value in rows:
        table.add_row(Text(label, style="bold"), value)
    return table


def _training_rows(d: Mapping[str, Any], width: int, brief: bool) -> list[Row]:
    without = tr("without embeddings {without}", without=_exact(d, "parameters_without_embeddings"))
    rows = [
        (tr("parameters"), _text(f"{_exact(d, 'parameters')}  {without}")),
        (tr("memory"), _brief_memory(d) if brief else _memory(d, width)),
        (tr("batch"), _batch(d)),
        (tr("tokens"), _tokens(d)),
        (tr("time"), _text(_time(d))),
        (tr("disk"), _disk(d)),
    ]
    return rows if brief else [*rows, (tr("engine"), _engine(d))]


def _finetune_rows(d: Mapping[str, Any]) -> list[Row]:
    method = tr("low-rank adapters (LoRA)") if d.get("method") == "LoRA" else tr("all weights")
    return [
        (tr("method"), _text(method)),
        (tr("batch"), _batch(d)),
        (tr("length"), _text(tr("{tokens} tokens at most", tokens=_exact(d, "max_length")))),
        (tr("engine"), _engine(d)),
    ]


def _engine(d: Mapping[str, Any]) -> Text:
    return _text(f"{d.get('engine', '')}, {d.get('precision', '')}, {d.get('device', '')}")


def _brief_memory(d: Mapping[str, Any]) -> Text:
    text = Text("[").append_text(memory_bar(d, BAR_CELLS[0])).append("] ")
    text.append(tr("{total} of {available}", total=size(d["memory_total"]), available=_available(d)))
    return text if d.get("memory_fits", True) else text.append_text(_misfit())


def _memory(d: Mapping[str, Any], width: int) -> Text:
    """A bar of what one GPU, or one process in main memory, will hold."""
    cells = min(max(width - _LABELS_AND_MARGINS, BAR_CELLS[0]), BAR_CELLS[1])
    text = Text("[").append_text(memory_bar(d, cells)).append("]\n")
    values = {
        "total": size(d["memory_total"]),
        "available": _available(d),
        "processes": d.get("processes", 1),
    }
    if d.get("device") == "cuda":
        text.append(tr("about {total} of {available} on each of {processes} GPUs", **values))
    else:
        text.append(tr("about {total} of {available} main memory for each of {processes} processes", **values))
    if not d.get("memory_fits", True):
        text.append_text(_misfit())
    for place, (key, glyph, name, colour) in enumerate(MEMORY_PARTS):
        text.append("  " if place % 2 else "\n").append(glyph, style=colour).append(
            f" {tr(name)} {size(d.get(key, 0))}"
        )
    return text


def _available(d: Mapping[str, Any]) -> str:
    """The memory that there is; a GPU of a job to come has not been seen yet."""
    available = d.get("memory_available")
    return "?" if available is None else size(available)


def _misfit() -> Text:
    return Text("  ").append_text(mark("fail")).append(f": {tr('does not fit')}", style="bold")


def memory_bar(d: Mapping[str, Any], cells: int) -> Text:
    """The parts to scale in `cells` cells; where they are more than there is, the bar is full."""
    whole = max(d.get("memory_available") or 0, d["memory_total"], 1)
    text, used, drawn = Text(no_wrap=True), 0, 0
    for key, glyph, _, colour in MEMORY_PARTS:
        used += d.get(key, 0)
        upto = max(round(cells * used / whole), min(1, used))
        text.append(glyph * (upto - drawn), style=colour)
        drawn = upto
    return text.append(" " * (cells - drawn))


def _batch(d: Mapping[str, Any]) -> Text:
    processes = d.get("data_parallel", d.get("processes", 1))
    accumulation = d.get("gradient_accumulation")
    if accumulation is None:
        return _text(
            tr("{global_batch} over {processes} processes", global_batch=d["global_batch"], processes=processes)
        )
    text = tr(
        "{micro} micro x {accumulation} accumulation x {processes} processes = {global_batch}",
        micro=d["micro_batch"],
        accumulation=accumulation,
        processes=processes,
        global_batch=d["global_batch"],
    )
    note = d.get("global_batch_note")
    return _text(text).append_text(_warning(tr("adjusted, so that it divides")) if note else Text())


def _tokens(d: Mapping[str, Any]) -> Text:
    return _text(
        tr(
            "{steps} steps x {tokens_per_step} = {tokens}",
            steps=_exact(d, "steps"),
            tokens_per_step=_exact(d, "tokens_per_step"),
            tokens=count(d.get("tokens", 0)),
        )
    )


def _time(d: Mapping[str, Any]) -> str:
    if d.get("estimated_seconds") is None:
        return tr("not known; pretrain.stated_tokens_per_s of a run like this gives it")
    return tr(
        "{time} at {speed} tokens/s, as stated",
        time=duration(d["estimated_seconds"]),
        speed=count(d["stated_tokens_per_s"]),
    )


def _disk(d: Mapping[str, Any]) -> Text:
    text = tr("{needed} of {free} free", needed=size(d.get("disk_needed", 0)), free=size(d.get("disk_free", 0)))
    return _text(text) if d.get("disk_fits", True) else _text(text).append_text(_misfit())


def _warning(text: str) -> Text:
    return Text("  ").append_text(mark("warn")).append(f": {text}")


def _exact(d: Mapping[str, Any], key: str) -> str:
    return f"{d.get(key, 0):,}"


def _text(text: str) -> Text:
    return Text(plain(text))
