"""How long this rank's own forward pass takes: what tells a slow rank from those that wait for it.

A whole step takes equally long on all ranks, because each waits for the slowest in the collectives of the backward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class ForwardClock:
    """Times one block at a time, on the device's own clock where that is a GPU."""

    def __init__(self, device: torch.device) -> None:
        event: Callable[..., Any] = torch.cuda.Event  # torch gives it no types
        self._start = event(enable_timing=True) if device.type == "cuda" else None
        self._end = event(enable_timing=True) if device.type == "cuda" else None
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time what happens inside; nothing is waited for."""
        started = time.perf_counter()
        if self._start:
            self._start.record()
        yield
        if self._end:
            self._end.record()
        self._seconds = time.perf_counter() - started

    def seconds(self) -> float:
        """Of the last timed block; on a GPU this waits for its end. Call it only after a block was timed."""
        if self._start and self._end:
            self._end.synchronize()
            return float(self._start.elapsed_time(self._end)) / 1000
        return self._seconds
