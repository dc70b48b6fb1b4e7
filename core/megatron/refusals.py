"""What Megatron-DeepSpeed cannot do with a preset, said before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.errors import InputError

if TYPE_CHECKING:
    from core.megatron.originals import OriginalScript
    from core.preset import Preset

ROPE_THETA = 10_000.0
"""Fixed in the checkout's megatron/model/rotary_pos_embedding.py."""
NO_KEY = ("--num-workers", "--hysteresis", "--tensorboard-queue-size")
"""What the original's scripts give and no key of a preset sets: extra_args may give another value, and the last one counts."""
KEYS = {
    "--fp16": "pretrain.precision",
    "--bf16": "pretrain.precision",
    "--train-iters": "pretrain.steps",
    "--checkpoint-activations": "pretrain.gradient_checkpointing",
    "--use-flash-attn-v2": "megatron.flash_attention",
    "--no-pipeline-parallel": "megatron.pipeline_engine",
    "--finetune": "megatron.start_from",
}
"""Flags that the command has, or has not, as these keys say."""


def check_settings(preset: Preset, precision: str, on_cpu: bool) -> None:
    """Raises InputError for a setting that the checkout has no argument for, or that it fails with."""
    section, model, megatron = preset.pretrain, preset.model, preset.megatron
    if section.schedule == "wsd":
        raise InputError("Megatron-DeepSpeed has no wsd schedule", "--set pretrain.schedule=cosine")
    if section.compile == "on":
        raise InputError("Megatron-DeepSpeed does not use torch.compile", "--set pretrain.compile=auto")
    if model.family == "llama" and model.rope_theta != ROPE_THETA:
        raise InputError(
            f"model.rope_theta is {model.rope_theta:g}; Megatron-DeepSpeed's is always {ROPE_THETA:g}",
            "--set model.rope_theta=10000, or --set pretrain.backend=embedded",
        )
    if precision == "bf16" and section.zero == 0:
        raise InputError(
            "pretrain.zero is 0 in bf16: DeepSpeed sums bf16 gradients in fp32 only with ZeRO",
            "--set pretrain.zero=1, which also goes with one process",
        )
    if precision == "fp16" and section.zero == 0 and megatron.apex == "shim":
        raise InputError(
            "pretrain.zero is 0 in fp16, and megatron.apex is shim: without ZeRO and apex DeepSpeed takes another optimizer, which "
            "learns less, and whose loss scale Megatron does not find",
            "--set pretrain.zero=1, which also goes with one process; or megatron.apex=installed, where apex is",
        )
    if precision == "fp16" and on_cpu:
        raise InputError(
            "DeepSpeed has no fp16 on a CPU", "--set pretrain.precision=bf16, or fp32; or run it where there are GPUs"
        )
    if megatron.tensor_parallel > 1 and not megatron.pipeline_engine:
        # GPTModel.universal_checkpoint_info calls what only GPTModelPipe has.
        raise InputError(
            f"with megatron.pipeline_engine=false and tensor_parallel {megatron.tensor_parallel} the checkout fails at its first checkpoint "
            "('GPTModel' object has no attribute '_get_tp_replicated_param_patterns')",
            "--set megatron.pipeline_engine=true with pretrain.zero=1, or --set megatron.tensor_parallel=1",
        )
    if megatron.flash_attention and precision == "fp32" and not on_cpu:
        raise InputError(
            "flash-attn computes in fp16 or bf16 only, and pretrain.precision is fp32",
            "--set megatron.flash_attention=false, or --set pretrain.precision=bf16",
        )
    shape = model.shape()
    alone = shape.kv_heads == megatron.tensor_parallel and shape.kv_heads < shape.heads
    if alone and section.micro_batch > 1 and (on_cpu or not megatron.flash_attention):
        # CoreAttention.forward views the repeated head, which torch.expand has not made contiguous.
        raise InputError(
            "with one key/value head on each process, sequences side by side in a micro-batch and no flash-attn the checkout's attention "
            'fails ("view size is not compatible with input tensor\'s size and stride")',
            f"--set pretrain.micro_batch=1, or --set model.kv_heads={2 * shape.kv_heads} or more",
        )
    if len(preset.wandb.tags) > 1:
        raise InputError(
            f"Megatron-DeepSpeed takes one W&B tag, and wandb.tags has {len(preset.wandb.tags)}", "keep one of them"
        )


def check_extra_args(extra: Sequence[str], words: Sequence[str]) -> None:
    """Raises InputError for an option that the preset's keys decide already: argparse takes the last one, and the plan, the names of
    the folders and the DeepSpeed configuration would say another. `words` are the command's other arguments."""
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    for option in (word.partition("=")[0] for word in extra if word.startswith("--")):
        if option in KEYS:
            raise InputError(
                f"megatron.extra_args has {option}, which {KEYS[option]} decides",
                f"take it out, and set {KEYS[option]}",
            )
        if option in given and option not in NO_KEY:
            raise InputError(
                f"megatron.extra_args has {option}, which the command has already",
                "take it out, and set the key of the preset that it comes from (docs/preset.md lists them)",
            )


def check_tokenizer(preset: Preset) -> None:
    """Token files that exist hold the ids of one tokenizer, and nothing in them says which. Raises InputError without its file."""
    if preset.tokenizer.model is None:
        raise InputError(
            "megatron.data_files and megatron.data_folders name token files, and no tokenizer.model says what their ids mean",
            "--set tokenizer.model=FILE names the SentencePiece model that they were made with",
        )


def check_layout(preset: Preset, processes: int, global_batch: int) -> int:
    """The number of data-parallel processes.

    Raises:
        InputError: heads, layers, processes or the batch do not divide as they must, or ZeRO does not go with the engine.
    """
    shape, megatron, micro = preset.model.shape(), preset.megatron, preset.pretrain.micro_batch
    tp, pp, zero = megatron.tensor_parallel, megatron.pipeline_parallel, preset.pretrain.zero
    for name, count in (("heads", shape.heads), ("kv_heads", shape.kv_heads), ("ffn_size", shape.ffn_size)):
        if count % tp:
            raise InputError(
                f"megatron.tensor_parallel is {tp}, which does not divide model.{name} {count}",
                f"--set megatron.tensor_parallel={_below(count, tp)}",
            )
    if shape.layers % pp:
        raise InputError(
            f"megatron.pipeline_parallel is {pp}, which does not divide the {shape.layers} layers",
            f"--set megatron.pipeline_parallel={_below(shape.layers, pp)}",
        )
    if processes % (tp * pp):
        raise InputError(
            f"{processes} processes cannot be divided into groups of tensor_parallel {tp} x pipeline_parallel {pp} = {tp * pp}",
            f"run it on a multiple of {tp * pp} GPUs (cluster.nodes, cluster.processes), or set the two lower",
        )
    if not megatron.pipeline_engine and pp > 1:
        raise InputError(
            f"megatron.pipeline_engine is false and pipeline_parallel is {pp}: only the pipeline engine has stages",
            "--set megatron.pipeline_engine=true, or --set megatron.pipeline_parallel=1",
        )
    if megatron.pipeline_engine and zero in (2, 3):
        away = "" if pp == 1 else "megatron.pipeline_parallel=1 and "
        raise InputError(
            f"pretrain.zero is {zero}: DeepSpeed's pipeline engine takes ZeRO 0 and 1 only",
            f"--set pretrain.zero=1, or {away}megatron.pipeline_engine=false (then there are no layer files)",
        )
    data_parallel = processes // (tp * pp)
    unit = micro * data_parallel
    if global_batch % unit:
        near = [batch for batch in (global_batch // unit * unit, -(-global_batch // unit) * unit) if batch]
        raise InputError(
            f"pretrain.global_batch {global_batch} is not a multiple of micro_batch {micro} x {data_parallel} data-parallel "
            f"processes = {unit}",
            f"--set pretrain.global_batch={' or '.join(map(str, near))}, or another pretrain.micro_batch",
        )
    return data_parallel


def check_strict(
    preset: Preset, original: OriginalScript | None, precision: str, on_cpu: bool, launcher: str, own: Sequence[str]
) -> None:
    """Raises InputError for what no script of the original can do; `own` are the arguments that none has."""
    way = "--set megatron.strict_original=false allows it"
    if on_cpu:  # before the arguments that only a CPU needs
        raise InputError("megatron.strict_original: the original trains in fp16 on GPUs, not on a CPU", way)
    if own:
        raise InputError(f"megatron.strict_original: no script of the original has {' '.join(own)}", way)
    if precision != "fp16":
        raise InputError(f"megatron.strict_original: the original trains in fp16 on GPUs, not in {precision}", way)
    if launcher not in ("local", "deepspeed"):
        raise InputError(
            f"megatron.strict_original: the original starts its processes by deepspeed, not by {launcher}",
            f"--set cluster.launcher=deepspeed; {way}",
        )
    if preset.wandb.mode == "off" or not preset.wandb.entity or preset.wandb.group:
        raise InputError(
            "megatron.strict_original: the original's scripts want W&B, an entity and a project, and name the group themselves",
            f"--set wandb.mode=online --set wandb.entity=NAME --set wandb.group=null; {way}",
        )
    if preset.wandb.tags and original is not None and not original.port:
        raise InputError("megatron.strict_original: this script takes no --wandb_tag", f"--set wandb.tags=[]; {way}")


def _below(count: int, most: int) -> int:
    """The largest divisor of `count` that is at most `most`."""
    return max(size for size in range(1, most + 1) if count % size == 0)
