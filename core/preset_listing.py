"""The shipped presets as a table: what each is for, and what it needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.data.preprocess_command import ORIGINALS as PREPROCESSING
from core.language import tr
from core.preset import Preset
from core.preset_source import load_preset
from core.text.cells import wrapped

ORIGINAL_CLUSTER = re.compile(r"/[^/]*node-(?P<nodes>\d+)_gpu(?:-(?P<gpus>\d+))?/")
"""In the path of one of the original's scripts: its nodes, and all their GPUs together."""
NAMES = ("name", "cluster", "size", "parallelism", "description")


def preset_row(name: str, path: Path) -> dict[str, Any]:
    """One entry of `presets list --json`. `cluster` is nodes x GPUs of each, as far as the preset knows them."""
    preset = load_preset(name).preset
    nodes, gpus = cluster(preset)
    return {
        "name": name,
        "file": str(path),
        "description": preset.description,
        "nodes": nodes,
        "gpus_per_node": gpus,
        "cluster": "-" if nodes is None else f"{nodes} x {'all' if gpus is None else gpus}",
        "size": _size(preset),
        "parallelism": parallelism(preset, nodes, gpus),
        "original": preset.original,
    }


def cluster(preset: Preset) -> tuple[int | None, int | None]:
    """Nodes, and GPUs of each (None for all there are); (None, None) where the preset says neither."""
    if _makes_data_only(preset):
        return 1, 0
    match = ORIGINAL_CLUSTER.search(f"/{preset.original}")
    nodes = preset.slurm.nodes or (int(match["nodes"]) if match else None)
    if nodes is None:
        return None, None
    named = int(match["gpus"]) // int(match["nodes"]) if match and match["gpus"] else None
    slurm = preset.slurm.gpus_per_node
    return nodes, preset.cluster.processes or (slurm if slurm is not None else named)


def parallelism(preset: Preset, nodes: int | None, gpus: int | None) -> str:
    """ZeRO stage and the factors that the GPUs are divided into, such as zero1 dp4 pp2 tp2; ones are left out."""
    if _makes_data_only(preset):
        return "-"
    if preset.finetune.backend != "embedded":
        return f"zero{preset.finetune.zero}" if preset.finetune.zero else "-"
    if preset.pretrain.backend == "embedded":
        return f"zero {preset.pretrain.zero}"
    tp, pp = preset.megatron.tensor_parallel, preset.megatron.pipeline_parallel
    dp = nodes * gpus // (tp * pp) if nodes and gpus else "*"
    factors = [f"dp{dp}", *([f"pp{pp}"] if pp > 1 else []), *([f"tp{tp}"] if tp > 1 else [])]
    return " ".join([f"zero{preset.pretrain.zero}", *factors])


def _makes_data_only(preset: Preset) -> bool:
    return preset.original in PREPROCESSING


def _size(preset: Preset) -> str:
    """The named size, or the parameters; of a preset that makes no model nothing."""
    if _makes_data_only(preset) or preset.finetune.backend != "embedded":
        return "-"
    if preset.model.size:
        return preset.model.size
    count = preset.model.shape().parameters(preset.tokenizer.vocab_size)
    return f"{count / 1e6:.0f}M" if count < 1e9 else f"{count / 1e9:.1f}B"


def preset_table(rows: Sequence[dict[str, Any]], columns: int) -> str:
    """The rows in `columns` columns: a line of facts for each, with its sentence below."""
    shown = [{key: str(row[key]) for key in NAMES} for row in rows]
    facts = NAMES[:-1]
    widths = {key: max(len(key), *(len(row[key]) for row in shown)) for key in facts}
    lines = ["  ".join(f"{key.upper():<{widths[key]}}" for key in facts).rstrip()]
    for row in shown:
        lines.append("  ".join(f"{row[key]:<{widths[key]}}" for key in facts).rstrip())
        lines += wrapped(tr(row["description"]), max(20, columns - 1), "    ", "    ")
    return "\n".join(lines) + "\n"
