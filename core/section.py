"""The base of every preset section: typed, frozen, unknown keys refused, one sentence of help under each field."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

PATH_MARK = {"path": True}
"""Marks a field that holds a path: relative ones are resolved against the preset file, or the shell's folder for --set."""


def _one_is_a_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


FilePath = Annotated[str, Field(json_schema_extra=PATH_MARK)]
"""One path, absolute after loading."""
FileList = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(_one_is_a_list),
    Field(json_schema_extra=PATH_MARK),
]
"""One path or a list of paths, absolute after loading."""


class Section(BaseModel):
    """A part of a preset. The docstring under a field is its help, in the screen, the prompts and the documentation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, validate_default=True
    )
