"""The preset that Setup edits: one set of values as screen, preset file and command line, each made from the others.

Values are held as `--set` pairs on top of a preset, so that what is typed on the screen is read, checked and refused
exactly as on the command line.
"""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import InputError
from core.preset import Preset
from core.preset_source import Problem, RawPreset, find_preset, raw_preset, set_text
from core.runs.directory import RunDirectory, check_run_name
from core.yaml_source import Place, read_yaml, read_yaml_file
from tui.form import all_fields

if TYPE_CHECKING:
    from core.facts import Facts
    from core.plan import Plan


@dataclass
class Draft:
    """A preset with changes. Wrong values are kept, so that nothing typed is lost; they show up in `problems()`."""

    source: str
    """The preset as the command line names it: a shipped name, or a path."""
    preset_name: str
    """The preset's own name, which the plan records."""
    base: RawPreset
    text: str
    """The YAML text that the preset file is written from: it keeps the user's order and comments."""
    folder: Path
    """Where relative paths in `text` start."""
    name: str
    """The run's name."""
    changes: dict[str, str] = field(default_factory=dict)
    """Dotted key -> what stands behind `--set key=`; only what differs from the preset."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """The changes as they were last saved or launched."""

    @classmethod
    def from_preset(cls, name: str) -> Draft:
        """A shipped preset by name, or a file. Wrong values in it are problems of the draft.

        Raises:
            InputError: there is no such preset, or it is not YAML with sections.
        """
        path = find_preset(name)
        folder = path.absolute().parent
        base = raw_preset(read_yaml_file(path), str(path), folder)
        text = path.read_bytes().decode("utf-8-sig")
        return cls(name, path.stem, base, text, folder, _run_name(path.stem))

    @property
    def is_unsaved(self) -> bool:
        """Whether something would be lost if this went away."""
        return bool(self.changes) and self.changes != self.kept

    def keep(self) -> None:
        """The changes are in a file or in a run now."""
        self.kept = dict(self.changes)

    def copy(self) -> Draft:
        """One that a worker may read while this one is edited."""
        return Draft(**{**vars(self), "changes": dict(self.changes)})

    def set(self, key: str, text: str) -> Problem | None:
        """Change a key as `--set key=text` would; returns what is wrong with it, or with its section.

        The text is kept even so. A value equal to the preset's own leaves no change.
        """
        self.changes.pop(key, None)
        without = self.value(key)
        self.changes[key] = text
        raw, refused = self._raw()
        if not any(problem.key == key for problem in refused) and _same(_value(raw, key), without):
            del self.changes[key]
        return self.problem_of(key)

    def reset(self, key: str) -> None:
        """Take the preset's own value again."""
        self.changes.pop(key, None)

    def value(self, key: str) -> Any:
        """The value of a key before it is checked; its default where the preset does not name it."""
        return _value(self._raw()[0], key)

    def problems(self) -> list[Problem]:
        """Everything that is wrong with the values."""
        raw, refused = self._raw()
        return refused + raw.problems()

    def problem_of(self, key: str) -> Problem | None:
        """What is wrong with a key, else with how it fits its section; None where both are right."""
        problems = self.problems()
        own = [problem for problem in problems if problem.key == key or problem.key.startswith(f"{key}.")]
        of_section = [problem for problem in problems if problem.key == key.partition(".")[0]]
        return next(iter(own + of_section), None)

    def preset(self) -> Preset:
        """The checked preset. Raises InputError with every problem."""
        raw, refused = self._raw()
        if refused:
            raise InputError("\n".join(map(str, refused + raw.problems())))
        return raw.checked()

    def run(self, runs_dir: Path) -> RunDirectory:
        """The run's folder. Raises InputError for an unusable name."""
        return RunDirectory(runs_dir.absolute() / check_run_name(self.name))

    def plan(self, facts: Facts, runs_dir: Path) -> Plan:
        """The plan; pure, as facts are gathered before. Raises InputError with every problem."""
        from core.plan import make_plan

        return make_plan(self.preset(), self.preset_name, facts, self.run(runs_dir))

    def set_options(self) -> list[str]:
        """The changes as options of a command line."""
        return [word for key, text in self.changes.items() for word in ("--set", f"{key}={text}")]

    def command_line(self, *options: str) -> str:
        """The same run from a shell; `options` go behind."""
        argv = ["llm-wizard", "run", self.source, *self.set_options()]
        if self.name != self.preset_name:
            argv += ["--name", self.name]
        return shlex.join([*argv, *options])

    def yaml(self, folder: Path | None = None) -> str:
        """A preset file of the same values: the preset's text with its comments, and the changes in their places.

        Paths below `folder`, where the file will lie, are relative to it; all others are absolute.

        Raises:
            InputError: a path has bytes that are not UTF-8.
        """
        from tui.preset_text import rewrite

        text = rewrite(self.text, self._raw()[0].values, folder)
        try:
            text.encode()
        except UnicodeEncodeError:
            hint = "give the folder or file another name"
            raise InputError("a path has bytes that are not UTF-8, which a preset file cannot hold", hint) from None
        return text

    def save(self, path: Path) -> None:
        """Write the preset file, replacing one of that name. Raises InputError where that cannot be done."""
        from core.files import write_atomically

        try:
            write_atomically(path, self.yaml(path.absolute().parent).encode(), mode=0o666)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}", "choose another place") from None
        self.keep()

    def take_text(self, text: str, source: str) -> None:
        """Take over the values of a whole preset text, as it comes from an editor; relative paths start at the shell's folder.

        Raises:
            InputError: the text is not a right preset; every problem with its line. The draft is as it was.
        """
        raw = raw_preset(read_yaml(text, source), source, Path.cwd())
        raw.checked()
        changed = {key for key in all_fields() if not _same(_value(raw, key), _value(self.base, key))}
        # A section that the preset leaves out has defaults of its own; the first change in it brings a section without.
        begun = {_section(key) for key in changed} - self.base.values.keys()
        changed |= {
            key for key, spec in all_fields().items() if _section(key) in begun and _value(raw, key) != spec.default
        }
        self.changes = {key: set_text(_value(raw, key)) for key in all_fields() if key in changed}
        self.text, self.folder = text, Path.cwd()

    def _raw(self) -> tuple[RawPreset, list[Problem]]:
        """The values with the changes, and the changes that could not even be read."""
        raw = RawPreset(copy.deepcopy(self.base.values), dict(self.base.places), self.base.source)
        refused = []
        for key, text in self.changes.items():
            try:
                raw.apply(f"{key}={text}")
            except InputError as error:
                place = f"--set {key}"
                said = re.sub(r"^(:\d+:\d+)?: ", "", error.message.removeprefix(place))
                refused.append(Problem(Place(place, 0, 0), key, said))
        return raw, refused


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _value(raw: RawPreset, key: str) -> Any:
    """The value of a key; its default where the preset does not name it, None for a key that there is not."""
    section, name = _section(key), key.rpartition(".")[2]
    if section and section not in raw.values:
        field = Preset.model_fields.get(section)
        return getattr(field.default, name, None) if field else None
    values = raw.values[section] if section else raw.values
    if isinstance(values, dict) and name in values:
        return values[name]
    return all_fields()[key].default if key in all_fields() else None


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same to the preset: 1 and true are not, a path and a list of it are."""
    if isinstance(one, list) != isinstance(other, list):
        one, other = ([value] if isinstance(value, str) else value for value in (one, other))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return isinstance(one, bool) == isinstance(other, bool) and one == other
    return type(one) is type(other) and bool(one == other)


def _run_name(text: str) -> str:
    """A usable run name from a file's name."""
    try:
        return check_run_name(text)
    except InputError:
        return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or "run"
