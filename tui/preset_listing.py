"""The presets that a run can start from: those that lie in the working directory, and those that come with the tool."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from core.errors import InputError
from core.preset import Preset
from core.preset_source import RawPreset, raw_preset, shipped_presets
from core.yaml_source import read_yaml_file
from tui.form import section_of

FIRST = "quickstart"
"""The preset for a first try stands at the top."""
MOST_FILES = 200
"""YAML files of the working directory that are looked at."""
LOOK_BYTES = 1 << 16
SECTIONS = frozenset(name for name, field in Preset.model_fields.items() if section_of(field))


@dataclass(frozen=True)
class PresetRow:
    """One preset. `source` is what the command line calls it; texts are as they were found."""

    source: str
    description: str
    trouble: str = ""
    """What is wrong with it, in one line."""


def list_presets(folder: Path) -> list[PresetRow]:
    """The preset for a first try, the presets in `folder` by name, then the other shipped ones; other YAML files are left out."""
    shipped = {name: _row(name, path) for name, path in shipped_presets().items()}
    first = [shipped.pop(FIRST)] if FIRST in shipped else []
    files = sorted(islice((path for path in folder.glob("*.y*ml") if path.suffix in (".yaml", ".yml")), MOST_FILES))
    return [*first, *(row for path in files if (row := _own_row(path)) is not None), *shipped.values()]


def _row(source: str, path: Path) -> PresetRow:
    try:
        raw = raw_preset(read_yaml_file(path), source, path.absolute().parent)
    except InputError as error:
        return PresetRow(source, "", error.message.splitlines()[0])
    return _of_raw(source, raw)


def _names_a_section(path: Path) -> bool:
    """Whether a text that is not YAML was meant as a preset: then its author must not look for it in vain."""
    try:
        with path.open("rb") as file:
            lines = file.read(LOOK_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return False
    return any(line.partition(":")[0] in SECTIONS for line in lines if ":" in line)


def _of_raw(source: str, raw: RawPreset) -> PresetRow:
    problems = raw.problems()
    return PresetRow(source, str(raw.values.get("description", "")), str(problems[0]) if problems else "")


def _own_row(path: Path) -> PresetRow | None:
    """None for a YAML file that is something else: a preset has at least one of a preset's sections."""
    if not path.is_file():
        return None
    try:
        raw = raw_preset(read_yaml_file(path), path.name, path.absolute().parent)
    except InputError as error:
        return PresetRow(path.name, "", error.message.splitlines()[0]) if _names_a_section(path) else None
    return _of_raw(path.name, raw) if raw.values.keys() & Preset.model_fields.keys() else None
