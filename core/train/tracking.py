"""Weights & Biases, where the preset asks for it: online, or into files under the run to be synced later.

As in the original pipeline every node has a run of its own, named after it, in a group named after the head node. The first
node's run has the metrics; the others' have the configuration and what W&B measures on their node (GPUs, CPU, memory).
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from core.model import ModelShape
from core.stages.base import StageContext
from core.train.ranks import Ranks

HEAD = "LLM_WIZARD_HEAD"
"""Variable with the head node's name, where the launcher knows it better than the first rank's own host does."""


class Tracker(Protocol):
    """Where metric records go besides the run directory."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Send one record."""

    def finish(self, failed: bool) -> None:
        """Close the run there."""


class NoTracker:
    """The preset asks for none, or another rank of this node has the run."""

    def log(self, record: Mapping[str, Any]) -> None:
        pass

    def finish(self, failed: bool) -> None:
        pass


class WandbTracker:
    """One W&B run for one attempt on one node; the attempts of a run share its group and name."""

    def __init__(self, context: StageContext, config: Mapping[str, Any], group: str, is_main: bool) -> None:
        section = context.preset.wandb
        # Stages that are not online are started with W&B switched off altogether.
        os.environ.pop("WANDB_DISABLED", None)
        import wandb

        folder = context.run.stage(context.stage_id)
        self._run: Any = wandb.init(
            entity=section.entity,
            project=section.project,
            group=group,
            name=f"{context.run.name[:60]}_{os.uname().nodename[:60]}",
            tags=section.tags,
            mode="offline" if section.mode == "offline" else "online",
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )
        if is_main:
            context.event("wandb", url=self._run.url, folder=str(Path(self._run.dir).parent))

    def log(self, record: Mapping[str, Any]) -> None:
        values = {
            name: value
            for name, value in record.items()
            if isinstance(value, (int, float)) and name not in ("time", "step")  # not forward_ms: a value for each rank
        }
        self._run.log(values, step=record["step"])

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


def group_name(shape: ModelShape, host: str, started: float) -> str:
    """The original pipeline's group, `pretrain_{model}_{host}_{time}`, in less than W&B's 128 characters.

    `started` is when the run was made, in seconds since 1970, so that all attempts at it get the same group.
    """
    billions = shape.non_embedding_parameters() / 1e9
    time = datetime.datetime.fromtimestamp(started).strftime("%Y.%m.%d_%H.%M.%S")
    return f"pretrain_{shape.family}_{billions:.3g}B_{host[:60]}_{time}"[:127]


def open_tracker(
    context: StageContext, ranks: Ranks, config: Mapping[str, Any], on_every_node: bool = False
) -> Tracker:
    """The tracker that the preset asks for, on rank 0, or on the first rank of every node. Every rank calls this."""
    section, run = context.preset.wandb, context.run
    if section.mode == "off":
        return NoTracker()
    # Decided once: the nodes' clocks may be set to different time zones.
    group = section.group or ranks.decided_by_main(
        lambda: group_name(
            context.preset.model.shape(), os.environ.get(HEAD) or os.uname().nodename, run.code.stat().st_mtime
        )
    )
    if not ranks.is_main and not (on_every_node and ranks.local_rank == 0):
        return NoTracker()
    try:
        return WandbTracker(context, config, group, ranks.is_main)
    except Exception as error:  # whatever W&B raises
        if ranks.is_main:
            raise
        # Only this node's measurements are missing: no reason to end the training of all.
        context.warn(f"Weights & Biases can't be used on {os.uname().nodename}, whose GPUs it won't show: {error}")
        return NoTracker()
