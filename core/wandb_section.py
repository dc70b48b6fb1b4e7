"""Weights & Biases: a choice of the preset, off unless asked for."""

from typing import Annotated, Literal

from pydantic import Field

from core.section import Section


class WandbSection(Section):
    """Whether and where metrics are sent; the API key is never part of a preset."""

    mode: Literal["off", "online", "offline"] = "off"
    """off, online (needs `wandb login` on the node), or offline (files under the run directory, to be synced later)."""
    entity: str | None = None
    """The W&B user or team; your default entity when empty."""
    project: str = "llm-wizard"
    """The W&B project."""
    group: Annotated[str, Field(max_length=127)] | None = None
    """The W&B group; when empty `pretrain_{model}_{host}_{time}`, as in the original pipeline."""
    tags: list[str] = []
    """Tags of the W&B run."""
