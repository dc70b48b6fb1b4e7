"""What training reports: speed, the share of the hardware's peak, bits per byte."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.files import read_json

PEAK_BF16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 peak by a part of the GPU's name (NVIDIA's data sheets; the sparse figures are twice as high)."""


def peak_flops(gpu_name: str | None) -> float | None:
    """Peak of one GPU in FLOP/s; None on a CPU and for a GPU that is not in the table."""
    if gpu_name is None:
        return None
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in gpu_name), None)


@dataclass
class Stopwatch:
    """Time of training alone: what passes between `pause` and `resume` (validation, saving) does not count."""

    mark: float = 0.0
    seconds: float = 0.0

    def resume(self) -> None:
        self.mark = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap or `resume`."""
        now = time.perf_counter()
        passed, self.mark = now - self.mark, now
        self.seconds += passed
        return passed


@dataclass(frozen=True)
class DataFacts:
    """What the data stage's manifest says about the text behind the tokens; None where it says nothing."""

    valid_bytes_per_token: float | None = None
    unigram_entropy_nats: float | None = None
    tokenizer_sha256: str | None = None
    """Of the SentencePiece model that made the tokens."""

    def bits_per_byte(self, loss: float) -> float | None:
        """Nats per token -> bits per byte of text, comparable between tokenizers."""
        return loss / math.log(2) / self.valid_bytes_per_token if self.valid_bytes_per_token else None


def read_data_facts(prefix: Path) -> DataFacts:
    """Read {prefix}.manifest.json; token files that were made elsewhere have none."""
    try:
        document: dict[str, Any] = read_json(prefix.with_name(prefix.name + ".manifest.json"))
    except FileNotFoundError:
        return DataFacts()
    valid = document.get("splits", {}).get("valid", {})
    tokens, text_bytes = valid.get("tokens"), valid.get("text_bytes")
    return DataFacts(
        valid_bytes_per_token=text_bytes / tokens if tokens and text_bytes else None,
        unigram_entropy_nats=document.get("unigram_entropy_nats"),
        tokenizer_sha256=document.get("tokenizer_sha256"),
    )
