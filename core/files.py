"""Writing files so that a reader never sees half of one, and hashing them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import orjson

WHOLE_HASH_LIMIT = 1 << 30


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by a file with this content: written beside it, fsynced, renamed, the folder fsynced."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, document: Any) -> None:
    """`write_atomically` of an indented JSON document with sorted keys kept as given."""
    write_atomically(path, orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def read_json(path: Path) -> Any:
    """The document in `path`. Raises FileNotFoundError and orjson.JSONDecodeError."""
    return orjson.loads(path.read_bytes())


def sync(path: Path) -> None:
    """fsync a file, or a folder, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a whole file, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_key(path: Path) -> str:
    """A key that changes when a file's content does.

    The SHA-256 up to 1 GiB; above it the size, the time of the last change and the SHA-256 of the first and last MiB,
    because hashing a terabyte before every start would cost more than the stage it saves.
    """
    status = path.stat()
    if status.st_size <= WHOLE_HASH_LIMIT:
        return sha256(path)
    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
    with path.open("rb") as file:
        digest.update(file.read(1 << 20))
        file.seek(-(1 << 20), os.SEEK_END)
        digest.update(file.read(1 << 20))
    return f"sampled-{digest.hexdigest()}"


def free_name(path: Path) -> Path:
    """`path`-N with the lowest N that is not taken."""
    number = 1
    while (candidate := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return candidate
