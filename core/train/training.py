"""One attempt at pretraining: put the parts together, resume where there is something to resume, train, tell the outcome."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

from core.errors import StageError
from core.files import sha256
from core.runs.directory import RunDirectory
from core.stages.base import Outcome, StageContext, StageStopped
from core.stages.tokenizer import tokenizer_file
from core.train import lineage
from core.train.engine import Engine
from core.train.loop import Progress, TrainingLoop, read_progress
from core.train.metrics import DataFacts, peak_flops, read_data_facts
from core.train.model import model_config
from core.train.ranks import Ranks, read_ranks
from core.train.resume import find_start, next_attempt
from core.train.sequences import open_sequences
from core.train.settings import TrainSettings, train_settings
from core.train.torch_engine import TorchEngine
from core.train.tracking import open_tracker
from core.train.vocabulary import read_vocabulary


def run_training(context: StageContext, started: float) -> Outcome:
    """Train to the planned step, from the newest checkpoint of this run where there is one."""
    os.umask(0o077)
    derived, run = context.plan["derived"], context.run
    ranks = read_ranks(derived["device"], derived["processes"])
    say = Narrator(ranks.is_main, started)
    say(f"PyTorch {torch.__version__}, transformers {transformers.__version__}, {describe_device(ranks)}")
    be_deterministic(ranks.device)

    vocabulary = read_vocabulary(run.huggingface_tokenizer)
    settings = train_settings(context.preset, derived, vocabulary, ranks.device)
    if settings.rows != derived["padded_vocab"]:
        say(f"the embedding has {settings.rows:,} rows for this tokenizer, the plan said {derived['padded_vocab']:,}")
    train, valid = open_sequences(
        run.data_prefix, context.preset.data.split, settings.sequence_length, settings.vocab_size
    )
    data_facts = read_data_facts(run.data_prefix)
    check_tokenizer(data_facts, Path(tokenizer_file(context.preset, run)))
    epochs = settings.steps * settings.global_batch / len(train)
    say(f"data: {len(train):,} training sequences ({epochs:.2f} epochs), {len(valid):,} for validation")

    config = model_config(context.preset.model, vocabulary, settings.rows)
    engine = start_engine(config, settings, ranks)
    parameters = context.preset.model.shape().parameters(settings.rows)
    say(f"model: {config.model_type}, {parameters:,} parameters, {settings.engine}, {settings.precision}")
    if settings.compile != "off":
        say("the model is compiled during the first step, which takes minutes")

    facts = {
        "world_size": ranks.world_size,
        "engine": settings.engine,
        "config_hash": lineage.config_hash(context.preset, derived),
        "code_hash": lineage.code_hash(),
        "data_hash": lineage.data_hash(run.data_prefix),
    }
    checkpoint = ranks.decided_by_main(lambda: find_start(context, facts))
    attempt = ranks.decided_by_main(lambda: next_attempt(run.stage(context.stage_id)))
    progress = Progress()
    if checkpoint is not None:
        engine.load(checkpoint)
        progress = read_progress(checkpoint.path)
        say(f"resuming from {checkpoint.path} at step {progress.step:,} (attempt {attempt})")
        written = checkpoint.manifest
        if (written["world_size"], written["engine"]) != (ranks.world_size, settings.engine):
            say(
                f"it was written by {written['world_size']} process(es) with {written['engine']}: its optimizer state "
                f"was dealt out anew to {ranks.world_size} with {settings.engine}, and the samples go on where they were"
            )

    document = {"preset": context.preset.model_dump(), "derived": dict(derived)}
    tracker = open_tracker(context, ranks, document, on_every_node=True)
    loop = TrainingLoop(
        context=context,
        settings=settings,
        engine=engine,
        ranks=ranks,
        train=train,
        valid=valid,
        facts=data_facts,
        peak_flops=peak_flops(torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else None),
        lineage=facts,
        trainer_document={
            "vocabulary": vocabulary.document(),
            "sequence_length": settings.sequence_length,
            "micro_batch": settings.micro_batch,
            "split": context.preset.data.split,
        },
        tracker=tracker,
        attempt=attempt,
        progress=progress,
        saved_step=checkpoint.step if checkpoint else -1,
    )
    say(f"training from step {progress.step:,} to {settings.steps:,}")
    failed = True
    try:
        loop.run()
        failed = False
    except StageStopped:
        ranks.close()
        raise
    finally:
        tracker.finish(failed)
    ranks.close()
    return outcome(run, loop)


def start_engine(config: PretrainedConfig, settings: TrainSettings, ranks: Ranks) -> Engine:
    """Plain PyTorch for one process, DeepSpeed for several."""
    if ranks.world_size == 1:
        return TorchEngine(config, settings, ranks.device)
    from core.train.deepspeed_engine import DeepSpeedEngine, start_process_group  # several seconds to import

    start_process_group(ranks)
    return DeepSpeedEngine(config, settings, ranks)


def check_tokenizer(facts: DataFacts, file: Path) -> None:
    """Refuse token files that another tokenizer made: their ids would fit and mean other text.

    Raises:
        StageError: the hash in the data's manifest is not that of this run's tokenizer.
    """
    if facts.tokenizer_sha256 and file.is_file() and facts.tokenizer_sha256 != sha256(file):
        raise StageError(
            f"the token files were made with another tokenizer than {file}",
            "make them again with this one: `--from data`",
        )


def be_deterministic(device: torch.device) -> None:
    """On a CPU equal seeds give equal runs, bit for bit, for a fixed number of threads."""
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # What is filled is overwritten anyway: a help for finding defects, and it costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module's property
        if threads := os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))


def describe_device(ranks: Ranks) -> str:
    """The device in words, for the log."""
    if ranks.device.type == "cuda":
        return f"{ranks.world_size} x {torch.cuda.get_device_name(ranks.device)}, CUDA {torch.version.cuda}"
    return f"{ranks.world_size} process(es) on the CPU, {torch.get_num_threads()} threads each"


class Narrator:
    """Prints what is going on, with the seconds since the start, on rank 0."""

    def __init__(self, is_main: bool, started: float) -> None:
        self._is_main, self._started = is_main, started

    def __call__(self, text: str) -> None:
        if self._is_main:
            print(f"[{time.perf_counter() - self._started:6.1f} s] {text}", flush=True)


def outcome(run: RunDirectory, loop: TrainingLoop) -> Outcome:
    """What result.json says of the run."""
    progress = loop.progress
    metrics: dict[str, Any] = {
        "step": progress.step,
        "tokens": progress.tokens,
        "loss": progress.loss,
        "first_val_loss": progress.first_val_loss,
        "val_loss": progress.val_loss,
        "val_bits_per_byte": loop.facts.bits_per_byte(progress.val_loss) if progress.val_loss is not None else None,
        "unigram_entropy_nats": loop.facts.unigram_entropy_nats,
        "tokens_per_s": loop.tokens_per_s,
    }
    return Outcome(
        {"checkpoints": str(run.checkpoints), "checkpoint": str(run.checkpoints / f"step-{progress.step}")},
        {name: value for name, value in metrics.items() if value is not None},
    )
