"""Step 4: supervised fine-tuning with trl. Reads top to bottom: conversations, model, training, the result's folder.

Started as one process, or one a rank under torchrun. trl trains; what it is given (token ids, and which of them are
learnt) and what becomes of its checkpoints and weights is decided here and in the sft_* modules beside this one.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import random
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from core import folders
from core.errors import InputError, StageError
from core.runs.fingerprint import fingerprint
from core.stages.base import Outcome, StageContext, StageStopped
from core.stages.finetune import FinetuneSection, valid_share
from core.text.chat import chat_template, render
from core.text.conversations import Conversations, Turn, read_conversations
from core.train import sft_checkpoints, sft_result
from core.train.ranks import read_ranks
from core.train.sft_arguments import lora_config, total_steps, training_arguments
from core.train.sft_examples import Examples, Templates, check_tokenizer, encode
from core.train.sft_metrics import Metrics
from core.train.tracking import Tracker, open_tracker


@dataclass(frozen=True)
class Data:
    """The encoded conversations, and one of them as it was read, for the check at the end."""

    train: Examples
    valid: Examples
    sample: tuple[Turn, ...]


def run_finetuning(context: StageContext) -> Outcome:
    """Fine-tune and leave the model folder of this run.

    Metrics: steps, tokens, examples, valid_examples, rejected, cut, loss (last logged), val_loss_first, val_loss.

    Raises:
        InputError: no usable conversation, a folder that holds no model, a length that the model does not have.
        StageError: the loss is not finite, or the result does not work.
        StageStopped: after SIGTERM; a checkpoint is saved, from which the next start goes on.
    """
    context.listen_for_stop()
    quieten()
    section, derived = context.preset.finetune, context.plan["derived"]
    ranks = read_ranks(derived["device"], derived["processes"])
    source = Path(context.plan["inputs"]["model"][0])
    templates = Templates(section.instruction_template, section.response_template)
    config, tokenizer = load_config_and_tokenizer(source, templates)
    limit = sequence_limit(section, config.max_position_embeddings)
    end = check_tokenizer(tokenizer, config.vocab_size, str(source))
    conversations = context.plan["inputs"]["conversations"]
    found = read_conversations(conversations, templates.instruction, templates.response, [end])
    data = prepare(found, tokenizer, templates, limit, valid_share(section), context.preset.seed)
    if ranks.is_main:
        say_what_was_read(context, found, data, limit)
        if section.zero and ranks.world_size == 1:
            context.warn(f"finetune.zero = {section.zero} has no effect on one process; plain PyTorch is used")

    steps = total_steps(section, len(data.train.input_ids), ranks.world_size)
    work = context.run.stage(context.stage_id)
    args = training_arguments(context, work / "checkpoints", steps)
    lineage = fingerprint(context.plan, {}) if ranks.is_main else ""
    resumed, before = sft_checkpoints.find(context, ranks, work / "checkpoints", lineage)
    if resumed and ranks.is_main:
        print(f"going on from the checkpoint of step {before['step']}", flush=True)
    args.eval_on_start = bool(data.valid.input_ids) and resumed is None
    tracker = open_tracker(grouped(context, source), ranks, {"finetune": section.model_dump(), **derived})
    metrics = Metrics(
        steps, bool(data.valid.input_ids), before, reporter(context, tracker) if ranks.is_main else lambda record: None
    )
    checkpoints = sft_checkpoints.Checkpoints(
        context,
        ranks,
        work / "checkpoints",
        steps,
        lambda: {"lineage": lineage, "world_size": ranks.world_size, **metrics.so_far()},
    )
    trainer = SFTTrainer(
        # After SFTConfig: under ZeRO-3 the weights are partitioned while they are loaded.
        model=AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True),
        args=args,
        train_dataset=datasets.Dataset.from_dict(data.train.columns()),
        eval_dataset=datasets.Dataset.from_dict(data.valid.columns()) if data.valid.input_ids else None,
        processing_class=tokenizer,
        peft_config=lora_config(section, config.model_type) if section.lora else None,
        callbacks=[checkpoints, metrics],
    )
    trainer.remove_callback(PrinterCallback)
    check_labels(trainer, data.train)
    failed = True
    try:
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        failed = False
    finally:
        tracker.finish(failed)
    if checkpoints.stopped:
        raise StageStopped

    trainer.save_model(str(work / "trained"))
    device = args.device
    del trainer  # the check loads the model again; both need not be in memory
    ranks.close()
    unset_hf_deepspeed_config()  # or ZeRO-3 would partition that model too
    if ranks.is_main:
        finish(context, source, tokenizer, templates, data.sample, device)
        for folder in (work / "checkpoints", work / "trained"):
            shutil.rmtree(folder)
    return Outcome(
        outputs={"model": str(context.run.finetuned)},
        metrics={
            "steps": steps,
            "tokens": metrics.tokens,
            "examples": len(data.train.input_ids),
            "valid_examples": len(data.valid.input_ids),
            "rejected": found.rejected + data.train.lost + data.valid.lost,
            "cut": data.train.cut + data.valid.cut,
            "loss": metrics.loss,
            "val_loss_first": metrics.val_loss_first,
            "val_loss": metrics.val_loss,
        },
    )


def quieten() -> None:
    """Keep bars and notes to programmers out of the log, and one process on one GPU (the trainer would take all of them, and trl refuse)."""
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing. is deprecated", category=FutureWarning)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    if os.environ.get("WORLD_SIZE", "1") == "1" and visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]


def load_config_and_tokenizer(source: Path, templates: Templates) -> tuple[Any, PreTrainedTokenizerBase]:
    """Config and tokenizer of a model folder; the tokenizer gets the chat template that belongs to `templates`."""
    name_one = "name a model folder with finetune.model"
    if not (source / "config.json").is_file():
        raise InputError(f"{source} is no model folder: it has no config.json", name_one)
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the model folder {source} cannot be loaded: {error}", name_one) from None
    tokenizer.chat_template = chat_template(templates.instruction, templates.response)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return config, tokenizer


def sequence_limit(section: FinetuneSection, positions: int) -> int:
    """Tokens of one conversation at most. Raises InputError for more than the model has positions."""
    if section.max_length and section.max_length > positions:
        raise InputError(
            f"finetune.max_length is {section.max_length}, but the model takes only {positions} tokens",
            f"--set finetune.max_length={positions}, or leave it out",
        )
    return section.max_length or positions


def prepare(
    found: Conversations,
    tokenizer: PreTrainedTokenizerBase,
    templates: Templates,
    limit: int,
    valid_share: float,
    seed: int,
) -> Data:
    """Split by a seeded draw, with at least one conversation to learn from, and encode both parts."""
    order = list(range(len(found.usable)))
    random.Random(seed).shuffle(order)
    count = min(len(order) - 1, max(1, round(len(order) * valid_share))) if valid_share else 0
    valid, train = (
        encode([found.usable[i] for i in sorted(part)], tokenizer, templates, limit)
        for part in (order[:count], order[count:])
    )
    if not train.input_ids:
        raise InputError(
            f"no conversation has an answer within {limit} tokens",
            "raise finetune.max_length, or shorten the questions",
        )
    return Data(train, valid, found.usable[order[0]])


def say_what_was_read(context: StageContext, found: Conversations, data: Data, limit: int) -> None:
    """Every conversation is accounted for: in = learnt from + validation + rejected."""
    train, valid = data.train, data.valid
    lost, cut = train.lost + valid.lost, train.cut + valid.cut
    print(
        f"{len(found.usable) + found.rejected} conversations: {len(train.input_ids)} to learn from, "
        f"{len(valid.input_ids)} for validation, {found.rejected + lost} rejected",
        flush=True,
    )
    for reason in found.reasons:
        print(f"  rejected: {reason}")
    if found.rejected:
        context.warn(f"{found.rejected} lines are no usable conversation; the first: {found.reasons[0]}")
    if lost:
        context.warn(f"{lost} conversations have no answer within {limit} tokens and are left out")
    if cut:
        context.warn(f"{cut} conversations are longer than {limit} tokens; their ends are cut off")


def check_labels(trainer: SFTTrainer, expected: Examples) -> None:
    """Make sure that trl learns exactly the tokens that were marked: another version may read its columns otherwise."""
    count = min(8, len(expected.input_ids))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(count)])
    for row, ids, learnt in zip(batch["labels"].tolist(), expected.input_ids, expected.learnt, strict=False):
        wanted = [token if mark else -100 for token, mark in zip(ids, learnt, strict=True)]
        if row != wanted + [-100] * (len(row) - len(wanted)):
            raise StageError(
                "the installed trl does not learn the answers only", "install the trl that the `train` extra names"
            )


def grouped(context: StageContext, source: Path) -> StageContext:
    """The context with the original pipeline's W&B group, unless the preset has one."""
    wandb = context.preset.wandb
    model = context.run.name if source == context.run.pretrained else source.name
    time = datetime.datetime.now().strftime("%Y.%m.%d_%H.%M.%S")
    group = wandb.group or f"finetune_{model[:40]}_{os.uname().nodename[:50]}_{time}"
    preset = context.preset.model_copy(update={"wandb": wandb.model_copy(update={"group": group})})
    return dataclasses.replace(context, preset=preset)


def reporter(context: StageContext, tracker: Tracker) -> Callable[[Mapping[str, Any]], None]:
    """Write a record to metrics.jsonl and W&B, and a line to the log."""

    def report(record: Mapping[str, Any]) -> None:
        context.report(record)
        tracker.log(record)
        shown = [name for name in ("loss", "val_loss", "lr", "tokens_per_s") if name in record]
        values = ", ".join(f"{name} {record[name]:.4g}" for name in shown)
        print(f"step {record['step']}/{record['total']}: {values}", flush=True)

    return report


def finish(
    context: StageContext,
    source: Path,
    tokenizer: PreTrainedTokenizerBase,
    templates: Templates,
    sample: tuple[Turn, ...],
    device: torch.device,
) -> None:
    """Build the model folder beside its place, let it answer a question, and put it in its place."""
    target = context.run.finetuned
    building = folders.begin(target)
    trained = context.run.stage(context.stage_id) / "trained"
    sft_result.build_folder(source, trained, tokenizer, building, context.preset.finetune.lora)
    question = sample[0].question
    prompt = render([(question, "")], templates.instruction, templates.response, "")[0][0]
    answer = sft_result.check_folder(building, question, prompt, str(device))
    print(f"asked: {question}\nanswered: {answer or '(nothing)'}", flush=True)
    folders.put_in_place(building, target)
