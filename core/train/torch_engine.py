"""The engine of one process: plain PyTorch, fp32 weights, autocast to bf16 on a GPU, fused AdamW."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from core.train.attention import check_causality, preferred_kernels
from core.train.checkpoint import Checkpoint
from core.train.engine import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    NextTokenLoss,
    compile_model,
    keep_residual_in,
    load_rng,
    named_weights,
    parameter_groups,
    save_rng,
)
from core.train.failpoint import failpoint
from core.train.model import build_model, layers, recompute_activations
from core.train.saved_state import MOMENTS, SavedState
from core.train.sequences import Tokens
from core.train.settings import TrainSettings


class TorchEngine:
    """One process on one device; the weights and both moments of AdamW are fp32."""

    def __init__(self, config: PretrainedConfig, settings: TrainSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.model = build_model(config, settings.seed).to(device)
        check_causality(self.model, settings.vocab_size)
        if settings.gradient_checkpointing:
            recompute_activations(self.model)
        if settings.precision == "bf16" and not settings.residual_in_fp32:
            keep_residual_in(torch.bfloat16, layers(self.model)[0])
        self._loss = NextTokenLoss(self.model, settings)
        compile_model(self.model, self._loss, settings.compile)
        self._optimizer = torch.optim.AdamW(
            parameter_groups(self.model, settings.weight_decay),
            lr=settings.schedule.peak,
            betas=(settings.beta1, settings.beta2),
            eps=settings.adam_eps,
            fused=True,
        )
        self._weights = [weight for _, weight in named_weights(self.model)]

    def accumulate(self, tokens: Tokens) -> Tensor:
        with self._forward_context():
            loss: Tensor = self._loss(self._to_device(tokens))
        (loss / self.settings.accumulation).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss.detach()

    def step(self, lr: float) -> Tensor:
        if self.settings.clip_grad > 0:
            norm = torch.nn.utils.clip_grad_norm_(self._weights, self.settings.clip_grad)
        else:
            norm = torch.nn.utils.get_total_norm([weight.grad for weight in self._weights if weight.grad is not None])
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def forward_seconds(self) -> float | None:
        return None  # there is no other rank to compare with

    @torch.no_grad()
    def evaluate(self, tokens: Tokens) -> Tensor:
        self.model.eval()
        with ExitStack() as stack:
            if self.settings.compile != "off":
                # The last micro-batch may be smaller: compiling anew for it takes longer than running it as it is.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(self._forward_context())
            loss: Tensor = self._loss(self._to_device(tokens))
        self.model.train()
        return loss

    def save(self, folder: Path) -> None:
        step = self._step()
        save_file(
            {name: weight.detach().cpu().contiguous() for name, weight in named_weights(self.model)},
            folder / MODEL_FILE,
            metadata={"format": "pt"},
        )
        failpoint("model-written", step)
        state = {
            f"{name}/{key}": value.cpu().contiguous()
            for name, weight in named_weights(self.model)
            for key, value in self._optimizer.state[weight].items()
        }
        save_file(state, folder / OPTIMIZER_FILE)
        failpoint("optimizer-written", step)
        save_rng(folder, 0, self.device)

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint) -> None:
        saved = SavedState(checkpoint)
        saved.check_weights({name: weight.shape for name, weight in named_weights(self.model)})
        places = {weight: place for place, weight in enumerate(self._optimizer_order())}
        document: dict[str, Any] = self._optimizer.state_dict()
        for name, weight in named_weights(self.model):
            value, *moments = (part.reshape(weight.shape) for part in saved.read(name, 0, weight.numel()))
            weight.copy_(value)
            step = torch.tensor(float(saved.step))
            document["state"][places[weight]] = {"step": step, **dict(zip(MOMENTS, moments, strict=True))}
        self._optimizer.load_state_dict(document)
        load_rng(checkpoint.path, 0, self.device, self.settings.seed, saved.step)

    def _optimizer_order(self) -> list[torch.nn.Parameter]:
        return [weight for group in self._optimizer.param_groups for weight in group["params"]]

    def _step(self) -> int:
        """Optimizer steps done."""
        done = self._optimizer.state[self._weights[0]].get("step")
        return int(done.item()) if done is not None else 0

    def _to_device(self, tokens: Tokens) -> Tensor:
        host = torch.from_numpy(tokens)
        if self.device.type == "cpu":
            return host
        return host.pin_memory().to(self.device, non_blocking=True)

    def _forward_context(self) -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(preferred_kernels(self.device))
        stack.enter_context(
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bf16")
        )
        return stack
