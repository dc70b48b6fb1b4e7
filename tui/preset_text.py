"""Writing changed values into the text of a preset, in place: order, spelling and comments of the rest stay."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from core.preset import Preset
from core.preset_source import is_path, is_word
from core.section import Section
from core.yaml_source import read_yaml
from tui.form import section_of

UNBROKEN = 1 << 20
"""Columns of a line: one that is broken is hard to edit, and to read beside `--set`."""


def rewrite(text: str, values: dict[str, Any], folder: Path | None) -> str:
    """`text`, a right YAML document, with these values, whose paths are absolute.

    Paths below `folder`, where the file will lie, become relative to it.
    """
    yaml = YAML()
    yaml.width = UNBROKEN
    yaml.preserve_quotes = True
    document = yaml.load(text)
    if not isinstance(document, dict):
        document = CommentedMap()
    _bring_in(document, read_yaml(text, "").value or {}, _with_near_paths(Preset, values, folder))
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def _bring_in(target: CommentedMap, old: dict[str, Any], new: dict[str, Any]) -> None:
    """`old` is what the text means to us; the library reads some plain scalars (dates, 0x10) in another way."""
    for key in [key for key in old if key not in new]:
        del target[key]
    for key, value in new.items():
        before = old.get(key)
        if key in old and isinstance(value, dict) and isinstance(before, dict):
            _bring_in(target[key], before, value)
        elif key not in old:
            # Before the last key: a blank line at the end of a section belongs to that key.
            target.insert(max(0, len(target) - 1), key, _node(value))
        elif type(value) is not type(before) or value != before:
            target[key] = _node(value)


def _node(value: Any) -> Any:
    if isinstance(value, dict):
        return CommentedMap((key, _node(item)) for key, item in value.items())
    if isinstance(value, list):
        items = CommentedSeq(map(_node, value))
        items.fa.set_flow_style()
        return items
    if isinstance(value, str) and not (is_word(value) and value.isprintable()):
        return DoubleQuotedScalarString(value)
    return value


def _with_near_paths(model: type[Section], values: Any, folder: Path | None) -> Any:
    if not isinstance(values, dict) or folder is None:
        return values
    near = dict(values)
    for name, field in model.model_fields.items():
        value = values.get(name)
        if (section := section_of(field)) is not None:
            if name in near:
                near[name] = _with_near_paths(section, value, folder)
        elif is_path(field):
            near |= {name: _near(value, folder)} if name in near else {}
    return near


def _near(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_near(item, folder) for item in value]
    if isinstance(value, str) and Path(value).is_relative_to(folder) and Path(value) != folder:
        return str(Path(value).relative_to(folder))
    return value
