"""The base class that megatron/data/image_folder.py derives from."""

from __future__ import annotations


class VisionDataset:
    def __init__(self, *args: object, **kwargs: object) -> None:
        raise ImportError("an image data set needs torchvision: pip install torchvision")
