"""Reading a preset's YAML safely: every value keeps its line and column, everything surprising is refused.

YAML 1.2's core schema: `1e-4` is a number, `yes` is a word. Refused with their place: duplicate keys, anchors and aliases
(a small file of them can grow to gigabytes), tags such as `!!python/object`, keys that are not words, several documents.
Values are built from the parser's events here, so no constructor of the library ever runs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from core.errors import InputError

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_DIGITS = 300

KeyPath = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True)
class Place:
    """Where a value stands: `source` is a file or an option; lines and columns count from 1."""

    source: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Document:
    """The values of one YAML document, and the place of each by its path of keys; the root's path is ()."""

    value: Any
    places: dict[KeyPath, Place]


def resolve_scalar(text: str, place: Place) -> Any:
    """What a plain (unquoted) scalar means: null, a truth value, a number, or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise InputError(f"{place}: the number has {len(text)} digits", f"at most {MAX_DIGITS}")
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        if not math.isfinite(number):
            raise InputError(f"{place}: {text} is too large for a number")
        return number
    return text


def read_yaml_file(path: Path) -> Document:
    """The document in a file. Raises InputError with file, line and column."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; expected a preset file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB; a preset is a small text file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise InputError(f"{path}:{line}:{column}: not UTF-8 (byte 0x{data[error.start]:02x})") from None
    return read_yaml(text, str(path))


def read_yaml(text: str, source: str) -> Document:
    """The document in `text`; `source` names it in messages. Raises InputError with line and column."""
    builder = _Builder(source)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            builder.take(event)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source, mark.line + 1, mark.column + 1) if mark else Place(source, 0, 0)
        raise InputError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except YAMLError as error:
        raise InputError(f"{source}: not valid YAML: {_first_line(error)}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        # The library's scanner trips over some malformed escapes with these instead of its own errors.
        raise InputError(f"{source}: not valid YAML ({_first_line(error)})") from None
    return builder.document()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Builder:
    """Builds the document from parser events; a stack instead of recursion, so depth is bounded by choice."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.places: dict[KeyPath, Place] = {}
        self.root: Any = None
        self.documents = 0
        self.open: list[tuple[Any, KeyPath]] = []
        self.key: list[str | None] = []

    def document(self) -> Document:
        return Document(self.root, self.places)

    def take(self, event: Any) -> None:
        place = Place(self.source, event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise InputError(f"{place}: a second document starts here; a preset is one document")
        elif isinstance(event, AliasEvent):
            raise InputError(f"{place}: aliases (*{event.anchor}) are not allowed in a preset; write the value out")
        elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
            self.open.pop()
            self.key.pop()
        elif isinstance(event, (ScalarEvent, MappingStartEvent, SequenceStartEvent)):
            self._refuse_extras(event, place)
            self._add(event, place)

    def _refuse_extras(self, event: Any, place: Place) -> None:
        tag = event.tag
        if tag is not None and str(tag) != "!":
            raise InputError(f"{place}: tags ({tag}) are not allowed in a preset; write a plain value")
        if event.anchor is not None:
            raise InputError(f"{place}: anchors (&{event.anchor}) are not allowed in a preset")

    def _add(self, event: Any, place: Place) -> None:
        container, path = self.open[-1] if self.open else (None, ())
        if isinstance(container, dict) and self.key[-1] is None:
            self._take_key(event, container, place)
            return
        if isinstance(event, MappingStartEvent):
            value: Any = {}
        elif isinstance(event, SequenceStartEvent):
            value = []
        else:
            plain = event.style is None or event.style == ""
            value = resolve_scalar(event.value, place) if plain else event.value
        if isinstance(container, dict):
            key = self.key[-1]
            assert key is not None
            container[key] = value
            path, self.key[-1] = (*path, key), None
            self.places.setdefault(path, place)
        elif isinstance(container, list):
            path = (*path, len(container))
            container.append(value)
            self.places[path] = place
        else:
            self.root = value
            self.places[()] = place
        if not isinstance(event, ScalarEvent):
            if len(self.open) >= MAX_DEPTH:
                raise InputError(f"{place}: nested deeper than {MAX_DEPTH} levels")
            self.open.append((value, path))
            self.key.append(None)

    def _take_key(self, event: Any, container: dict[str, Any], place: Place) -> None:
        if not isinstance(event, ScalarEvent) or not event.value:
            raise InputError(f"{place}: a key must be a word")
        path = self.open[-1][1] + (event.value,)
        if event.value in container:
            first = self.places[path]
            raise InputError(f"{place}: the key {event.value!r} stands twice; first in line {first.line}")
        self.key[-1] = event.value
        self.places[path] = place
