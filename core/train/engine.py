"""What the training loop asks of an engine, and what both engines share: the loss of a micro-batch, AdamW's groups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.train.checkpoint import Checkpoint
from core.train.loss import ChunkFunction, chunk_loss, cross_entropy, projected_cross_entropy
from core.train.model import decoder, layers
from core.train.sequences import Tokens
from core.train.settings import TrainSettings

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
"""Of the engine of one process."""
DEEPSPEED_FOLDER = "deepspeed"
"""DeepSpeed's own files inside a checkpoint."""
RNG_FILE = "rng-{rank}.safetensors"


class Engine(Protocol):
    """Forward, backward and optimizer of one rank. Losses and norms are scalars on the device: reading one waits for it."""

    model: PreTrainedModel

    def accumulate(self, tokens: Tokens) -> Tensor:
        """Add the gradients of one micro-batch (int64 [B, T + 1]); returns its mean loss in nats per token."""

    def step(self, lr: float) -> Tensor:
        """Average, clip and apply the accumulated gradients; returns their norm before clipping."""

    def forward_seconds(self) -> float | None:
        """How long this rank's last forward pass took by itself; None where that cannot be told from waiting for others."""

    def evaluate(self, tokens: Tokens) -> Tensor:
        """Mean loss of a micro-batch without gradients, with dropout off."""

    def save(self, folder: Path) -> None:
        """Write this rank's state into `folder`; rank 0 also writes model.safetensors, all weights in fp32."""

    def load(self, checkpoint: Checkpoint) -> None:
        """Take up the state that `save` wrote, of either engine and of any number of processes.

        Raises:
            StageError: it is the state of another model, or can't be read.
        """


class NextTokenLoss(nn.Module):
    """A language model that takes sequences of T + 1 tokens and returns their mean loss."""

    def __init__(self, model: PreTrainedModel, settings: TrainSettings) -> None:
        super().__init__()
        self.model = model
        self.vocab_size = settings.vocab_size
        self.dtype = settings.compute_dtype
        self.projection_is_partitioned = settings.zero == 3
        self.chunk: ChunkFunction = chunk_loss

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T + 1] -> scalar."""
        targets = tokens[:, 1:].flatten()
        hidden = decoder(self.model)(input_ids=tokens[:, :-1].contiguous(), use_cache=False).last_hidden_state
        if self.projection_is_partitioned:
            # ZeRO-3 gathers a weight only while its own module runs.
            return cross_entropy(self.model.lm_head(hidden).flatten(0, 1), targets, self.vocab_size)
        return projected_cross_entropy(
            hidden.flatten(0, 1), self.model.lm_head.weight, targets, self.vocab_size, self.dtype, self.chunk
        )


def keep_residual_in(dtype: torch.dtype, layer: nn.Module) -> None:
    """Let the residual stream enter the first layer in `dtype`: under autocast it would stay fp32 and cost bandwidth.

    The weights stay fp32, and the stream is what it is in Megatron's and DeepSpeed's bf16 training.
    """
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype), *inputs[1:]))


def compile_model(model: PreTrainedModel, loss: NextTokenLoss, unit: str) -> None:
    """torch.compile the model (`unit` "model" or "layers") and its loss, in place, so that the names of the weights stay.

    Shapes never change in training, and code for changing ones is slower.
    """
    if unit == "model":
        decoder(model).compile(dynamic=False)
    elif unit == "layers":
        for layer in layers(model):
            layer.compile(dynamic=False)
    if unit != "off":
        loss.chunk = torch.compile(chunk_loss, dynamic=False, fullgraph=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's two groups: matrices with weight decay; biases, norms and other one-dimensional weights without."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for weight in model.parameters():
        # A weight that ZeRO-3 has partitioned is flat; its own shape is in ds_shape.
        (matrices if len(getattr(weight, "ds_shape", weight.shape)) >= 2 else vectors).append(weight)
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def named_weights(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Every weight once, under its Hugging Face name; a tied output projection is left out."""
    yield from model.named_parameters(remove_duplicate=True)


def save_rng(folder: Path, rank: int, device: torch.device) -> None:
    """Write this rank's random state (dropout draws from it)."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    save_file(states, folder / RNG_FILE.format(rank=rank))


def load_rng(folder: Path, rank: int, device: torch.device, seed: int, step: int) -> None:
    """Take up the random state that `save_rng` wrote; a rank that did not exist then starts one of its own.

    That one comes from (seed, rank, step), so that resuming twice gives the same run.
    """
    file = folder / RNG_FILE.format(rank=rank)
    if not file.exists():
        key = hashlib.blake2b(f"{seed}/{rank}/{step}".encode(), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(key, "little"))
        return
    states = load_file(file)
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
