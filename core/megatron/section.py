"""The preset's `megatron` section: the checkout, its parallelism, and how far the original is followed to the letter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.section import FileList, FilePath, Section

PositiveInt = Annotated[int, Field(gt=0)]


class MegatronSection(Section):
    """Pretraining by a Megatron-DeepSpeed checkout; used where pretrain.backend is megatron."""

    checkout: FilePath | None = None
    """The Megatron-DeepSpeed checkout: the folder with pretrain_gpt.py, at the same place on every node."""
    python: FilePath | None = None
    """The Python of its environment; cluster.python when empty."""
    tensor_parallel: PositiveInt = 1
    """Processes that share every layer's matrices."""
    pipeline_parallel: PositiveInt = 1
    """Stages that the layers are divided into, one process after the other."""
    pipeline_engine: bool = True
    """Whether DeepSpeed's pipeline engine trains, also with one stage; without it ZeRO 2 and 3 are possible."""
    flash_attention: bool = True
    """Whether attention is flash-attn 2 (--use-flash-attn-v2); never on a CPU."""
    fused_kernels: bool = True
    """Whether the checkout's own CUDA kernels and apex's gradient accumulation are used; never on a CPU."""
    apex: Literal["installed", "shim"] = "installed"
    """installed: apex as the environment has it; shim: stand-ins made of PyTorch, for an environment without apex."""
    eval_iters: PositiveInt = 10
    """Global batches in one validation; pretrain.valid_interval says how often."""
    log_optimizer_state: bool = True
    """Whether norms of the optimizer's state go to TensorBoard; costs some memory."""
    exit_minutes: PositiveInt = 30_000_000
    """Minutes after which the training saves and ends by itself; the default is never."""
    train_samples: PositiveInt | None = None
    """Sequences to index; as many as the run reads when empty."""
    data_files: FileList = []
    """Prefixes of token files ({prefix}.bin, {prefix}.idx), blended by size; those of the data stage when empty."""
    data_folders: FileList = []
    """Folders whose *_text_document.bin and .idx are blended by size, as the original does."""
    output: FilePath | None = None
    """Folder for checkpoint/, tensorboard/ and deepspeed_config/; a folder of the run when empty."""
    start_from: FilePath | None = None
    """A Megatron checkpoint folder, or a Hugging Face folder of the convert stage, whose weights the training starts from while it has no checkpoint of its own."""
    extra_args: list[Annotated[str, Field(min_length=1)]] = []
    """Further arguments of pretrain_gpt.py, one word each, at the end of its command line."""
    strict_original: bool = False
    """Whether the command is the original script's to the letter, without our corrections."""
