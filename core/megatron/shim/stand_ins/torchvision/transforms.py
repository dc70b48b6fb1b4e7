"""Names only: asking for a transform says what is missing."""

from __future__ import annotations

from typing import NoReturn


def __getattr__(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(f"torchvision.transforms.{name} needs torchvision: pip install torchvision")
