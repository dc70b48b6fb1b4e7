"""Documents from files: decoded, checked, normalised if asked. A record that is no document is handed out with its reason.

Nothing is lost on the way: of every file, records = documents + rejected.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from core.text.records import Position, Record, check_files, is_jsonl, records

LOOK_BYTES = 64 << 20
LONG_LINE = 1 << 20
_ASCII = frozenset(range(128))


class Document(NamedTuple):
    """A usable text; `line` is its line or row in the file, from 1."""

    file: str
    line: int
    text: str


class Rejected(NamedTuple):
    """A record that is no document."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def documents(
    files: list[str], text_key: str = "text", normalize: str = "none", position: Position | None = None
) -> Iterator[Document | Rejected]:
    """All records of all files, in order. `position` tells how far reading has come.

    Raises:
        InputError: a file is missing, of an unknown kind, or broken from some place on (.gz, .zst, .parquet).
    """
    check_files(files)
    position = position or Position()
    position.total = sum(Path(file).stat().st_size for file in files)
    for file in files:
        jsonl = is_jsonl(file)
        for record in records(file, text_key, position):
            yield decode(record, file, jsonl, text_key, normalize)


def decode(record: Record, file: str, jsonl: bool, text_key: str, normalize: str) -> Document | Rejected:
    """One record as a document, or why it is none."""
    if record.data is None:
        return Rejected(file, record.line, record.fault)
    try:
        text = _text_of_json(record, text_key) if jsonl else record.data.decode()
    except UnicodeDecodeError as error:
        return Rejected(file, record.line, f"invalid UTF-8 at byte {error.start}")
    except _NoDocument as reason:
        return Rejected(file, record.line, str(reason))
    if "\0" in text:
        return Rejected(file, record.line, "a NUL character in the text")
    if normalize == "nfkc":
        text = unicodedata.normalize("NFKC", text)
    if not text or text.isspace():
        return Rejected(file, record.line, "the text is empty")
    return Document(file, record.line, text)


class _NoDocument(Exception):  # noqa: N818  # not an error: a line that is counted
    pass


def _text_of_json(record: Record, text_key: str) -> str:
    data = record.data or b""
    if not data or data.isspace():
        raise _NoDocument("a blank line")
    if len(data) > LONG_LINE and not data[:64].lstrip().startswith(b"{"):
        # A long array would take many times its size in memory, only to be rejected.
        raise _NoDocument("not an object but an array or a value")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _NoDocument(_why_no_json(record, error)) from None
    if not isinstance(value, dict):
        raise _NoDocument(f"not an object but {_kind(value)}")
    if text_key not in value:
        raise _NoDocument(f"no {text_key!r} among the keys")
    text = value[text_key]
    if not isinstance(text, str):
        raise _NoDocument(f"{text_key!r} is not a string but {_kind(text)}")
    if data.count(json.dumps(text_key).encode()) > 1 and _keys(data).count(text_key) > 1:
        raise _NoDocument(f"{text_key!r} is there twice")
    return text


def _why_no_json(record: Record, error: orjson.JSONDecodeError) -> str:
    data = record.data or b""
    if not record.whole:
        return f"the last line is cut off, or not JSON: {error.msg} at character {error.pos}"
    try:
        data.decode()
    except UnicodeDecodeError as place:
        return f"invalid UTF-8 at byte {place.start}"
    if "surrogate" in str(error):
        return "a lone surrogate in the text"
    if b"\0" in data:
        return "a NUL byte in the line"
    return f"not JSON: {error.msg} at character {error.pos}"


def _keys(data: bytes) -> list[str]:
    """The keys of a JSON object, repeated ones too (orjson keeps the last)."""
    pairs: list[tuple[str, Any]] = json.loads(data, object_pairs_hook=lambda found: found)
    return [key for key, _ in pairs]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return names[type(value)]


@dataclass
class Look:
    """What a bounded look into the files found."""

    documents: int = 0
    rejected: int = 0
    first_rejected: str = ""
    longest_bytes: int = 0
    """UTF-8 bytes of the longest document: no tokenizer makes more tokens of it (but for a dummy prefix and an EOD)."""
    distinct_characters: int = 0
    """A vocabulary with full character coverage needs at least as many pieces."""
    complete: bool = True
    """Whether everything was read, so that the numbers are final."""


def look_into(files: list[str], text_key: str = "text", limit_bytes: int = LOOK_BYTES, normalize: str = "none") -> Look:
    """Read at most about `limit_bytes` of text: a check before a run starts, not a count.

    Raises:
        InputError: as `documents`.
    """
    look, position, read = Look(), Position(), 0
    seen, ascii_seen = set[str](), bytearray()
    for found in documents(files, text_key, normalize, position):
        if max(read, position.done) >= limit_bytes and look.documents + look.rejected:
            look.complete = False
            break
        if isinstance(found, Rejected):
            look.rejected += 1
            look.first_rejected = look.first_rejected or str(found)
            continue
        data = found.text.encode()
        look.documents += 1
        look.longest_bytes = max(look.longest_bytes, len(data))
        read += len(data)
        # Bytes are faster than characters: new ASCII is what is left when all known ASCII is deleted.
        ascii_seen.extend(_ASCII.intersection(data.translate(None, ascii_seen)))
        if not found.text.isascii():
            seen.update(data.translate(None, bytes(_ASCII)).decode())
    look.distinct_characters = len(seen) + len(ascii_seen)
    return look
