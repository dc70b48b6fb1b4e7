"""The engine of several processes: DeepSpeed ZeRO 1, 2 or 3 around the same model, loss and AdamW."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig
from transformers.integrations import HfDeepSpeedConfig

from core.errors import StageError
from core.train.attention import check_causality, preferred_kernels
from core.train.checkpoint import Checkpoint
from core.train.engine import (
    DEEPSPEED_FOLDER,
    MODEL_FILE,
    NextTokenLoss,
    compile_model,
    load_rng,
    named_weights,
    parameter_groups,
    save_rng,
)
from core.train.failpoint import failpoint
from core.train.forward_clock import ForwardClock
from core.train.model import build_model, recompute_activations
from core.train.ranks import Ranks
from core.train.saved_state import MOMENTS, SavedState, rank_layout, stretches_of_ranks
from core.train.sequences import Tokens
from core.train.settings import TrainSettings


def start_process_group(ranks: Ranks) -> None:
    """Let the ranks find each other: NCCL on GPUs, Gloo on CPUs."""
    # DeepSpeed builds a small communication library at its first start on a CPU and needs `ninja`, which is installed
    # beside Python but is on PATH only in an activated environment; another ninja there would rebuild it every time.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # DeepSpeed calls torch's collectives by names that newer versions warn of, at every single call.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    deepspeed.init_distributed(dist_backend="nccl" if ranks.device.type == "cuda" else "gloo", verbose=False)


def deepspeed_config(settings: TrainSettings) -> dict[str, Any]:
    """The DeepSpeed configuration of these settings; the optimizer is ours, so it is not in it."""
    document: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": settings.accumulation,
        "train_batch_size": settings.global_batch,
        "gradient_clipping": settings.clip_grad,
        "zero_optimization": {"stage": settings.zero},
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": False,
    }
    if settings.precision == "bf16":
        document |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return document


class DeepSpeedEngine:
    """One rank of several. With bf16 the weights are bf16 and DeepSpeed's optimizer keeps the fp32 masters."""

    def __init__(self, config: PretrainedConfig, settings: TrainSettings, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        self._clock = ForwardClock(ranks.device)
        document = deepspeed_config(settings)
        # transformers partitions a ZeRO-3 model rightly only while it can see this object (it keeps a weak reference);
        # deepspeed.zero.Init around the constructor would leave torch's default initial weights, without a word.
        self._zero3 = HfDeepSpeedConfig(document) if settings.zero == 3 else None
        if self._zero3:
            self.model = build_model(config, settings.seed, self._gathered)
        else:
            self.model = build_model(config, settings.seed)
            check_causality(self.model, settings.vocab_size)
        if settings.gradient_checkpointing:
            recompute_activations(self.model)
        loss = NextTokenLoss(self.model, settings)
        # ZeRO-3's gathering hooks break the graph at every layer, so nothing is gained there.
        compile_model(self.model, loss, settings.compile if settings.zero != 3 else "off")
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, settings.weight_decay),
            lr=settings.schedule.peak,
            betas=(settings.beta1, settings.beta2),
            eps=settings.adam_eps,
            fused=True,
        )
        self._engine: Any = deepspeed.initialize(
            model=loss, optimizer=optimizer, config=document, dist_init_required=False
        )[0]
        if settings.zero == 3:
            check_causality(self.model, settings.vocab_size)
        self._steps = 0

    def accumulate(self, tokens: Tokens) -> Tensor:
        with preferred_kernels(self.ranks.device), self._clock.running():
            loss: Tensor = self._engine(torch.from_numpy(tokens).to(self.ranks.device))
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only counts the micro-batch
        return loss.detach().float()

    def step(self, lr: float) -> Tensor:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        self._steps += 1
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self.ranks.device)

    def forward_seconds(self) -> float | None:
        # ZeRO-3 gathers weights in the forward pass, so there every rank waits for the slowest.
        return self._clock.seconds() if self.settings.zero != 3 else None

    @torch.no_grad()
    def evaluate(self, tokens: Tokens) -> Tensor:
        self._engine.eval()
        with preferred_kernels(self.ranks.device):
            loss: Tensor = self._engine(torch.from_numpy(tokens).to(self.ranks.device))
        self._engine.train()
        return loss.float()

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=DEEPSPEED_FOLDER, save_latest=False)
        failpoint("optimizer-written", self._steps)
        weights: dict[str, Tensor] = {}
        for name, weight in named_weights(self.model):
            full = safe_get_full_fp32_param(weight)  # every rank takes part
            if self.ranks.is_main:
                shape = getattr(weight, "ds_shape", weight.shape)
                if full is None or full.numel() != shape.numel():
                    raise StageError(f"DeepSpeed gave no full fp32 weight for {name}: the checkpoint would be unusable")
                weights[name] = full.detach().reshape(shape).cpu().contiguous()
        if self.ranks.is_main:
            save_file(weights, folder / MODEL_FILE, metadata={"format": "pt"})
            # DeepSpeed copies scripts beside its files; nothing here ever runs code from a checkpoint.
            for script in folder.glob("*.py"):
                script.unlink()
        failpoint("model-written", self._steps)
        save_rng(folder, self.ranks.rank, self.ranks.device)
        self.ranks.barrier()

    @contextmanager
    def _gathered(self, weight: torch.nn.Parameter) -> Iterator[bool]:
        """A partitioned weight made whole; what rank 0 writes into it is spread over the ranks afterwards."""
        with deepspeed.zero.GatheredParameters(weight, modifier_rank=0):
            yield self.ranks.is_main

    def load(self, checkpoint: Checkpoint) -> None:
        written = checkpoint.manifest
        if (written["world_size"], written["engine"]) == (self.ranks.world_size, self.settings.engine):
            folder = str(checkpoint.path)
            path, _ = self._engine.load_checkpoint(folder, tag=DEEPSPEED_FOLDER, load_lr_scheduler_states=False)
            if path is None:
                raise StageError(f"DeepSpeed found nothing to load in {checkpoint.path / DEEPSPEED_FOLDER}")
        else:
            self._deal_out(SavedState(checkpoint))
        self._steps = int(self._engine.global_steps)
        load_rng(checkpoint.path, self.ranks.rank, self.ranks.device, self.settings.seed, checkpoint.step)

    @torch.no_grad()
    def _deal_out(self, saved: SavedState) -> None:
        """Take up this rank's part of a state that was cut up for other ranks, another ZeRO stage or one process.

        The optimizer's own state_dict() says which parts of which weights this rank keeps; the same document, filled, goes
        back into its own load_state_dict().
        """
        weights = dict(named_weights(self.model))
        saved.check_weights({name: getattr(weight, "ds_shape", weight.shape) for name, weight in weights.items()})
        optimizer, ranks, zero3 = self._engine.optimizer, self.ranks, self.settings.zero == 3
        if zero3:
            optimizer.checkpoint_event_prologue()
        state = optimizer.state_dict()
        inner = state["optimizer_state_dict" if zero3 else "base_optimizer_state"]
        flat = state["fp32_flat_groups"] if zero3 else [group["params"][0] for group in optimizer.param_groups]
        for group, values in enumerate(flat):
            inner["state"][group] = {key: torch.zeros(values.numel()) for key in MOMENTS}
            inner["state"][group]["step"] = torch.tensor(float(saved.step))
        shapes = self._engine._get_zero_param_shapes() if zero3 else []
        layout = rank_layout(state, shapes, ranks.rank, ranks.world_size)
        for name, start, numel, group, offset in stretches_of_ranks(ranks.gather_objects(layout))[ranks.rank]:
            weight, *moments = saved.read(name, start, numel)
            flat[group][offset : offset + numel] = weight
            for key, moment in zip(MOMENTS, moments, strict=True):
                inner["state"][group][key][offset : offset + numel] = moment
        optimizer.load_state_dict(
            state_dict_list=[state] * ranks.world_size, load_optimizer_states=True, load_from_fp32_weights=True
        )
        if zero3:
            optimizer.checkpoint_event_epilogue()
        else:
            for (
                name,
                weight,
            ) in weights.items():  # every rank has all of them; ZeRO 3 makes its parts from the fp32 ones
                weight.copy_(saved.weight(name))
        self._engine.global_steps = saved.step
        self._engine.global_samples = saved.step * self.settings.global_batch
