"""A plan as text: what each stage will run, read and make, and the arithmetic behind it."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from core.plan import Plan
from core.quantities import count, duration, size
from core.stages import BY_ID
from core.stages.base import StagePlan

HIDDEN_ENV = ("PATH",)
LONG_COMMAND, LINE = 400, 80
"""Characters: of a command that is broken, and of a line after which it is."""


def plan_text(plan: Plan) -> str:
    """The whole plan; paths below the current folder are shown relative to it."""
    return "\n\n".join(_stage_text(number, stage) for number, stage in enumerate(plan.stages, 1)) + "\n"


def _stage_text(number: int, stage: StagePlan) -> str:
    title = f"{number}. {BY_ID[stage.id].title} ({stage.id})"
    if stage.skip:
        return f"{title}\n   skipped: {stage.skip}"
    rows = command_rows([near(word) for word in stage.argv])
    variables = [f"{name}={near(value)}" for name, value in stage.env.items() if name not in HIDDEN_ENV]
    rows += [("environment", " ".join(variables)), ("on", _where(stage))]
    rows += [(f"reads {name}", ", ".join(map(near, paths))) for name, paths in stage.inputs.items()]
    rows += [(f"makes {name}", near(path)) for name, path in stage.outputs.items()]
    rows += _pretrain_rows(stage.derived) if stage.id == "pretrain" else derived_rows(stage.derived)
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"   {name:<{width}}  {value}" for name, value in rows)])


def command_rows(argv: list[str]) -> list[tuple[str, str]]:
    """The command as it can be typed; a long one has its options on lines of their own."""
    whole = shlex.join(argv)
    if len(whole) <= LONG_COMMAND:
        return [("command", whole)]
    lines = [""]
    for word, quoted in zip(argv, map(shlex.quote, argv), strict=True):
        if word.startswith("--") and len(lines[-1]) + len(quoted) >= LINE:
            lines.append("")
        lines[-1] += f" {quoted}" if lines[-1] else quoted
    *but_last, last = lines
    names = ["command", *[""] * len(but_last)]
    return list(zip(names, [*(f"{line} \\" for line in but_last), last], strict=True))


def _where(stage: StagePlan) -> str:
    names = stage.nodes if len(stage.nodes) <= 8 else [*stage.nodes[:3], "...", stage.nodes[-1]]
    where = ", ".join(names)
    if len(stage.nodes) > 1:
        where += f" ({len(stage.nodes)} nodes)"
    return where if stage.launcher == "local" else f"{where} by {stage.launcher}"


def near(path: str) -> str:
    """A path as it is typed from the current folder."""
    here = f"{Path.cwd()}{os.sep}"
    return path.removeprefix(here) if path != here else "."


def derived_rows(derived: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what a stage's plan says beside its command and files."""
    rows = [
        (name.replace("_", " ").removesuffix(" bytes"), _value(name, value))
        for name, value in derived.items()
        if name != "corrections" and value not in ("", [])
    ]
    return rows + correction_rows(derived.get("corrections", []))


def correction_rows(corrections: list[dict[str, str]]) -> list[tuple[str, str]]:
    """A row for each thing that is done otherwise than the original's script does it."""
    return [
        row
        for entry in corrections
        for row in (
            ("corrected", f"{entry['what']}: {near(entry['here'])} (the original: {near(entry['original'])})"),
            ("", f"  {entry['why']}"),
        )
    ]


def _value(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return size(value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _pretrain_rows(d: dict[str, Any]) -> list[tuple[str, str]]:
    adjusted = f"   <- {d['global_batch_note']}" if d["global_batch_note"] else ""
    arithmetic = (
        f"{d['micro_batch']} micro x {d['gradient_accumulation']} accumulation x {d['data_parallel']} processes"
    )
    states = [("weights", "memory_weights"), ("gradients", "memory_gradients"), ("optimizer", "memory_optimizer")]
    parts = " + ".join(f"{name} {size(d[key])}" for name, key in [*states, ("activations", "memory_activations")])
    time = "not known: set pretrain.stated_tokens_per_s from a run like this"
    if d["estimated_seconds"] is not None:
        time = (
            f"{duration(d['estimated_seconds'])} at {count(d['stated_tokens_per_s'])} tokens/s (stated, not measured)"
        )
    available = d["memory_available"]
    of = "an amount not known yet" if available is None else size(available)
    return [
        ("parameters", f"{d['parameters']:,} ({d['parameters_without_embeddings']:,} without embeddings)"),
        ("FLOPs per token", f"{d['flops_per_token']:,}"),
        ("engine", f"{d['engine']}, {d['precision']}"),
        *_parallel_rows(d),
        ("global batch", f"{d['global_batch']} = {arithmetic}{adjusted}"),
        ("steps", f"{d['steps']:,} x {d['tokens_per_step']:,} tokens = {count(d['tokens'])} tokens"),
        ("warm-up", f"{d['warmup_steps']:,} steps"),
        (
            "memory per process",
            f"about {size(d['memory_total'])} of {of}{_fits(d['memory_fits'])}",
        ),
        ("", parts),
        ("checkpoint", size(d["checkpoint_bytes"])),
        ("disk", f"needs about {size(d['disk_needed'])}, free {size(d['disk_free'])}{_fits(d['disk_fits'])}"),
        ("time", time),
        *_megatron_rows(d),
    ]


def _parallel_rows(d: dict[str, Any]) -> list[tuple[str, str]]:
    if "tensor_parallel" not in d:
        return []
    parts = [f"{d[f'{name}_parallel']} {name}" for name in ("data", "pipeline", "tensor")]
    return [("parallel", f"{' x '.join(parts)} = {d['processes']} process{'es' * (d['processes'] != 1)}")]


def _megatron_rows(d: dict[str, Any]) -> list[tuple[str, str]]:
    """What only the megatron backend has: its names, DeepSpeed's configuration, and how far the original is followed."""
    if "job_name" not in d:
        return []
    rows = [("job", d["job_name"]), ("ds_config", near(d["ds_config_file"])), ("", json.dumps(d["ds_config"]))]
    if d["original"]:
        rows.append(("original", d["original"]))
    if d["strict_original"]:
        rows.append(
            ("strict", "the command is the original's to the letter (megatron.strict_original); nothing is corrected")
        )
    return rows + correction_rows(d["corrections"])


def _fits(fits: bool) -> str:
    return "" if fits else "   <- DOES NOT FIT"
