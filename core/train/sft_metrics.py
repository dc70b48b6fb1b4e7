"""trl's log records under this project's names, and when to validate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from core.errors import StageError

VALIDATIONS = 4
"""Validations after the one at the start, spread evenly; the last is at the end."""


class Metrics(TrainerCallback):  # type: ignore[misc] # mypy does not follow transformers
    """Hands every logged step and every validation to `report`; `before` is what an earlier attempt had come to."""

    def __init__(self, total: int, validate: bool, before: Mapping[str, Any], report: Callable[..., None]) -> None:
        self.total = total
        self.validate_at = (
            {math.ceil(total * part / VALIDATIONS) for part in range(1, VALIDATIONS + 1)} if validate else {}
        )
        self.loss = math.nan
        self.val_loss_first: float | None = before.get("val_loss_first")
        self.val_loss: float | None = None
        self.tokens = self._tokens_before = int(before.get("tokens", 0))
        self._report = report
        self._logged_step = int(before.get("step", 0))
        self._step_began = self._busy = 0.0

    def so_far(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that the next attempt counts on."""
        return {"tokens": self.tokens, "val_loss_first": self.val_loss_first}

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._step_began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._busy += time.perf_counter() - self._step_began
        control.should_evaluate = state.global_step in self.validate_at
        # The last step and the one before a save are logged whatever the interval, so that no count is lost.
        control.should_log |= state.global_step == self.total or control.should_save

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        record: dict[str, Any] = {"time": time.time(), "step": state.global_step, "total": self.total, "unit": "steps"}
        if "eval_loss" in logs:
            self.val_loss = float(logs["eval_loss"])
            self.val_loss_first = self.val_loss if self.val_loss_first is None else self.val_loss_first
            self._report(record | {"tokens": self.tokens, "val_loss": self.val_loss})
        elif "loss" in logs:
            self.loss = float(logs["loss"])
            self._report(record | self._training(logs, state.global_step))
            if not math.isfinite(self.loss):
                raise StageError(
                    f"the loss is {self.loss} at step {state.global_step}",
                    "lower finetune.lr, or look for a broken conversation in the data",
                )

    def _training(self, logs: Mapping[str, Any], step: int) -> dict[str, Any]:
        seen, steps, busy = self.tokens, step - self._logged_step, self._busy
        self.tokens = self._tokens_before + int(logs["num_tokens"])
        self._logged_step, self._busy = step, 0.0
        return {
            "tokens": self.tokens,
            "loss": self.loss,
            "lr": float(logs["learning_rate"]),
            "grad_norm": float(logs["grad_norm"]),
            "tokens_per_s": (self.tokens - seen) / max(busy, 1e-9),
            "step_ms": 1000 * busy / max(steps, 1),
        }
