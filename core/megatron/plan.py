"""The plan of a pretraining by Megatron-DeepSpeed: its command, the arithmetic behind it, and what is done otherwise than in the original."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.data.preprocess_command import ORIGINALS as PREPROCESSING
from core.errors import InputError
from core.facts import Facts
from core.llm_jp_sft.originals import ORIGINALS as FINE_TUNING
from core.megatron.command import SCRIPT_LABELS, Training, billions, training_args, wandb_words
from core.megatron.corrections import corrections, original_samples
from core.megatron.data import arxiv_prefix, blended, data_words, follows_arxiv, named_elsewhere
from core.megatron.ds_config import ds_config, ds_config_name
from core.megatron.launch import launch_argv, original_argv
from core.megatron.memory import checkpoint_bytes, estimate_memory
from core.megatron.originals import ORIGINALS, OriginalScript
from core.megatron.own_arguments import own_arguments
from core.megatron.refusals import check_extra_args, check_layout, check_settings, check_strict, check_tokenizer
from core.runs.directory import RunDirectory
from core.stages.base import StagePlan
from core.stages.command import BYTES, HOST, ON_CPU, SECRETS_BY_NEED, STARTED, stage_env
from core.stages.data import data_prefixes
from core.stages.pretrain import (
    STAGE,
    batch_and_rates,
    resolve_device,
    resolve_precision,
    total_steps,
    warmup_steps,
)
from core.stages.tokenizer import tokenizer_file
from core.train.metrics import peak_flops

if TYPE_CHECKING:
    from core.preset import Preset

ADDED_PIECES = 3
"""<PAD>, <BOS> and <EOS>, which Megatron adds to a tokenizer that has its own as user-defined symbols."""


def plan_megatron(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
    """The stage `pretrain` of the megatron backend.

    Raises:
        InputError: there is no checkout, or Megatron-DeepSpeed cannot do what the preset says.
    """
    section, megatron, shape = preset.pretrain, preset.megatron, preset.model.shape()
    if megatron.checkout is None:
        raise InputError(
            "megatron.checkout is not set: the megatron backend drives an existing Megatron-DeepSpeed checkout",
            "--set megatron.checkout=FOLDER names it",
        )
    original = original_of(preset)
    on_cpu = resolve_device(section, facts) == "cpu"
    precision = resolve_precision(section, facts)
    on_node = preset.cluster.process_count(facts, section.device)
    processes = on_node * max(1, len(facts.nodes))
    batch = batch_and_rates(preset).global_batch
    check_settings(preset, precision, on_cpu)
    data_parallel = check_layout(preset, processes, batch)
    training = resolve_training(preset, facts, run, processes, data_parallel)
    rest = training.own[: len(training.own) - len(megatron.extra_args)]
    check_extra_args(megatron.extra_args, training_args(replace(training, own=rest)))
    if megatron.strict_original:
        check_strict(
            preset,
            original,
            precision,
            on_cpu,
            facts.launcher,
            [*training.own, *(["--finetune"] if training.start_from else [])],
        )
    python = megatron.python or facts.python
    script = [f"{megatron.checkout}/pretrain_gpt.py", *training_args(training)]
    if megatron.strict_original:
        argv = original_argv(run, facts, python, original is None or original.port, script)
    else:
        argv = launch_argv(run, facts, python, on_node, script)
    tokens_per_step = batch * shape.sequence_length
    steps = total_steps(section, tokens_per_step)
    rows = _padded(preset)
    parameters = shape.parameters(rows)
    memory = estimate_memory(preset, training, precision, rows)
    checkpoint = checkpoint_bytes(parameters, precision)
    disk = checkpoint * -(-steps // section.save_interval)  # Megatron removes none
    device = "cpu" if on_cpu else "cuda"
    device_memory = facts.memory_for(device, on_node)
    stated = section.stated_tokens_per_s
    corrected = original is not None and not megatron.strict_original
    return StagePlan(
        id=STAGE.id,
        argv=argv,
        env=_environment(preset, facts, run, on_node, on_cpu, python),
        cwd=str(run.root),
        nodes=list(facts.nodes) or [facts.host],
        launcher=facts.launcher,
        driver="megatron",
        inputs=_inputs(preset, training, run),
        outputs={"checkpoints": training.checkpoints},
        derived={
            "parameters": parameters,
            "parameters_without_embeddings": shape.non_embedding_parameters(),
            "flops_per_token": shape.flops_per_token(rows),
            "peak_flops": None if on_cpu or not facts.gpus else peak_flops(facts.gpus[0].name),
            "padded_vocab": rows,
            "processes": processes,
            "processes_on_node": on_node,
            "device": device,
            "engine": f"Megatron-DeepSpeed ZeRO-{training.zero}",
            "zero": training.zero,
            "precision": precision,
            "micro_batch": section.micro_batch,
            "gradient_accumulation": batch // (section.micro_batch * data_parallel),
            "data_parallel": data_parallel,
            "tensor_parallel": megatron.tensor_parallel,
            "pipeline_parallel": megatron.pipeline_parallel,
            "global_batch": batch,
            "global_batch_note": "",
            "lr": training.lr,
            "min_lr": training.min_lr,
            "tokens_per_step": tokens_per_step,
            "steps": steps,
            "tokens": steps * tokens_per_step,
            "warmup_steps": -(-training.warmup_tokens // tokens_per_step),
            "memory_weights": memory.weights,
            "memory_gradients": memory.gradients,
            "memory_optimizer": memory.optimizer,
            "memory_activations": memory.activations,
            "memory_total": memory.total,
            "memory_available": device_memory,
            "memory_fits": device_memory is None or memory.total <= device_memory,
            "checkpoint_bytes": checkpoint,
            "disk_needed": disk,
            "disk_free": facts.disk_free,
            "disk_fits": disk <= facts.disk_free,
            "stated_tokens_per_s": stated,
            "estimated_seconds": steps * tokens_per_step / stated if stated else None,
            "job_name": training.job_name,
            "checkpoint_folder": training.checkpoints,
            "ds_config": ds_config(
                batch, section.micro_batch, section.log_interval, training.zero, precision, section.clip_grad
            ),
            "ds_config_file": training.ds_config_file,
            "original": preset.original,
            "strict_original": megatron.strict_original,
            "corrections": corrections(preset, original, training, facts) if corrected and original else [],
        },
        settings={
            "model": preset.model.model_dump(),
            "pretrain": section.model_dump(exclude={"stated_tokens_per_s", "keep_checkpoints", "log_interval"})
            | {"lr": training.lr, "min_lr": training.min_lr},
            "megatron": megatron.model_dump(exclude={"python", "apex", "log_optimizer_state"}),
            "split": preset.data.split,
            "global_batch": batch,
            "seed": preset.seed,
        },
        secrets=list(SECRETS_BY_NEED["wandb"]) if preset.wandb.mode == "online" else [],
    )


def original_of(preset: Preset) -> OriginalScript | None:
    """The original's script that the preset stands for; None where it stands for none.

    Raises:
        InputError: `original` names a script that there is not.
    """
    if preset.original and preset.original not in (*ORIGINALS, *FINE_TUNING, *PREPROCESSING):
        raise InputError(
            f"original: there is no pretraining script {preset.original} below the original's train/scripts",
            "one of:\n  " + "\n  ".join(ORIGINALS),
        )
    return ORIGINALS.get(preset.original)


def resolve_training(preset: Preset, facts: Facts, run: RunDirectory, processes: int, data_parallel: int) -> Training:
    """Everything that the command line says. Raises InputError for token files that are not there."""
    section, megatron, shape, rates = preset.pretrain, preset.megatron, preset.model.shape(), batch_and_rates(preset)
    original, strict = original_of(preset), megatron.strict_original
    on_cpu = resolve_device(section, facts) == "cpu"
    precision = resolve_precision(section, facts)
    tokens_per_step = rates.global_batch * shape.sequence_length
    steps = total_steps(section, tokens_per_step)
    tokens = section.tokens or (steps * tokens_per_step if section.steps else 300_000_000_000)
    warmup = section.warmup_tokens
    if warmup is None:
        warmup = warmup_steps(section, steps, tokens_per_step) * tokens_per_step
    # With one process, too, where DeepSpeed's optimizer without ZeRO cannot train (see refusals) or hides the loss scale.
    shared = data_parallel > 1 or precision == "bf16" or (precision == "fp16" and megatron.apex == "shim")
    zero = int(shared) if section.zero == "auto" else section.zero
    family, size = _job_family(preset), _size(preset)
    wandb: list[str] = []
    if preset.wandb.mode != "off":
        tag = next(iter(preset.wandb.tags), "")
        wandb = wandb_words(family, size, HOST, STARTED, preset.wandb.entity or "", preset.wandb.project, tag)
        if preset.wandb.group:
            wandb[wandb.index("--wandb_group") + 1] = preset.wandb.group
    return Training(
        family=family,
        size=size,
        layers=shape.layers,
        hidden_size=shape.hidden_size,
        heads=shape.heads,
        sequence_length=shape.sequence_length,
        init_std=shape.init_std,
        global_batch=rates.global_batch,
        micro_batch=section.micro_batch,
        lr=rates.lr,
        min_lr=rates.min_lr,
        decay_style=section.schedule,
        tokens=tokens,
        warmup_tokens=warmup,
        samples=megatron.train_samples
        or (original_samples(shape.sequence_length) if strict else steps * rates.global_batch),
        weight_decay=section.weight_decay,
        clip_grad=section.clip_grad,
        beta1=section.beta1,
        beta2=section.beta2,
        seed=preset.seed,
        tensor_parallel=megatron.tensor_parallel,
        pipeline_parallel=megatron.pipeline_parallel,
        pipeline_engine=megatron.pipeline_engine,
        zero=zero,
        processes=processes,
        fp16=precision == "fp16" and not (strict and original is not None and not original.fp16_flag),
        flash_attention=megatron.flash_attention and not on_cpu,
        gradient_checkpointing=section.gradient_checkpointing,
        log_optimizer_state=megatron.log_optimizer_state,
        log_interval=section.log_interval,
        eval_interval=section.valid_interval,
        eval_iters=megatron.eval_iters,
        save_interval=section.save_interval,
        exit_minutes=megatron.exit_minutes,
        split=preset.data.split,
        data=tuple(_data(preset, facts, run)),
        tokenizer=tokenizer_file(preset, run),
        output=(megatron.output or str(run.root / "megatron")).rstrip("/"),
        ds_config_name=ds_config_name(rates.global_batch, section.micro_batch, section.log_interval, zero),
        start_from=megatron.start_from or "",
        started=STARTED,
        host=HOST,
        wandb=tuple(wandb),
        own=tuple(own_arguments(preset, precision, on_cpu)),
    )


def _job_family(preset: Preset) -> str:
    return "gpt" if preset.model.family == "gpt2" else preset.model.family


def _size(preset: Preset) -> str:
    """Billions of parameters: as the scripts write a named size, else counted, to three digits."""
    model = preset.model
    if model.size and not (model.layers or model.hidden_size or model.heads or model.ffn_size):
        return SCRIPT_LABELS[model.size]
    count = model.shape().parameters(_padded(preset))
    return billions(int(float(f"{count:.3g}")))


def _padded(preset: Preset) -> int:
    """Rows of the embedding. With an existing tokenizer its own size counts when Megatron starts."""
    multiple = preset.model.pad_vocab_to * preset.megatron.tensor_parallel
    return -(-(preset.tokenizer.vocab_size + ADDED_PIECES) // multiple) * multiple


def _data(preset: Preset, facts: Facts, run: RunDirectory) -> list[str]:
    megatron = preset.megatron
    if named_elsewhere(megatron):
        check_tokenizer(preset)
        return data_words(megatron, blended(megatron, facts.sizes), facts.sizes)
    if follows_arxiv(preset):
        return [arxiv_prefix(megatron)]
    own = data_prefixes(preset, run)
    return own if len(own) == 1 else [word for prefix in own for word in (BYTES, prefix)]


def _inputs(preset: Preset, t: Training, run: RunDirectory) -> dict[str, list[str]]:
    prefixes = t.data[1::2] if len(t.data) > 1 else t.data
    inputs = {
        "bin": [f"{prefix}.bin" for prefix in prefixes],
        "idx": [f"{prefix}.idx" for prefix in prefixes],
        "tokenizer": [t.tokenizer],
        "checkout": [f"{preset.megatron.checkout}/pretrain_gpt.py"],
    }
    if t.start_from:
        inputs["start_from"] = [t.start_from]
    return inputs


def _environment(
    preset: Preset, facts: Facts, run: RunDirectory, on_node: int, on_cpu: bool, python: str
) -> dict[str, str]:
    megatron, wandb = preset.megatron, preset.wandb
    env = stage_env(run, preset.cluster.thread_count(facts, on_node), online=wandb.mode == "online")
    del env["PYTHONSAFEPATH"]  # the checkout's own tools import what lies beside them
    folders = [megatron.checkout or ""]
    if on_cpu or megatron.apex == "shim":
        folders.append(str(run.code / "core" / "megatron" / "shim"))
    env["PYTHONPATH"] = ":".join(folders)
    env["PATH"] = f"{Path(python).parent}:{facts.path}"
    if wandb.mode == "offline":
        del env["WANDB_DISABLED"]
        env["WANDB_MODE"] = "offline"
    return env | (ON_CPU if on_cpu else {}) | preset.cluster.variables()
