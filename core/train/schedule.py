"""The learning rate of every step: linear warm-up, then cosine or warm-up-stable-decay; a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """`peak` is reached at the end of `warmup` steps, `floor` at the last of `total` steps."""

    kind: Literal["cosine", "wsd"]
    peak: float
    floor: float
    warmup: int
    total: int
    decay_share: float = 0.2

    def lr(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 1 to `total`.

        Cosine: floor + (peak - floor) (1 + cos(pi x)) / 2 with x the share of the steps after the warm-up that are done
        (SGDR, Loshchilov and Hutter 2017, equation 5, one cycle). WSD: peak until the last `decay_share` of the run,
        then linear to the floor (MiniCPM, Hu et al. 2024, section 4).
        """
        if step <= self.warmup:
            return self.peak * step / self.warmup
        if self.kind == "cosine":
            done = (step - self.warmup) / max(1, self.total - self.warmup)
            return self.floor + (self.peak - self.floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        decay = min(max(1, round(self.total * self.decay_share)), max(1, self.total - self.warmup))
        left = (self.total - step) / decay
        return self.floor + (self.peak - self.floor) * min(1.0, max(0.0, left))
