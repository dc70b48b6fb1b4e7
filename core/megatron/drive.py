"""Drives a training by a Megatron-DeepSpeed checkout: makes it ready, and turns its log into what our own trainer reports.

Its ranks run the checkout's code and nothing of ours, under whatever Python it needs; all that is known of them stands in their log
and in their checkpoint folder.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from core.errors import InputError, StageError
from core.files import write_json
from core.megatron.checkout import describe, stale_kernel_lock, what_cannot_be_compiled
from core.megatron.checkpoint_files import POINTER, layout_of, mend, newest_complete, what_is_wrong
from core.megatron.command import load_own
from core.megatron.data import weigh
from core.megatron.log_lines import (
    EngineStep,
    Exiting,
    Fact,
    Iteration,
    Layout,
    Loaded,
    Memory,
    Overflow,
    Phase,
    RankFailed,
    Saved,
    Tracked,
    Validation,
    Vocabulary,
    facts_in,
)
from core.megatron.start_from import is_model_folder, lay_out
from core.runs import requests
from core.runs.directory import RunDirectory
from core.runs.records import json_records
from core.runs.series import read_validations
from core.runs.state import last_metrics
from core.stages.base import Outcome, append_record, write_result
from core.stages.command import HOST, STARTED, STARTED_FORMAT, fill_in
from core.train.metrics import DataFacts, read_data_facts

SCRIPT = "pretrain_gpt.py"
READ_AT_ONCE = 8 << 20
LONGEST_REST = 1 << 20
"""Of a line without an end so much is kept; a progress bar may be one."""
LOOK_AGAIN_S = 5.0
SHARED_WITHIN_S = 60.0
"""After which what one node wrote to a network file system is seen on the others (NFS keeps a folder's attributes so long)."""
PHASES = {
    "index-builder": "the checkout's index builder is being compiled",
    "fused-kernels": "the fused kernels are being compiled and loaded",
    "sample-index": "rank 0 computes the order of the samples; the others wait for it",
}
"""What may take minutes, or for ever. It is told of once it has taken TOLD_AFTER_S."""
TOLD_AFTER_S = 2.0


class MegatronDriver:
    """One attempt; see core.runs.driver.Driver."""

    def __init__(self, run: RunDirectory, stage: Mapping[str, Any], attempt: int, event: Callable[..., None]) -> None:
        self._run, self._stage, self._attempt, self._event = run, stage, attempt, event
        self._id = str(stage["id"])
        self._derived: Mapping[str, Any] = stage["derived"]
        self._checkpoints = Path(stage["outputs"]["checkpoints"])
        self._layout = layout_of(stage["argv"], int(self._derived["processes"]))
        self._checkout = Path(next(word for word in stage["argv"] if word.endswith(f"/{SCRIPT}"))).parent
        own_data = str(run.data_prefix) in stage["argv"]
        self._data = read_data_facts(run.data_prefix) if own_data else DataFacts()
        self._started = time.time()
        self._place = 0
        """Byte of the log up to which it was read."""
        self._rest = b""
        self._goes_on_from: int | None = None
        self._from_elsewhere = False
        self._step = self._tokens = 0
        self._losses: dict[str, float] = {}
        """The newest by their names in the result."""
        self._overflows = self._left_out = self._skipped = 0
        """Steps left out because of overflow, by the three who may say so: DeepSpeed at each, Megatron's lines, DeepSpeed's lines."""
        self._trained_tokens, self._trained_s = 0, 0.0
        self._saved: set[int] = set()
        self._unseen: dict[int, tuple[float, float]] = {}
        """Checkpoints of which not all files were seen yet: when they were said to be saved, and when to look (monotonic)."""
        self._phase, self._phase_since = "", 0.0
        self._said: set[str] = set()
        self._is_trained = False
        self._exiting = ""
        self._rank_code = 0
        self._memory_mb = 0.0

    # --- Before the start

    def prepare(self) -> Mapping[str, Any]:
        """Raises InputError or StageError: it cannot start like this."""
        log = self._run.log(self._id)
        self._place = log.stat().st_size if log.exists() else 0
        if not (self._checkout / SCRIPT).is_file():
            raise InputError(
                f"{self._checkout} is no Megatron-DeepSpeed checkout: there is no {SCRIPT} in it",
                "--set megatron.checkout=FOLDER names it",
            )
        python = str(self._stage["argv"][0])
        if self._stage.get("launcher", "local") == "local" and not shutil.which(python):
            raise InputError(
                f"{python} is not a program that can be run",
                "--set megatron.python=PROGRAM names the Python that runs the checkout",
            )
        self._tell(f"Megatron-DeepSpeed {self._checkout}, {describe(self._checkout)}")
        self._look_at_checkout()
        argv = list(self._stage["argv"])
        try:
            self._goes_on_from = mend(self._checkpoints, self._layout, self._warn)
            if self._goes_on_from is None:
                self._look_for_another_folder()
            for folder in (self._checkpoints, Path(self._derived["ds_config_file"]).parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(Path(self._derived["ds_config_file"]), self._derived["ds_config"])
        except OSError as error:
            raise InputError(
                f"{error.filename or self._checkpoints} cannot be written: {error.strerror}",
                "--set megatron.output=FOLDER names another place for checkpoints",
            ) from None
        if self._goes_on_from is not None and not self._place:
            self._warn(
                f"goes on from step {self._goes_on_from} in {self._checkpoints}, where another run left it; "
                "--set megatron.output=FOLDER names a place where a training begins anew"
            )
        if "--finetune" in argv:
            argv = self._choose_start(argv)
        argv = weigh(argv)
        self._put_stale_orders_aside(argv)
        return {**self._stage, "argv": self._fill_in(argv)}

    def _look_at_checkout(self) -> None:
        if self._stage.get("launcher", "local") == "local":
            path = self._stage["env"].get("PATH", os.defpath)
            for problem in what_cannot_be_compiled(self._checkout, self._stage["argv"][0], path):
                self._warn(problem)
        compiles = self._derived["device"] == "cuda" and "--no-masked-softmax-fusion" not in self._stage["argv"]
        if compiles and (lock := stale_kernel_lock(self._checkout)):
            self._warn(
                f"{lock} is there: if no other run compiles the fused kernels now, this one would wait for it without end; "
                f"then stop it and remove {lock.parent}"
            )

    def _look_for_another_folder(self) -> None:
        """The folder is named by settings: after a change of one, Megatron would begin anew without a word."""
        if not self._run.events.exists():
            return
        saved = [
            Path(event["path"]).parent
            for event in json_records(self._run.events.read_bytes().split(b"\n"))
            if event.get("kind") == "checkpoint" and event.get("stage") == self._id
        ]
        before = saved[-1] if saved else self._checkpoints
        if before == self._checkpoints:
            return
        step = newest_complete(before, self._layout)
        if step is not None:
            raise InputError(
                f"this run's checkpoints up to step {step} are in {before}; with these settings it would begin anew in {self._checkpoints}",
                f"to go on from them rename that folder to {self._checkpoints.name}; to begin anew start another run",
            )
        self._warn(f"the training begins anew in {self._checkpoints}; what this run saved before is in {before}")

    def _choose_start(self, argv: list[str]) -> list[str]:
        """A checkpoint of the training's own comes before the one it was to start from."""
        if self._goes_on_from is not None:
            return load_own(argv, str(self._checkpoints))
        elsewhere = Path(argv[argv.index("--load") + 1])
        if is_model_folder(elsewhere):
            self._tell(f"{elsewhere} is laid out as Megatron's files")
            elsewhere = lay_out(elsewhere, self._checkpoints, argv, self._run)
            argv[argv.index("--load") + 1] = str(elsewhere)
        if not (elsewhere / POINTER).is_file():
            # DeepSpeed would say so in one line, and start from random weights.
            raise InputError(
                f"megatron.start_from: there is no file {POINTER!r} in {elsewhere}",
                "give the folder that holds global_stepN/ and the file `latest`, or a Hugging Face folder",
            )
        self._from_elsewhere = True
        return argv

    def _put_stale_orders_aside(self, argv: list[str]) -> None:
        """Megatron uses an order of samples again that it has made for token files at the same path, whatever they hold now."""
        from core.data.index_cache import stale_orders  # numpy
        from core.data.indexed import files_of, read_index
        from core.data.repair import backup_name

        for prefix in map(Path, data_prefixes(argv)):
            try:
                stale = stale_orders(prefix, read_index(files_of(prefix)[1]).sizes)
                for order in stale:
                    for file in order.files:
                        file.rename(backup_name(file))
            except OSError as error:
                raise StageError(
                    f"the token files {prefix} and the orders of samples beside them cannot be looked after: "
                    f"{error.filename}: {error.strerror}",
                    "see that they are there and that you may write their folder's index-cache/",
                ) from None
            if stale:
                self._warn(
                    f"{len(stale)} of Megatron's orders of samples were made for other token files at {prefix}: {stale[0].why}; "
                    "they are kept as .bak, and made again"
                )

    def _fill_in(self, argv: list[str]) -> list[str]:
        started = time.strftime(STARTED_FORMAT, time.localtime(self._started))
        filled = []
        for before, word in zip(["", *argv], argv, strict=False):
            if before in ("--tensorboard-dir", "--wandb_group"):
                folder, slash, name = word.rpartition("/")
                word = folder + slash + name.replace(STARTED, started).replace(HOST, os.uname().nodename)
            filled.append(word)
        if self._stage.get("launcher", "local") != "local":
            return filled
        return fill_in(filled, 0, "127.0.0.1", free_port())

    # --- While it runs

    def follow(self) -> None:
        """Never raises for a disk that is full: the training goes on, and so does its log."""
        try:
            self._read()
            self._look_at_saved()
        except OSError:
            return
        if self._phase in PHASES and time.monotonic() - self._phase_since > TOLD_AFTER_S:
            self._tell(PHASES[self._phase])
        if requests.take(self._run, requests.CHECKPOINT):
            every = self._stage["argv"][self._stage["argv"].index("--save-interval") + 1]
            self._warn(
                f"Megatron saves every {every} steps and when it is stopped, not on request: "
                f"`llm-wizard stop {self._run.name}` and then `llm-wizard resume {self._run.name}` saves and goes on"
            )

    def _read(self, last: bool = False) -> bool:
        """Take what is new in the log; whether there was anything."""
        with self._run.log(self._id).open("rb") as log:
            data = os.pread(log.fileno(), READ_AT_ONCE, self._place)
        self._place += len(data)
        lines = self._rest + data
        end = len(lines) if last and not data else lines.rfind(b"\n") + 1
        self._rest = lines[end:][-LONGEST_REST:]
        for fact in facts_in(lines[:end]):
            self._take(fact)
        return bool(data)

    def _take(self, fact: Fact) -> None:
        if isinstance(fact, Iteration):
            self._report_step(fact)
        elif isinstance(fact, Validation):
            self._report_validation(fact)
        elif isinstance(fact, Overflow):
            self._overflows += fact.rank == 0
        elif isinstance(fact, EngineStep):
            self._skipped = max(self._skipped, fact.skipped)
        elif isinstance(fact, Saved):
            if fact.step not in self._saved:  # the last one is saved twice
                self._saved.add(fact.step)
                self._unseen[fact.step] = time.monotonic(), 0.0
        elif isinstance(fact, Loaded):
            self._look_at_start(fact.step)
        elif isinstance(fact, (Layout, Vocabulary)):
            self._compare(fact)
        elif isinstance(fact, Phase):
            self._is_trained |= fact.name == "trained"
            self._phase, self._phase_since = fact.name, time.monotonic()
        elif isinstance(fact, Exiting):
            self._exiting = fact.why
        elif isinstance(fact, RankFailed):
            self._rank_code = self._rank_code or fact.code
        elif isinstance(fact, Memory):
            self._memory_mb = max(self._memory_mb, fact.max_reserved)
        elif isinstance(fact, Tracked) and "wandb" not in self._said:
            self._said.add("wandb")
            named = "url" if "://" in fact.where else "folder"
            self._event("wandb", stage=self._id, **{named: fact.where})

    def _report_step(self, line: Iteration) -> None:
        processes = int(self._derived["processes"])
        speed = line.tokens_per_gpu_s * processes
        if self._tokens and line.tokens > self._tokens:  # not the first record, which has the warming up in it
            self._trained_tokens += line.tokens - self._tokens
            self._trained_s += line.step_ms / 1000 * (line.step - self._step)
        self._left_out += line.skipped
        self._step, self._tokens = line.step, line.tokens
        peak = self._derived.get("peak_flops")
        record: dict[str, Any] = {
            "step": line.step,
            "tokens": line.tokens,
            "loss": line.loss,
            "lr": line.lr,
            "grad_norm": line.values.get("grad norm"),
            "tokens_per_s": speed,
            "mfu": speed * self._derived["flops_per_token"] / (peak * processes) if peak else None,
            "step_ms": line.step_ms,
            "loss_scale": line.values.get("loss scale"),
            "tflops_per_gpu": line.tflops,
            "samples_per_s": line.samples_per_s,
            "skipped_steps": max(self._overflows, self._left_out, self._skipped),
        }
        # A name without a value means that it was not a number: what was not printed at all is left out.
        absent = [name for name in ("loss", "grad_norm", "loss_scale") if record[name] is None]
        self._report({name: value for name, value in record.items() if name not in absent})
        if line.loss is not None:
            self._losses["loss"] = line.loss

    def _report_validation(self, line: Validation) -> None:
        if line.over == "test":
            self._losses["test_loss"] = line.loss
            return
        self._losses["val_loss"] = line.loss
        bits = self._data.bits_per_byte(line.loss)
        self._report({"step": line.step, "val_loss": line.loss, "val_bits_per_byte": bits})

    def _report(self, record: Mapping[str, Any]) -> None:
        full = {"time": time.time(), "total": self._derived["steps"], **record, "attempt": self._attempt}
        append_record(self._run.metrics(self._id), full)

    def _look_at_saved(self, patience: float = SHARED_WITHIN_S) -> None:
        """Tell of each checkpoint once all its files are seen from here."""
        now = time.monotonic()
        for step, (first, due) in list(self._unseen.items()):
            if now < due and patience:  # without any it is the last look
                continue
            folder = self._checkpoints / f"global_step{step}"
            wrong = what_is_wrong(folder, self._layout)
            if wrong and now - first < patience:
                self._unseen[step] = first, now + LOOK_AGAIN_S
                continue
            del self._unseen[step]
            if wrong:
                self._warn(f"the checkpoint of step {step} is not complete: {wrong}")
            else:
                self._event("checkpoint", stage=self._id, step=step, path=str(folder))

    def _look_at_start(self, step: int | None) -> None:
        """Compare where the ranks say they start with what is there."""
        if self._from_elsewhere:
            if step is None:
                self._warn("the ranks did not find what megatron.start_from names: they start from random weights")
            else:
                self._tell("the training starts from the weights that megatron.start_from names")
        elif step != self._goes_on_from:
            there = "no checkpoint" if self._goes_on_from is None else f"the checkpoint of step {self._goes_on_from}"
            said = "from random weights" if step is None else f"from step {step}"
            self._warn(f"the ranks start {said}, where there is {there} in {self._checkpoints}")
        elif step is not None:
            self._tell(f"the training goes on from step {step}")

    def _compare(self, said: Layout | Vocabulary) -> None:
        """Warn of ranks that are not what was planned."""
        if isinstance(said, Vocabulary):
            if said.padded != self._derived["padded_vocab"]:
                planned = self._derived["padded_vocab"]
                self._tell(f"the embedding has {said.padded} rows for this tokenizer; the plan said {planned}")
            return
        found = (said.world_size, said.data_parallel, said.tensor_parallel, said.pipeline_parallel)
        names = ("processes", "data_parallel", "tensor_parallel", "pipeline_parallel")
        for name, value in zip(names, found, strict=True):
            if value != self._derived[name]:
                self._warn(
                    f"the ranks say that {name.replace('_', ' ')} is {value}; the plan says {self._derived[name]}"
                )

    def _tell(self, text: str) -> None:
        """Once in an attempt."""
        if text not in self._said:
            self._said.add(text)
            self._event("phase", stage=self._id, text=text)

    def _warn(self, text: str) -> None:
        self._event("warning", stage=self._id, text=text)

    # --- At the end

    def finish(self, code: int) -> str:
        """Done is a training that said so, ended with 0, and left its last checkpoint whole."""
        try:
            while self._read(last=True):
                pass
            self._look_at_saved(patience=0)
        except OSError as error:
            return f"the log could not be read to its end: {error.strerror}"
        if code != 0:
            return self._failure()
        if self._exiting or not self._is_trained:
            at = f"at step {self._step} of {self._derived['steps']}"
            return f"the training ended by itself {at}" + (f": {self._exiting}" if self._exiting else "")
        step = newest_complete(self._checkpoints, self._layout)
        if step is None or step < self._step:
            return f"the training is over, but the checkpoint of step {self._step} is not complete"
        if step < self._derived["steps"]:
            self._warn(
                f"Megatron ended after {step} steps; the plan has {self._derived['steps']} (megatron.train_samples)"
            )
        try:
            write_result(self._run, self._id, self._outcome(step), self._started)
        except OSError as error:
            return f"the training is over, but its result could not be written: {error.strerror}"
        return ""

    def _failure(self) -> str:
        """What the launcher says of a rank that was killed; the traceback of one that failed by itself says more."""
        if self._rank_code >= 0:
            return ""
        try:
            name = signal.Signals(-self._rank_code).name
        except ValueError:
            return ""
        memory = " (out of memory?)" if name == "SIGKILL" else ""
        return f"a rank was killed by {name}{memory} after step {self._step}"

    def _outcome(self, step: int) -> Outcome:
        before = last_metrics(self._run, self._id)  # of an attempt that had nothing left to train
        path = self._run.metrics(self._id)
        size = path.stat().st_size if path.exists() else 0
        first = read_validations(path, size, lambda: True).get("val_loss")
        val_loss = self._losses.get("val_loss", before.get("val_loss"))
        metrics = {
            "step": step,
            "tokens": step * self._derived["tokens_per_step"],
            "loss": self._losses.get("loss", before.get("loss")),
            "first_val_loss": first.values[0] if first and first.values else None,
            "val_loss": val_loss,
            "val_bits_per_byte": self._data.bits_per_byte(val_loss) if val_loss is not None else None,
            "test_loss": self._losses.get("test_loss"),
            "unigram_entropy_nats": self._data.unigram_entropy_nats,
            "tokens_per_s": self._trained_tokens / self._trained_s if self._trained_s else before.get("tokens_per_s"),
            "memory_mb": self._memory_mb or None,
        }
        return Outcome(
            {"checkpoints": str(self._checkpoints), "checkpoint": str(self._checkpoints / f"global_step{step}")},
            {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)},
        )


def data_prefixes(argv: Sequence[str]) -> list[str]:
    """The paths behind --data-path: one alone, or each after its weight."""
    begin = argv.index("--data-path") + 1
    words = list(takewhile(lambda word: not word.startswith("--"), argv[begin:]))
    return words if len(words) == 1 else words[1::2]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
