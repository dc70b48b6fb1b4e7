"""What a checkpoint belongs to: hashes of the settings, the code and the data, compared before one is resumed from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

import core
from core.files import content_key
from core.preset import Preset
from core.stages.pretrain import batch_and_rates, total_steps, warmup_steps

FREE_TO_CHANGE = {
    "stated_tokens_per_s",
    "keep_checkpoints",
    "log_interval",
    "valid_interval",
    "valid_batches",
    "save_interval",
    "compile",
    "gradient_checkpointing",
    "allow_short_documents",
    "device",
    "zero",
    "micro_batch",
    "global_batch",
}
"""Settings of the pretrain section that may differ between two attempts of one run: they change no weight by intent.

Of the global batch the one that is really used counts, rounded up to whole micro-batches on every process.
"""


def config_hash(preset: Preset, derived: Mapping[str, Any]) -> str:
    """SHA-256 of everything in the preset that decides the weights, with the batch, steps and precision as planned."""
    rates = batch_and_rates(preset)
    document = {
        "model": preset.model.model_dump(),
        "pretrain": preset.pretrain.model_dump(exclude=FREE_TO_CHANGE) | {"lr": rates.lr, "min_lr": rates.min_lr},
        "split": preset.data.split,
        "seed": preset.seed,
        "derived": {key: derived[key] for key in ("steps", "warmup_steps", "global_batch", "precision")},
    }
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()


def config_hash_with_batch(preset: Preset, derived: Mapping[str, Any], global_batch: int) -> str:
    """What `config_hash` would be with another number of sequences in a step, and nothing else changed."""
    tokens = global_batch * preset.model.sequence_length
    steps = total_steps(preset.pretrain, tokens)
    numbers = {
        "global_batch": global_batch,
        "steps": steps,
        "warmup_steps": warmup_steps(preset.pretrain, steps, tokens),
    }
    return config_hash(preset, {**derived, **numbers})


def data_hash(prefix: Path) -> str:
    """One hash of the token file and its index (`content_key` of each)."""
    keys = [content_key(prefix.with_name(prefix.name + ending)) for ending in (".bin", ".idx")]
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()


def code_hash() -> str:
    """SHA-256 over the names and contents of this package's own source files."""
    root = Path(core.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()
