"""The plan of a fine-tuning by llm-jp-sft: its command, and what is done otherwise than in the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import InputError
from core.facts import Facts
from core.llm_jp_sft.command import FineTuning, training_args, wandb_words
from core.llm_jp_sft.corrections import corrections
from core.llm_jp_sft.ds_config import ds_config, ds_config_name
from core.llm_jp_sft.originals import ORIGINALS, OriginalScript
from core.megatron.launch import launch_argv, original_argv
from core.runs.directory import RunDirectory
from core.stages.base import StagePlan
from core.stages.command import HOST, ON_CPU, SECRETS_BY_NEED, STARTED, stage_env
from core.stages.finetune import STAGE, chat_files

if TYPE_CHECKING:
    from core.preset import Preset


def plan_llm_jp_sft(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
    """The stage `finetune` of the llm-jp-sft backend.

    Raises:
        InputError: there is no checkout, or train.py or the original cannot do what the preset says.
    """
    section, strict = preset.finetune, preset.megatron.strict_original
    if section.checkout is None:
        raise InputError(
            "finetune.checkout is not set: the llm-jp-sft backend drives an existing llm-jp-sft checkout",
            "--set finetune.checkout=FOLDER names it",
        )
    original = original_of(preset)
    on_cpu = section.device == "cpu" or not facts.gpus
    nodes = facts.nodes[: section.nodes]
    gpus = preset.cluster.process_count(facts, section.device)
    on_node = gpus if section.zero else 1
    processes = on_node * max(1, len(nodes))
    launcher = facts.launcher if section.zero or facts.launcher != "deepspeed" else "ssh"
    tuning = resolve_fine_tuning(preset, facts, run)
    if strict:
        check_strict(preset, original, on_cpu, facts.launcher)
    elif len(preset.wandb.tags) > 1:
        raise InputError(f"train.py takes one W&B tag, and wandb.tags has {len(preset.wandb.tags)}", "keep one of them")
    python = section.python or facts.python
    script = [f"{section.checkout}/train.py", *training_args(tuning)]
    copies = 1 if section.zero or on_cpu else gpus
    return StagePlan(
        id=STAGE.id,
        argv=_argv(preset, facts, run, python, on_node, nodes, script, original),
        env=_environment(preset, facts, run, on_node, on_cpu, python),
        cwd=str(run.root),
        nodes=list(nodes) or [facts.host],
        launcher=launcher,
        driver="llm-jp-sft",
        inputs={
            "model": [tuning.model],
            "conversations": list(tuning.files),
            "checkout": [f"{section.checkout}/train.py"],
        },
        outputs={"model": str(run.finetuned)},
        derived={
            "processes": processes,
            "processes_on_node": on_node,
            "device": "cpu" if on_cpu else "cuda",
            "micro_batch": section.micro_batch,
            "gradient_accumulation": section.gradient_accumulation,
            "global_batch": section.micro_batch * section.gradient_accumulation * processes * copies,
            "method": "full",
            "engine": f"llm-jp-sft DeepSpeed ZeRO-{section.zero}"
            if section.zero
            else "llm-jp-sft"
            + (f", one process with a copy of the model on each of {copies} GPUs" if copies > 1 else ""),
            "precision": "bf16",
            "max_length": tuning.max_length or 2048,
            "log_interval": section.log_interval,
            "output_dir": tuning.output,
            "after_a_stop": "begins again: train.py does not go on from its checkpoints",
            **(
                {"ds_config": ds_config(section.zero, scheduler=strict), "ds_config_file": tuning.ds_config_file}
                if section.zero
                else {}
            ),
            "original": preset.original,
            "strict_original": strict,
            "corrections": corrections(preset, original, tuning, facts) if original and not strict else [],
        },
        settings={
            "finetune": section.model_dump(exclude={"python", "log_interval", "save_interval"}),
            "strict_original": strict,
            "max_length": tuning.max_length,
            "processes": processes,
            "seed": preset.seed,
        },
        secrets=list(SECRETS_BY_NEED["wandb"]) if preset.wandb.mode == "online" else [],
    )


def original_of(preset: Preset) -> OriginalScript | None:
    """The original's fine-tuning script that the preset stands for; None where it stands for none."""
    return ORIGINALS.get(preset.original)


def resolve_fine_tuning(preset: Preset, facts: Facts, run: RunDirectory) -> FineTuning:
    """Everything that the command line says."""
    section, wandb, original = preset.finetune, preset.wandb, original_of(preset)
    model = section.model or str(run.pretrained)
    not_given = preset.megatron.strict_original and original is not None and not original.length
    stage = run.stage(STAGE.id)
    words: Sequence[str] = ()
    if wandb.mode != "off":
        words = wandb_words(model, HOST, STARTED, wandb.entity or "", wandb.project, wandb.group or "", wandb.tags)
    return FineTuning(
        epochs=section.epochs,
        steps=section.steps,
        micro_batch=section.micro_batch,
        gradient_accumulation=section.gradient_accumulation,
        lr=section.lr,
        warmup_share=section.warmup_share,
        schedule=section.schedule,
        weight_decay=section.weight_decay,
        max_length=None if not_given else section.max_length or preset.model.sequence_length,
        gradient_checkpointing=section.gradient_checkpointing,
        log_interval=section.log_interval,
        save_interval=section.save_interval,
        files=tuple(chat_files(preset, run)),
        model=model,
        output=str(stage / "output"),
        instruction_template=section.instruction_template,
        response_template=section.response_template,
        ds_config_file=str(stage / "deepspeed_config" / ds_config_name(section.zero)) if section.zero else "",
        seed=preset.seed,
        on_cpu=section.device == "cpu" or not facts.gpus,
        wandb=tuple(words),
    )


def check_strict(preset: Preset, original: OriginalScript | None, on_cpu: bool, launcher: str) -> None:
    """Raises InputError for what no script of the original can do."""
    section, wandb = preset.finetune, preset.wandb
    way = "--set megatron.strict_original=false allows it"
    if on_cpu:
        raise InputError("megatron.strict_original: the original fine-tunes on GPUs, not on a CPU", way)
    own = [
        name
        for name, given in (
            ("--max_steps", section.steps),
            ("--weight_decay", section.weight_decay),
            ("--save_steps", section.save_interval != 500),
            ("--seed", preset.seed != 42),
        )
        if given
    ]
    if own:
        raise InputError(f"megatron.strict_original: no script of the original has {' '.join(own)}", way)
    if original and original.length != "an argument" and section.max_length not in (None, 2048):
        raise InputError(
            "megatron.strict_original: this script always has 2048 tokens", f"--set finetune.max_length=2048; {way}"
        )
    if section.zero and launcher not in ("local", "deepspeed"):
        raise InputError(
            f"megatron.strict_original: the original starts its processes by deepspeed, not by {launcher}",
            f"--set cluster.launcher=deepspeed; {way}",
        )
    if wandb.mode == "off" or not wandb.entity or wandb.group:
        raise InputError(
            "megatron.strict_original: the original's scripts want W&B, an entity and a project, and name the group themselves",
            f"--set wandb.mode=online --set wandb.entity=NAME --set wandb.group=null; {way}",
        )
    if len(wandb.tags) > 1 or (wandb.tags and original and not original.tag):
        raise InputError(
            "megatron.strict_original: too many --wandb_tag for this script", f"--set wandb.tags=[]; {way}"
        )


def _argv(
    preset: Preset,
    facts: Facts,
    run: RunDirectory,
    python: str,
    on_node: int,
    nodes: Sequence[str],
    script: list[str],
    original: OriginalScript | None,
) -> list[str]:
    if not preset.finetune.zero:
        return [python, *script]
    if preset.megatron.strict_original:
        port = original is None or bool(original.job_variable)
        return original_argv(run, replace(facts, nodes=tuple(nodes)), python, port, script, STAGE.id)
    return launch_argv(run, replace(facts, nodes=tuple(nodes)), python, on_node, script, STAGE.id)


def _environment(
    preset: Preset, facts: Facts, run: RunDirectory, on_node: int, on_cpu: bool, python: str
) -> dict[str, str]:
    wandb = preset.wandb
    env = stage_env(run, preset.cluster.thread_count(facts, on_node), online=wandb.mode == "online")
    del env["PYTHONSAFEPATH"], env["PYTHONPATH"]  # our modules are not for its Python
    env["PATH"] = f"{Path(python).parent}:{facts.path}"
    if wandb.mode == "offline":
        del env["WANDB_DISABLED"]
        env["WANDB_MODE"] = "offline"
    # DeepSpeed 0.12, which the checkout pins, takes DS_ACCELERATOR=cpu only with Intel's extension installed.
    on_cpu_variables = {name: value for name, value in ON_CPU.items() if name != "DS_ACCELERATOR"} if on_cpu else {}
    return env | on_cpu_variables | preset.cluster.variables()
