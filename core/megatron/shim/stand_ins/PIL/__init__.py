"""In place of Pillow: Megatron's vision modules import names of it."""  # noqa: N999  Pillow's name

from __future__ import annotations

from typing import NoReturn


class _Missing:
    """Any attribute can be read (default arguments do); calling one says what is missing."""

    def __getattr__(self, name: str) -> _Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise ImportError("images need Pillow: pip install pillow")


Image = ImageEnhance = ImageFilter = ImageOps = _Missing()
