"""Drives a fine-tuning by llm-jp-sft's train.py: makes it ready, turns its log into our records, and takes the model over once it is whole.

train.py goes on from no checkpoint: an attempt begins again, and what an earlier one saved at its end is put away first, so that
a whole model in the folder is this attempt's.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from core import folders
from core.errors import InputError, StageError
from core.exit_codes import ExitCode
from core.files import write_json
from core.llm_jp_sft.log_lines import Bar, Begun, Fact, Finished, Logged, NoAnswer, facts_in, whole_lines
from core.llm_jp_sft.model_folder import gather, model_files, what_is_missing
from core.megatron.drive import free_port
from core.runs.directory import RunDirectory
from core.stages.base import Outcome, append_record, write_result
from core.stages.command import HOST, STARTED, STARTED_FORMAT, fill_in

SCRIPT = "train.py"
READ_AT_ONCE = 8 << 20
LONGEST_REST = 1 << 20
BETWEEN_BARS_S = 2.0
"""Between two records that only say how far it has come."""
LOOKED_AT_LINES = 100


class LlmJpSftDriver:
    """One attempt; see core.runs.driver.Driver."""

    def __init__(self, run: RunDirectory, stage: Mapping[str, Any], attempt: int, event: Callable[..., None]) -> None:
        self._run, self._stage, self._attempt, self._event = run, stage, attempt, event
        self._id = str(stage["id"])
        self._derived: Mapping[str, Any] = stage["derived"]
        self._output = Path(self._derived["output_dir"])
        self._source = Path(stage["inputs"]["model"][0])
        self._started = time.time()
        self._place = 0
        """Byte of the log up to which it was read."""
        self._rest = b""
        self._begun = False
        self._step = 0
        """The last one that was reported."""
        self._logged = 0
        self._logged_at: float | None = None
        self._total: int | None = None
        self._reported_at = 0.0
        self._loss: float | None = None
        self._finished: Mapping[str, float] | None = None
        self._without_answer = 0

    # --- Before the start

    def prepare(self) -> Mapping[str, Any]:
        """Raises InputError or StageError: it cannot start like this."""
        log = self._run.log(self._id)
        self._place = log.stat().st_size if log.exists() else 0
        checkout = Path(self._stage["inputs"]["checkout"][0]).parent
        if not (checkout / SCRIPT).is_file():
            raise InputError(
                f"{checkout} is no llm-jp-sft checkout: there is no {SCRIPT} in it",
                "--set finetune.checkout=FOLDER names it",
            )
        for path in self._stage["inputs"]["conversations"]:
            check_conversations(Path(path))
        try:
            self._output.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in model_files(self._output):  # an earlier attempt's, which came to no end
                path.unlink()
            if "ds_config" in self._derived:
                file = Path(self._derived["ds_config_file"])
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_json(file, self._derived["ds_config"])
        except OSError as error:
            raise StageError(f"{error.filename} cannot be written: {error.strerror}") from None
        return {**self._stage, "argv": self._filled_in()}

    def _filled_in(self) -> list[str]:
        argv = list(self._stage["argv"])
        if "--wandb_group" in argv:
            place = argv.index("--wandb_group") + 1
            started = time.strftime(STARTED_FORMAT, time.localtime(self._started))
            argv[place] = argv[place].replace(STARTED, started).replace(HOST, os.uname().nodename)
        if self._stage.get("launcher", "local") != "local":
            return argv
        return fill_in(argv, 0, "127.0.0.1", free_port())

    # --- While it runs

    def follow(self) -> None:
        """Never raises for a disk that is full: the training goes on, and so does its log."""
        try:
            self._read()
        except OSError:
            return

    def _read(self, last: bool = False) -> bool:
        """Take what is new in the log; whether there was anything."""
        with self._run.log(self._id).open("rb") as log:
            data = os.pread(log.fileno(), READ_AT_ONCE, self._place)
        self._place += len(data)
        lines = self._rest + data
        end = len(lines) if last and not data else whole_lines(lines)
        self._rest = lines[end:][-LONGEST_REST:]
        facts = facts_in(lines[:end])
        steps = sum(isinstance(fact, Logged) for fact in facts) if self._begun else 0
        self._take_all(facts, steps)
        return bool(data)

    def _take_all(self, facts: list[Fact], steps: int) -> None:
        """Several steps that were found at once have shared the time since the one before."""
        now = time.time()
        each = (now - self._logged_at) / steps if steps and self._logged_at is not None else None
        for fact in facts:
            if isinstance(fact, Begun):
                self._begun, self._logged_at = True, now
            elif isinstance(fact, NoAnswer):
                self._without_answer += 1
                if self._without_answer == 1:
                    self._warn(
                        f"train.py did not find the {fact.template} template in a conversation, of which nothing is learnt; the "
                        "log has its text, and the result how many they were"
                    )
            elif isinstance(fact, Logged) and self._begun:
                self._report_step(fact, each)
            elif isinstance(fact, Bar) and self._begun and self._finished is None:
                self._report_bar(fact, now)
            elif isinstance(fact, Finished):
                self._finished = fact.values
        if steps:
            self._logged_at = now

    def _report_step(self, line: Logged, seconds: float | None) -> None:
        interval = int(self._derived["log_interval"])
        self._logged += 1
        self._step = max(self._step, self._logged * interval)
        record: dict[str, Any] = {
            "loss": line.loss,
            "lr": line.values["learning_rate"],
            "epoch": line.values.get("epoch"),
        }
        if "grad_norm" in line.values:
            record["grad_norm"] = line.values["grad_norm"]
        if seconds:
            record["step_ms"] = 1000 * seconds / interval
            record["samples_per_s"] = int(self._derived["global_batch"]) * interval / seconds
        self._report(self._logged * interval, record)
        self._loss = line.loss

    def _report_bar(self, bar: Bar, now: float) -> None:
        self._total = bar.total
        if bar.step > self._step and now - self._reported_at >= BETWEEN_BARS_S:
            self._step = bar.step
            self._report(bar.step, {})

    def _report(self, step: int, record: Mapping[str, Any]) -> None:
        self._reported_at = time.time()
        full = {"time": self._reported_at, "step": step, "total": self._total, "unit": "steps", **record}
        append_record(self._run.metrics(self._id), full | {"attempt": self._attempt})

    def _warn(self, text: str) -> None:
        self._event("warning", stage=self._id, text=text)

    # --- At its end

    def finish(self, code: int) -> str:
        """Take the model over if the training came to its end and saved it whole."""
        try:
            while self._read(last=True):
                pass
        except OSError as error:
            return f"the log cannot be read: {error.strerror}"
        if code != ExitCode.DONE:
            return ""
        if self._finished is None:
            return "train.py ended before its last step, though with exit code 0"
        if missing := what_is_missing(self._output):
            return f"train.py came to its end, but the model that it saved is not whole: {missing}"
        try:
            building = folders.begin(self._run.finetuned)
            gather(self._output, self._source, building)
            folders.put_in_place(building, self._run.finetuned)
            metrics = {
                "steps": self._total or self._step,
                "loss": self._loss if self._loss is None or math.isfinite(self._loss) else None,
                "train_loss": self._finished.get("train_loss"),
                "train_seconds": self._finished.get("train_runtime"),
                "without_answer": self._without_answer,
            }
            outcome = Outcome(
                {"model": str(self._run.finetuned)}, {name: v for name, v in metrics.items() if v is not None}
            )
            write_result(self._run, self._id, outcome, self._started)
        except OSError as error:
            return f"the model cannot be put in its place: {error.filename}: {error.strerror}"
        return ""


def check_conversations(path: Path) -> None:
    """Raises InputError unless the file's first lines are what train.py reads: objects with a text under "text"."""
    if not path.is_file():
        raise InputError(f"there are no conversations at {path}", "--set finetune.files=FILE gives others")
    with path.open("rb") as file:
        for number, line in zip(range(1, LOOKED_AT_LINES + 1), file, strict=False):
            if not line.strip():
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not JSON: {error.msg}", "each line is a JSON object") from None
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise InputError(
                    f'{path}:{number}: train.py of llm-jp-sft reads lines of {{"text": "### Human: ...### Assistant: ..."}} only',
                    "give such a file with --set finetune.files=FILE, or --set finetune.backend=embedded, which also reads "
                    "prompts with completions, and messages",
                )
