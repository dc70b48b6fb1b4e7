"""What a checkpoint is, and how one comes to be: the commit protocol. Nothing here imports torch.

    step-N.tmp-<attempt>/   every rank writes its files and fsyncs them
    manifest.json           written last: name, size and SHA-256 of every file, and what the state belongs to
    step-N/                 the folder, renamed as a whole after all ranks have passed a barrier
    latest                  the pointer, replaced atomically

A folder is a checkpoint only if its manifest verifies: all files are there, none besides, every byte as it was written.
On network storage a rename alone proves nothing, so whoever reads a checkpoint verifies it first.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from core.errors import StageError
from core.files import sha256, sync, write_atomically
from core.train.failpoint import failpoint

MANIFEST = "manifest.json"
POINTER = "latest"
STEP_FOLDER = re.compile(r"step-(\d+)")
LEFTOVER = re.compile(r"step-\d+\.(tmp-\d+|removed)")


class InvalidCheckpointError(StageError):
    """A folder that looks like a checkpoint is none: the message says which check failed."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose manifest verified."""

    path: Path
    step: int
    manifest: Mapping[str, Any]


def commit(
    folder: Path,
    step: int,
    attempt: int,
    write: Callable[[Path], None],
    lineage: Mapping[str, Any],
    is_main: bool = True,
    barrier: Callable[[], None] = lambda: None,
) -> Path:
    """Make `folder/step-N` by the protocol above and return it; every rank calls this at the same step.

    `write` puts this rank's files into the temporary folder. `lineage` goes into the manifest: world size, hashes of
    config, code and data, the position in the data.
    """
    temporary, final = folder / f"step-{step}.tmp-{attempt}", folder / f"step-{step}"
    if is_main:
        temporary.mkdir(mode=0o700)
        failpoint("folder-made", step)
    barrier()
    write(temporary)
    failpoint("files-written", step)
    barrier()  # before the list is taken: another rank's file that is being renamed would be gone when it is synced
    for file in files_of(temporary):
        sync(file)
    failpoint("files-synced", step)
    barrier()
    if is_main:
        write_manifest(temporary, {"step": step, "attempt": attempt, **lineage})
        failpoint("manifest-written", step)
        for inner in {file.parent for file in files_of(temporary)} | {temporary}:
            sync(inner)
        failpoint("folder-synced", step)
    barrier()
    if is_main:
        temporary.rename(final)
        failpoint("renamed", step)
        sync(folder)
        failpoint("parent-synced", step)
        write_atomically(folder / POINTER, f"{final.name}\n".encode())
        failpoint("pointer-replaced", step)
    barrier()
    return final


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Hash every file in `folder` and write its manifest, which also carries a hash of itself."""
    files = files_of(folder)
    hashes = hash_files(files)
    entries = [
        {"name": str(file.relative_to(folder)), "size": file.stat().st_size, "sha256": hashes[file]} for file in files
    ]
    document = {"schema_version": 1, **fields, "files": entries}
    document["manifest_sha256"] = _own_hash(document)
    write_atomically(folder / MANIFEST, orjson.dumps(document, option=orjson.OPT_INDENT_2))


def verify(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, if every byte of it is as it was committed.

    Raises:
        InvalidCheckpointError: no manifest or a damaged one, or a file that is missing, changed, or not in the manifest.
    """
    match = STEP_FOLDER.fullmatch(folder.name)
    if not match or folder.is_symlink() or not folder.is_dir():
        raise InvalidCheckpointError(f"{folder} is not a checkpoint folder (step-N)")
    try:
        document = orjson.loads((folder / MANIFEST).read_bytes())
        stated = document.pop("manifest_sha256")
        entries = {folder / entry["name"]: entry for entry in document["files"]}
    except FileNotFoundError:
        raise InvalidCheckpointError(f"{folder} has no {MANIFEST}: it was never committed") from None
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InvalidCheckpointError(f"{folder / MANIFEST} is damaged: {error}") from None
    if stated != _own_hash(document):
        raise InvalidCheckpointError(f"{folder / MANIFEST} is damaged: its own SHA-256 does not match")
    if document["step"] != int(match[1]):
        raise InvalidCheckpointError(f"{folder} holds step {document['step']}")
    present = set(files_of(folder)) - {folder / MANIFEST}
    if missing := sorted(entries.keys() - present):
        raise InvalidCheckpointError(f"{folder} lacks {_names(missing, folder)}")
    if links := [file for file in present if file.is_symlink() or not file.is_file()]:
        raise InvalidCheckpointError(f"{folder} holds what is no regular file: {_names(links, folder)}")
    if extra := sorted(present - entries.keys()):
        raise InvalidCheckpointError(f"{folder} has files that its manifest does not list: {_names(extra, folder)}")
    for file, entry in entries.items():
        if file.stat().st_size != entry["size"]:
            raise InvalidCheckpointError(f"{file} has {file.stat().st_size} bytes, its manifest says {entry['size']}")
    for file, digest in hash_files(list(entries)).items():
        if digest != entries[file]["sha256"]:
            raise InvalidCheckpointError(
                f"{file} changed since it was written: its SHA-256 does not match the manifest"
            )
    return Checkpoint(folder, document["step"], document)


def step_folders(folder: Path) -> list[Path]:
    """The step-N folders, the newest first; whether they are checkpoints is up to `verify`."""
    found = [path for path in folder.iterdir() if STEP_FOLDER.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def latest_verified(folder: Path, warn: Callable[[str], None] = lambda text: None) -> Checkpoint | None:
    """The newest checkpoint that verifies; None where there is none.

    The folders are the truth and the pointer a hint, since a crash can fall between the rename and the pointer. Every
    folder that had to be passed over, and a pointer that names no checkpoint, is told to `warn`.
    """
    found = None
    for path in step_folders(folder):
        try:
            found = verify(path)
            break
        except InvalidCheckpointError as error:
            warn(f"{error.message}; it is not used")
    pointer = folder / POINTER
    if found and not pointer.exists():
        warn(f"the pointer {pointer} is missing; the newest checkpoint that verifies is {found.path.name}")
    elif pointer.exists():
        named = pointer.read_bytes()[:100].decode("utf-8", "replace").strip()
        if not STEP_FOLDER.fullmatch(named) or not (folder / named).is_dir():
            use = found.path.name if found else "none"
            warn(f"the pointer {pointer} names {named!r}, which is no checkpoint here; used instead: {use}")
    return found


def remove_old(folder: Path, keep: int) -> list[Path]:
    """Remove the checkpoints older than the `keep` newest that verify, and return what was removed.

    Every kept one is read again from disk first: nothing is removed on the word of a checkpoint that can't be loaded.
    """
    verified, removed = 0, []
    for path in step_folders(folder):
        if verified < keep:
            try:
                verify(path)
                verified += 1
            except InvalidCheckpointError:
                continue
        else:
            # Renamed first, so that a crash half-way through the removal leaves no folder that looks like a checkpoint.
            doomed = path.with_name(f"{path.name}.removed")
            path.rename(doomed)
            failpoint("old-renamed", int(path.name[5:]))
            shutil.rmtree(doomed)
            removed.append(path)
    return removed


def remove_leftovers(folder: Path) -> None:
    """Remove what an earlier attempt left half-written or half-removed; never a checkpoint."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path)


def files_of(folder: Path) -> list[Path]:
    """Everything in `folder` that is no folder, in order of name."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def hash_files(files: list[Path]) -> dict[Path, str]:
    """SHA-256 of each file, several at a time: hashing releases the interpreter lock."""
    with ThreadPoolExecutor(max_workers=min(16, len(os.sched_getaffinity(0)))) as pool:
        return dict(zip(files, pool.map(sha256, files), strict=True))


def _own_hash(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _names(paths: Iterable[Path], folder: Path) -> str:
    return ", ".join(str(path.relative_to(folder)) for path in paths)
