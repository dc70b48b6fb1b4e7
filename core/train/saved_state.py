"""What an optimizer keeps of a weight, read from a checkpoint of any engine and any number of processes.

One process writes each weight's moments whole. DeepSpeed puts the weights of a group one after the other into one flat
tensor and gives every rank a part of it (ZeRO 1 and 2), or gives every rank its part of each weight (ZeRO 3). So a rank of
another number of processes needs stretches of weights from several files. They are read where they lie, through memory
maps: nothing is converted on disk beforehand, no rank reads much more than its own share, and an ordinary checkpoint
carries nothing extra.

Why not DeepSpeed's own universal checkpoint: with ZeRO 3, loading one gives every parameter group the settings of the first
(`load_hp_checkpoint_state_from_checkpoint_dir_stage3`, 0.19.8), so norms and biases would silently get weight decay;
it writes all of the state to disk twice first; and it takes no checkpoint of plain PyTorch, nor another ZeRO stage.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from core.errors import StageError
from core.train.checkpoint import Checkpoint
from core.train.engine import DEEPSPEED_FOLDER, MODEL_FILE, OPTIMIZER_FILE

MOMENTS = ("exp_avg", "exp_avg_sq")
SHARD_FILE = re.compile(DEEPSPEED_FOLDER + r"/(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
SHAPES_FILE = "zero_pp_rank_0_mp_rank_00_model_states.pt"
PREFIX = "model."
"""DeepSpeed's names are those of the module it wraps, the loss, which holds the model under this name."""

Layout = list[dict[str, tuple[int, int]]]
"""Of one rank: for each of its flat tensors, where a weight's part begins in it, and how many elements of it there are."""


class Stretch(NamedTuple):
    """Elements `start` to `start + numel` of the flattened weight `name`; in flat tensor `group` of a rank from `offset` on."""

    name: str
    start: int
    numel: int
    group: int
    offset: int


class Moments(Protocol):
    """Both moments of AdamW and the number of steps behind them."""

    step: int

    def read(self, key: str, name: str, start: int, numel: int) -> Tensor:
        """Elements `start` to `start + numel` of one moment ("exp_avg", "exp_avg_sq") of a weight: fp32, flat, on the CPU."""


class SavedState:
    """The state in a verified checkpoint. Every tensor that comes out of it is a copy: files may go while they are mapped.

    Raises:
        StageError: parts are missing, or DeepSpeed's files are laid out in another way than 0.19 does it.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._file = checkpoint.path / MODEL_FILE
        self._weights = open_tensors(self._file)
        self.names = set(self._weights.keys())
        self._moments: Moments
        if (checkpoint.path / DEEPSPEED_FOLDER).is_dir():
            self._moments = ZeroMoments(checkpoint)
        else:
            self._moments = TorchMoments(checkpoint.path / OPTIMIZER_FILE)
        self.step = self._moments.step
        if self.step != checkpoint.step:
            raise StageError(f"{checkpoint.path}: the optimizer's state is of step {self.step}, not {checkpoint.step}")

    def check_weights(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raises StageError where the checkpoint holds other weights than those of these names and shapes."""
        if differing := sorted(self.names ^ shapes.keys()):
            raise StageError(f"{self._file} holds other weights than the model: {', '.join(differing[:5])}")
        for name, shape in shapes.items():
            stored = self._weights.get_slice(name).get_shape()
            if stored != list(shape):
                raise StageError(f"{self._file}: {name} is {tuple(stored)}, the model's is {tuple(shape)}")

    def weight(self, name: str) -> Tensor:
        """The whole weight, fp32."""
        whole: Tensor = self._weights.get_tensor(name)
        return whole.clone()

    def read(self, name: str, start: int, numel: int) -> tuple[Tensor, Tensor, Tensor]:
        """A stretch of the fp32 weight, of its first and of its second moment; each flat [numel].

        model.safetensors and DeepSpeed's files both hold the weight: where their bits agree, the place in the files was
        found rightly, and the moments lie at the same place.
        """
        weight = self._weights.get_tensor(name).flatten()[start : start + numel].clone()
        if isinstance(self._moments, ZeroMoments) and not torch.equal(
            weight, self._moments.read("fp32", name, start, numel)
        ):
            raise StageError(
                f"{self._file} and the files in {DEEPSPEED_FOLDER}/ beside it differ in {name}: this DeepSpeed lays "
                "its state out in another way than was expected, so the optimizer's moments can't be found",
                "resume on as many processes and with the same pretrain.zero as before",
            )
        first, second = (self._moments.read(key, name, start, numel) for key in MOMENTS)
        return weight, first, second


class TorchMoments:
    """Those that the engine of one process wrote."""

    def __init__(self, file: Path) -> None:
        self._state = open_tensors(file)
        self.step = int(next(self._state.get_tensor(key) for key in self._state.keys() if key.endswith("/step")))  # noqa: SIM118 (no mapping)

    def read(self, key: str, name: str, start: int, numel: int) -> Tensor:
        whole: Tensor = self._state.get_tensor(f"{name}/{key}")
        return whole.flatten()[start : start + numel].clone()


class ZeroMoments:
    """Those in DeepSpeed's files. Only files that the verified manifest lists are opened: unpickling runs what they say."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        found = [SHARD_FILE.fullmatch(entry["name"]) for entry in checkpoint.manifest["files"]]
        files = {int(match[1]): checkpoint.path / match[0] for match in found if match}
        world_size = checkpoint.manifest["world_size"]
        if sorted(files) != list(range(world_size)):
            raise StageError(
                f"{checkpoint.path / DEEPSPEED_FOLDER} lacks the optimizer's state of some of {world_size}"
            )
        try:
            self._states = [unpickle(files[rank])["optimizer_state_dict"] for rank in range(world_size)]
            shapes = []
            if checkpoint.manifest["engine"].endswith("-3"):
                shapes = unpickle(checkpoint.path / DEEPSPEED_FOLDER / SHAPES_FILE)["param_shapes"]
            layouts = [rank_layout(state, shapes, rank, world_size) for rank, state in enumerate(self._states)]
            self._flat = [flat_tensors(state) for state in self._states]
            self.step = int(self._flat[0][0]["step"])
        except (KeyError, IndexError) as error:
            raise StageError(
                f"{checkpoint.path / DEEPSPEED_FOLDER}: no {error} in DeepSpeed's files; this tool knows those of its "
                "version 0.19",
                "resume on as many processes and with the same pretrain.zero as before",
            ) from None
        self._places: dict[str, list[tuple[int, Stretch]]] = {}
        for rank, stretches in enumerate(stretches_of_ranks(layouts)):
            for stretch in stretches:
                self._places.setdefault(stretch.name, []).append((rank, stretch))

    def read(self, key: str, name: str, start: int, numel: int) -> Tensor:
        result, filled = torch.empty(numel), 0
        for rank, place in self._places.get(name, ()):
            first, end = max(start, place.start), min(start + numel, place.start + place.numel)
            if first < end:
                offset = place.offset + first - place.start
                result[first - start : end - start] = self._flat[rank][place.group][key][offset : offset + end - first]
                filled += end - first
        if filled != numel:
            raise StageError(f"DeepSpeed's files hold {filled} of the {numel} elements wanted of {name}'s {key}")
        return result


def open_tensors(file: Path) -> Any:
    """A safetensors file, mapped: its tensors are read where they are used."""
    return safe_open(file, "pt")


def unpickle(file: Path) -> dict[str, Any]:
    """The contents of one of DeepSpeed's files, tensors on the CPU and mapped; only for files of a verified manifest."""
    document: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    return document


def flat_tensors(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each flat tensor of a rank's saved optimizer state: its `fp32` weights, both moments and the `step`."""
    if "fp32_flat_groups" in state:
        weights, inner = state["fp32_flat_groups"], state["optimizer_state_dict"]
    else:
        weights, inner = state["single_partition_of_fp32_groups"], state["base_optimizer_state"]
    return [{"fp32": flat, **inner["state"][group]} for group, flat in enumerate(weights)]


def rank_layout(
    state: Mapping[str, Any], shapes: Sequence[Mapping[str, Sequence[int]]], rank: int, world_size: int
) -> Layout:
    """Where the weights' parts lie in a rank's flat tensors, from the state that ZeRO's optimizer saves.

    ZeRO 1 and 2 say it. ZeRO 3 gives every rank an equal part of each weight, the last ones padded (`shapes`: those of
    the weights in each flat tensor, in order).
    """
    if "param_slice_mappings" in state:
        return [
            {own_name(name): (address.start, address.numel) for name, address in mapping.items()}
            for mapping in state["param_slice_mappings"]
        ]
    layout: Layout = []
    for group in shapes:
        places, offset = {}, 0
        for name, shape in group.items():
            numel = math.prod(shape)
            part = -(-numel // world_size)
            places[own_name(name)] = (offset, max(0, min(part, numel - rank * part)))
            offset += part
        layout.append(places)
    return layout


def stretches_of_ranks(layouts: Sequence[Layout]) -> list[list[Stretch]]:
    """Which stretch of which weight each rank has: the ranks' parts of a weight follow one another in the order of ranks."""
    done: dict[str, int] = {}
    result = []
    for layout in layouts:
        stretches = []
        for group, places in enumerate(layout):
            for name, (offset, numel) in places.items():
                start = done.get(name, 0)
                done[name] = start + numel
                stretches.append(Stretch(name, start, numel, group, offset))
        result.append(stretches)
    return result


def own_name(name: str) -> str:
    """The model's name of a weight, from DeepSpeed's."""
    return name.removeprefix(PREFIX)
