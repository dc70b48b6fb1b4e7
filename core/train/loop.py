"""The training loop: steps, validation, checkpoints, stopping. Every rank runs it in step with the others."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from core.errors import StageError
from core.files import read_json, write_atomically, write_json
from core.runs import requests
from core.stages.base import StageContext, StageStopped
from core.train.checkpoint import commit, latest_verified, remove_leftovers, remove_old
from core.train.engine import Engine
from core.train.metrics import DataFacts, Stopwatch
from core.train.order import SampleOrder, first_sample
from core.train.ranks import Ranks
from core.train.sequences import Sequences, share_of_rank, validation_numbers
from core.train.settings import TrainSettings
from core.train.tracking import Tracker

TRAINER_FILE = "trainer.json"
CONFIG_FILE = "config.json"


@dataclass
class Progress:
    """How far the run is: saved as trainer.json in every checkpoint."""

    step: int = 0
    samples: int = 0
    """Sequences consumed, over all ranks: the position in the data."""
    tokens: int = 0
    loss: float | None = None
    first_val_loss: float | None = None
    val_loss: float | None = None
    val_step: int = -1
    val_losses: list[float] = field(default_factory=list)
    """Mean loss of each validation micro-batch of the last validation; the conversion is checked against them."""


def read_progress(folder: Path) -> Progress:
    """The progress saved in a verified checkpoint."""
    document = read_json(folder / TRAINER_FILE)
    return Progress(**{name: document[name] for name in Progress.__dataclass_fields__})


@dataclass
class TrainingLoop:
    """One attempt at a run, from `progress` to the last step."""

    context: StageContext
    settings: TrainSettings
    engine: Engine
    ranks: Ranks
    train: Sequences
    valid: Sequences
    facts: DataFacts
    peak_flops: float | None
    lineage: Mapping[str, Any]
    trainer_document: Mapping[str, Any]
    """Written into trainer.json beside the progress."""
    tracker: Tracker
    attempt: int
    progress: Progress
    saved_step: int = -1
    watch: Stopwatch = field(default_factory=Stopwatch)
    _trained_tokens: int = 0
    _first_speed: float | None = None

    def run(self) -> None:
        """Train to the last step.

        Raises:
            StageStopped: a stop was requested, and what was done until then is saved.
            StageError: the loss is no longer a number, or a checkpoint could not be written.
        """
        section = self.context.preset.pretrain
        if self.progress.step == 0:
            self._report({"step": 0, "tokens": 0, **self._validate()})
        self._leave_if_asked()
        total, since_log = self.settings.steps, 0
        health = torch.zeros((), device=self.ranks.device)
        gc.freeze()  # the model never becomes garbage: the collector need not walk over it every few steps
        self.watch.resume()
        while self.progress.step < total:
            lr = self.settings.schedule.lr(self.progress.step + 1)
            loss, norm = self._step(lr)
            since_log += 1
            health += loss + norm  # not a number as soon as one of them is not; read only where a record is due
            step = self.progress.step
            last = step == total
            stop, wanted = self.ranks.any(self.context.stop_requested, self._checkpoint_requested())
            valid_due = last or step % section.valid_interval == 0
            save_due = last or stop or wanted or step % section.save_interval == 0
            if step % section.log_interval == 0 or valid_due or save_due:
                record = self._record(loss, norm, lr, since_log)
                self._stop_if_not_finite(health, record)
                since_log = 0
                if valid_due:
                    record |= self._validate()
                self._report(record)
                if save_due:
                    self.save()
                    self._answer_request(wanted)
                self.watch.resume()
            if stop and not last:
                raise StageStopped
        self._print(f"trained {self.progress.tokens:,} tokens in {self.progress.step:,} steps")

    @property
    def tokens_per_s(self) -> float | None:
        """Mean speed of this attempt, all ranks together, without validation, saving and the first record (compilation)."""
        return self._trained_tokens / self.watch.seconds if self._trained_tokens else self._first_speed

    def _step(self, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step; its mean loss over the whole global batch, and the gradients' norm."""
        settings, ranks = self.settings, self.ranks
        order = SampleOrder(len(self.train), settings.seed)
        loss = torch.zeros((), device=ranks.device)
        for micro in range(settings.accumulation):
            first = first_sample(self.progress.samples, micro, ranks.rank, settings.world_size, settings.micro_batch)
            loss += self.engine.accumulate(self.train.read(order.samples(first, settings.micro_batch)))
        norm = self.engine.step(lr)
        self.progress.step += 1
        self.progress.samples += settings.global_batch
        self.progress.tokens += settings.tokens_per_step
        self._trained_tokens += settings.tokens_per_step
        return ranks.sum(loss / (settings.accumulation * settings.world_size)), norm

    def _record(self, loss: torch.Tensor, norm: torch.Tensor, lr: float, steps: int) -> dict[str, Any]:
        self.progress.loss = loss.item()
        seconds = self.watch.lap()
        speed = steps * self.settings.tokens_per_step / seconds
        if self._first_speed is None:
            self._first_speed, self._trained_tokens, self.watch.seconds = speed, 0, 0.0
        own = self.engine.forward_seconds()
        per_rank = {} if own is None else {"forward_ms": [round(1000 * each, 2) for each in self.ranks.gather(own)]}
        mfu = None
        if self.peak_flops:
            mfu = speed * self.settings.flops_per_token / (self.peak_flops * self.settings.world_size)
        return {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "loss": self.progress.loss,
            "lr": lr,
            "grad_norm": norm.item(),
            "tokens_per_s": speed,
            "mfu": mfu,
            "step_ms": 1000 * seconds / steps,
            **per_rank,
        }

    def _validate(self) -> dict[str, float | None]:
        """The loss on the validation sequences, the same ones every time."""
        section = self.context.preset.pretrain
        batches = validation_numbers(len(self.valid), section.valid_batches, self.settings.micro_batch)
        losses = torch.zeros(len(batches), device=self.ranks.device)
        for place, (numbers, counts) in enumerate(share_of_rank(batches, self.ranks.rank, self.ranks.world_size)):
            loss = self.engine.evaluate(self.valid.read(numbers))
            if counts:
                losses[place * self.ranks.world_size + self.ranks.rank] = loss
        self.progress.val_losses = self.ranks.sum(losses).tolist()
        self.progress.val_loss = weighted_mean(self.progress.val_losses, [len(numbers) for numbers in batches])
        self.progress.val_step = self.progress.step
        if self.progress.first_val_loss is None:
            self.progress.first_val_loss = self.progress.val_loss
        return {
            "val_loss": self.progress.val_loss,
            "val_bits_per_byte": self.facts.bits_per_byte(self.progress.val_loss),
        }

    def save(self) -> None:
        """Commit a checkpoint of the present step, unless there is one, and remove what is no longer kept."""
        step = self.progress.step
        if step == self.saved_step:
            return
        started = time.perf_counter()
        folder = self.context.run.checkpoints
        lineage = {**self.lineage, "data_position": self.progress.samples, "tokens": self.progress.tokens}
        try:
            path = commit(folder, step, self.attempt, self._write, lineage, self.ranks.is_main, self.ranks.barrier)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save's own is a RuntimeError
            if self.ranks.is_main:
                remove_leftovers(folder)
            raise StageError(
                f"the checkpoint of step {step} could not be written: {error}. {self._last_good()}",
                "see that the disk of the runs folder has space, then `llm-wizard resume`",
            ) from error
        self.saved_step = step
        if self.ranks.is_main:
            self.context.event("checkpoint", step=step, path=str(path))
            print(f"checkpoint {path} ({time.perf_counter() - started:.1f} s)", flush=True)
            try:
                remove_old(folder, self.context.preset.pretrain.keep_checkpoints)
            except OSError as error:
                self.context.warn(f"an old checkpoint could not be removed: {error}")
        self.ranks.barrier()

    def _write(self, folder: Path) -> None:
        self.engine.save(folder)
        if self.ranks.is_main:
            write_json(folder / TRAINER_FILE, {**asdict(self.progress), **self.trainer_document})
            write_atomically(folder / CONFIG_FILE, self.engine.model.config.to_json_string().encode())

    def _checkpoint_requested(self) -> bool:
        return self.ranks.is_main and (self.context.run.requests / requests.CHECKPOINT).exists()

    def _answer_request(self, wanted: bool) -> None:
        if wanted and self.ranks.is_main:
            requests.take(self.context.run, requests.CHECKPOINT)

    def _leave_if_asked(self) -> None:
        """Stop before the first step of this attempt: there is nothing new to save."""
        if self.progress.step < self.settings.steps and self.ranks.any(self.context.stop_requested)[0]:
            raise StageStopped

    def _stop_if_not_finite(self, health: torch.Tensor, record: Mapping[str, Any]) -> None:
        if math.isfinite(health.item()):
            return
        self._report(record)
        raise StageError(
            f"the loss is not a number any more: step {record['step']} has loss {record['loss']} and gradient norm "
            f"{record['grad_norm']}. {self._last_good()}",
            "lower pretrain.lr or lengthen the warm-up, and look at the data of the last steps; then `llm-wizard resume`",
        )

    def _last_good(self) -> str:
        if not self.ranks.is_main:
            return "Rank 0 says which checkpoint is the last good one"
        found = latest_verified(self.context.run.checkpoints)
        return f"The last good checkpoint is {found.path}" if found else "There is no checkpoint yet"

    def _report(self, record: Mapping[str, Any]) -> None:
        if not self.ranks.is_main:
            return
        full = {"time": time.time(), "total": self.settings.steps, **record, "attempt": self.attempt}
        self.context.report(full)
        self.tracker.log(full)
        self._print(describe(full))

    def _print(self, text: str) -> None:
        if self.ranks.is_main:
            print(text, flush=True)


def weighted_mean(losses: list[float], weights: list[int]) -> float:
    """Mean of micro-batch losses, each counted with its number of sequences."""
    return sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)


def describe(record: Mapping[str, Any]) -> str:
    """One line of the log for a metric record."""
    parts = [f"step {record['step']:,}/{record['total']:,}"]
    if "loss" in record:
        speed = f"{record['tokens_per_s']:,.0f} tokens/s"
        parts += [f"loss {record['loss']:.4f}", f"lr {record['lr']:.2e}", f"grad {record['grad_norm']:.2f}", speed]
        if record["mfu"] is not None:
            parts.append(f"mfu {record['mfu']:.1%}")
    if "val_loss" in record:
        parts.append(f"validation loss {record['val_loss']:.4f}")
        if record["val_bits_per_byte"] is not None:
            parts.append(f"{record['val_bits_per_byte']:.3f} bits/byte")
    return "  ".join(parts)
