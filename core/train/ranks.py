"""Which of the training processes this one is, and the few things that they must agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from core.errors import StageError, WizardError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place. With `world_size` 1 there is no process group, and every method returns at once."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes metrics and decides on checkpoints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            distributed.barrier()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, true if it is true on any rank; so all ranks act on a signal at the same step."""
        if self.world_size == 1:
            return flags
        wanted = torch.tensor(flags, dtype=torch.int32, device=self.device)
        distributed.all_reduce(wanted, op=distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in wanted.tolist())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all ranks."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: float) -> list[float]:
        """The value of every rank, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values = torch.zeros(self.world_size, device=self.device)
        values[self.rank] = value
        distributed.all_reduce(values)
        return [float(each) for each in values.tolist()]

    def gather_objects(self, value: T) -> list[T]:
        """The (picklable) value of every rank, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def decided_by_main(self, decide: Callable[[], T]) -> T:
        """What `decide` returns on rank 0, on every rank; what it raises there is raised on every rank."""
        if self.world_size == 1:
            return decide()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = decide()
            except WizardError as error:
                box[1] = error
        distributed.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        result: T = box[0]
        return result

    def close(self) -> None:
        """Leave the process group, after everyone has got here."""
        if self.world_size > 1 and distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()


def read_ranks(device: str, planned: int, environment: Mapping[str, str] = os.environ) -> Ranks:
    """This process's place, from what torchrun set (RANK, WORLD_SIZE, LOCAL_RANK); the group is not started yet.

    Raises:
        StageError: the number of processes is not the planned one, or there is no GPU where one is planned.
    """
    world_size = int(environment.get("WORLD_SIZE", "1"))
    if world_size != planned:
        raise StageError(
            f"{world_size} training process(es) are running, the plan says {planned}: the batch, the steps and the "
            "learning rate would all be wrong",
            "start the stage with the command of the plan: `llm-wizard plan` shows it",
        )
    local_rank = int(environment.get("LOCAL_RANK", "0"))
    if device == "cpu":
        return Ranks(int(environment.get("RANK", "0")), local_rank, world_size, torch.device("cpu"))
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if visible <= local_rank:
        raise StageError(
            f"the plan trains on GPUs and local rank {local_rank} needs one, but PyTorch {torch.__version__} sees {visible}",
            "run `llm-wizard doctor`, or train on the CPU with --set pretrain.device=cpu",
        )
    torch.cuda.set_device(local_rank)
    return Ranks(int(environment.get("RANK", "0")), local_rank, world_size, torch.device("cuda", local_rank))
