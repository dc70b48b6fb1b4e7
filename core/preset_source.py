"""From a preset's name or file and the --set options to a checked Preset, or to errors with their places."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo

import presets
from core.errors import InputError
from core.preset import Preset
from core.section import PATH_MARK, Section
from core.yaml_source import Document, KeyPath, Place, read_yaml, read_yaml_file, resolve_scalar

SHIPPED = Path(presets.__file__).parent


@dataclass(frozen=True)
class LoadedPreset:
    """A preset that passed every check of its own; `name` is the default name of a run."""

    preset: Preset
    name: str
    path: Path


def shipped_presets() -> dict[str, Path]:
    """The presets that come with the tool, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"), key=lambda path: path.stem)}


def find_preset(name: str) -> Path:
    """The file of a preset given by name or by path. Raises InputError."""
    if name in shipped_presets():
        return shipped_presets()[name]
    path = Path(name)
    if path.exists():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in name:
        raise InputError(f"there is no preset file {name}")
    known = list(shipped_presets())
    raise InputError(f"there is no preset {name!r}{_did_you_mean(name, known)}", f"presets: {', '.join(known)}")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a preset. `key` is the dotted key that it is about: a section where several keys do
    not fit together, "" where it is the whole.
    """

    place: Place
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass
class RawPreset:
    """A preset's values before they are checked, and the place of each; paths are absolute."""

    values: dict[str, Any]
    places: dict[KeyPath, Place]
    source: str

    def apply(self, option: str) -> None:
        """Change one value by `key.path=value`. Raises InputError where that is not one, or not YAML."""
        _apply_set(self.values, self.places, option)

    def problems(self) -> list[Problem]:
        """Everything that is wrong with the values; empty when `checked` gives a preset."""
        try:
            Preset.model_validate(self.values)
        except pydantic.ValidationError as error:
            return self._explain(error)
        return []

    def checked(self) -> Preset:
        """The preset. Raises one InputError with a line for each problem."""
        try:
            return Preset.model_validate(self.values)
        except pydantic.ValidationError as error:
            raise InputError("\n".join(map(str, self._explain(error)))) from None

    def _explain(self, error: pydantic.ValidationError) -> list[Problem]:
        found = [_explain(problem, self.values, self.places, self.source) for problem in error.errors()]
        return list(dict.fromkeys(found))


def load_preset(name: str, sets: Iterable[str] = ()) -> LoadedPreset:
    """Load, change by `--set key.path=value`, and check.

    Relative paths mean: from the preset file's own folder in the file, from the current folder in --set.

    Raises:
        InputError: every problem found, each with its place.
    """
    path = find_preset(name)
    raw = raw_preset(read_yaml_file(path), str(path), path.absolute().parent)
    for option in sets:
        raw.apply(option)
    return LoadedPreset(raw.checked(), path.stem, path)


def raw_preset(document: Document, source: str, folder: Path) -> RawPreset:
    """The unchecked values of a document; relative paths start at `folder`. Raises InputError where there are no sections."""
    if document.value is None:
        raise InputError(f"{source}: the preset is empty")
    if not isinstance(document.value, dict):
        raise InputError(f"{source}:1:1: expected sections such as `model:`, found {_describe(document.value)}")
    _make_paths_absolute(Preset, document.value, folder)
    return RawPreset(document.value, dict(document.places), source)


def _apply_set(values: dict[str, Any], places: dict[KeyPath, Place], option: str) -> None:
    key, equals, text = option.partition("=")
    key = key.strip()
    place = Place(f"--set {key}", 0, 0)
    if not equals or not key:
        raise InputError(f"--set {option}: expected key=value, such as --set pretrain.steps=100")
    path = tuple(key.split("."))
    fragment: dict[str, Any] = {}
    inner = fragment
    for part in path[:-1]:
        inner[part] = {}
        inner = inner[part]
    inner[path[-1]] = _set_value(text, place)
    _make_paths_absolute(Preset, fragment, Path.cwd())
    target = values
    for depth, part in enumerate(path[:-1]):
        target = target.setdefault(part, {})
        fragment = fragment[part]
        if not isinstance(target, dict):
            raise InputError(f"{place}: {'.'.join(path[: depth + 1])} is a value, not a section")
    target[path[-1]] = fragment[path[-1]]
    for known in [known for known in places if known[: len(path)] == path]:
        del places[known]
    places[path] = place


def _set_value(text: str, place: Place) -> Any:
    # A bare word is taken as it is (`### Human:` would be a comment in YAML); brackets and quotes are YAML.
    if text[:1] in _YAML_STARTS:
        document: Document = read_yaml(text, str(place))
        return document.value
    return resolve_scalar(text, place)


def set_text(value: Any) -> str:
    """What stands behind `--set key=` for this value: the inverse of how it is read."""
    if value is None:
        return "null"
    if isinstance(value, str):
        bare = value and value[0] not in _YAML_STARTS and value == value.strip() and value.isprintable()
        return value if bare and is_word(value) else _quoted(value)
    return _flow(value)


_YAML_STARTS = ("[", "{", '"', "'")
_SAFE_IN_FLOW = re.compile(r"[\w./][\w./+@%-]*")


def is_word(text: str) -> bool:
    """Whether a plain scalar of these characters means the text itself: not a number, a truth value or nothing."""
    try:
        return isinstance(resolve_scalar(text, Place("", 0, 0)), str)
    except InputError:
        return False


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        return value if _SAFE_IN_FLOW.fullmatch(value) and is_word(value) else _quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else repr(value)


def _quoted(text: str) -> str:
    """A YAML double-quoted scalar on one line."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return {"\n": "\\n", "\t": "\\t"}.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\U{code:08x}")


def _make_paths_absolute(model: type[Section], values: Any, base: Path) -> None:
    """Resolve relative paths in raw values against `base`, in place; wrong types are left for validation to refuse."""
    if not isinstance(values, dict):
        return
    for name, field in model.model_fields.items():
        value = values.get(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            _make_paths_absolute(field.annotation, value, base)
        elif value and is_path(field):
            if isinstance(value, str):
                values[name] = _absolute(value, base)
            elif isinstance(value, list):
                values[name] = [_absolute(item, base) if isinstance(item, str) and item else item for item in value]


def _absolute(text: str, base: Path) -> str:
    # normpath-like without resolving links: what the user wrote stays recognisable in messages.
    return str(base / Path(text).expanduser())


def is_path(field: FieldInfo) -> bool:
    """Whether a field holds a path or a list of paths."""
    if field.json_schema_extra == PATH_MARK:
        return True
    for argument in get_args(field.annotation):
        if get_origin(argument) is Annotated:
            extras = [m.json_schema_extra for m in get_args(argument)[1:] if isinstance(m, FieldInfo)]
            if PATH_MARK in extras:
                return True
    return False


def _explain(problem: Any, values: dict[str, Any], places: dict[KeyPath, Place], source: str) -> Problem:
    """One of pydantic's errors: place, key, what was found, what was expected."""
    path = _known_path(problem["loc"], values)
    place = next((places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in places), Place(source, 0, 0))
    key = ".".join(str(part) for part in path)
    return Problem(place, key, _explanation(problem, path, key))


def _explanation(problem: Any, path: KeyPath, key: str) -> str:
    found = problem["input"]
    kind = problem["type"]
    context = problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {key!r}{_suggest_key(path)}"
    if kind == "value_error":
        text = str(problem["msg"]).removeprefix("Value error, ")
        return f"{key + ': ' if key else ''}{text}"
    if kind == "literal_error":
        return f"{key} is {_describe(found)}; expected {context['expected']}{_literal_hint(found, context)}"
    expected = _EXPECTED.get(kind)
    if expected is None:
        message = str(problem["msg"])
        return f"{key} is {_describe(found)}; {message[:1].lower()}{message[1:]}"
    return f"{key} is {_describe(found)}; expected {expected}{_type_hint(kind, key, found)}"


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "model_type": "a section with keys of its own",
    "model_attributes_type": "a section with keys of its own",
    "finite_number": "a finite number",
}


def _type_hint(kind: str, key: str, found: Any) -> str:
    if kind == "string_type" and isinstance(found, (int, float, bool)):
        return f' (in quotes: {key.rsplit(".", 1)[-1]}: "{found}")'
    return ""


def _literal_hint(found: Any, context: dict[str, Any]) -> str:
    options = [option.strip(" '") for option in str(context["expected"]).replace(" or ", ",").split(",")]
    return _did_you_mean(str(found), options)


def _describe(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 60 else value[:57] + '...'!r}"
    return "a list" if isinstance(value, list) else "a section"


def _known_path(loc: tuple[Any, ...], values: Any) -> KeyPath:
    """Pydantic's location without the parts that name a branch of a type instead of a key."""
    path: list[str | int] = []
    for part in loc:
        in_mapping = isinstance(values, dict) and part in values
        in_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if in_mapping or in_list:
            values = values[part]
            path.append(part)
    return tuple(path)


def _suggest_key(path: KeyPath) -> str:
    """A key that was probably meant: a near one in the same section, or the same word in another."""
    model: type[Section] = Preset
    for part in path[:-1]:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return ""
        model = annotation
    wrong, prefix = str(path[-1]), ".".join(str(part) for part in path[:-1])
    near = difflib.get_close_matches(wrong.replace("-", "_"), model.model_fields, 1, 0.6)
    if near:
        return f"; did you mean {prefix + '.' if prefix else ''}{near[0]}?"
    for name, field in Preset.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section) and wrong in annotation.model_fields:
            return f"; did you mean {name}.{wrong}?"
    return f"; known keys: {', '.join(model.model_fields)}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
