"""Weights & Biases, where the preset asks for it: online, or into files under the run to be synced later."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from core.model import ModelShape
from core.stages.base import StageContext


class Tracker(Protocol):
    """Where metric records go besides the run directory."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Send one record."""

    def finish(self, failed: bool) -> None:
        """Close the run there."""


class NoTracker:
    """The preset asks for none, or this is not rank 0."""

    def log(self, record: Mapping[str, Any]) -> None:
        pass

    def finish(self, failed: bool) -> None:
        pass


class WandbTracker:
    """One W&B run for one attempt; the attempts of a run share its group and name."""

    def __init__(self, context: StageContext, config: Mapping[str, Any]) -> None:
        section = context.preset.wandb
        # Stages that are not online are started with W&B switched off altogether.
        os.environ.pop("WANDB_DISABLED", None)
        import wandb

        folder = context.run.stage(context.stage_id)
        self._run: Any = wandb.init(
            entity=section.entity,
            project=section.project,
            group=section.group
            or group_name(context.preset.model.shape(), os.uname().nodename, context.run.code.stat().st_mtime),
            name=context.run.name,
            tags=section.tags,
            mode="offline" if section.mode == "offline" else "online",
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )
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


def open_tracker(context: StageContext, is_main: bool, config: Mapping[str, Any]) -> Tracker:
    """The tracker that the preset asks for, on rank 0."""
    if context.preset.wandb.mode == "off" or not is_main:
        return NoTracker()
    return WandbTracker(context, config)
