"""Mending token files: a new index, a .bin cut to what is whole, orders of samples put aside. What was there stays beside, as {name}.bak."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO

from core.data.ends import common_end, map_tokens, not_empty_ends, with_end_counted
from core.data.indexed import Index, files_of, read_index, write_index
from core.data.manifest import manifest_path
from core.errors import InputError, StageError
from core.files import sync
from core.language import tr

Stamp = tuple[int, int]
COPIED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Repair:
    """What is to be done to one pair of token files.

    index: the new .idx; None leaves the old one. bin_bytes: the .bin keeps so many; None leaves it. stale: files to put aside.
    seen: size and time of the last change of both files when this was decided.
    """

    prefix: Path
    index: Index | None
    bin_bytes: int | None
    stale: tuple[Path, ...]
    seen: tuple[Stamp | None, Stamp | None]

    def preview(self) -> list[str]:
        """What would be done, a sentence each."""
        bin_path, idx_path = files_of(self.prefix)
        lines = []
        if self.bin_bytes is not None:
            lines.append(
                tr(
                    "put the last {bytes} bytes of {file} into {backup}, and cut them off",
                    bytes=f"{bin_path.stat().st_size - self.bin_bytes:,}",
                    file=bin_path,
                    backup=backup_name(bin_path.with_name(bin_path.name + ".end")),
                )
            )
            if (names := bin_path.stat().st_nlink) > 1:
                lines.append(tr("{file} has {names} names, and is cut under all of them", file=bin_path, names=names))
        if self.index is not None:
            if idx_path.exists():
                lines.append(tr("keep {file} as {backup}", file=idx_path, backup=backup_name(idx_path)))
            lines.append(
                tr(
                    "write {file}: {documents} documents, {tokens} tokens, {dtype}",
                    file=idx_path,
                    documents=f"{len(self.index.documents) - 1:,}",
                    tokens=f"{self.index.tokens:,}",
                    dtype=self.index.dtype.name,
                )
            )
        lines += [tr("rename {file} to {backup}", file=path, backup=backup_name(path)) for path in self._aside()]
        return lines

    def carry_out(self) -> None:
        """Do it. Where it is interrupted, the same repair can be decided and done again.

        Raises:
            StageError: the files have changed since it was decided, or cannot be written.
        """
        if stamps(self.prefix) != self.seen:
            raise StageError(
                f"{self.prefix}: the files have changed since they were looked at", "give the command again"
            )
        bin_path, idx_path = files_of(self.prefix)
        try:
            # The manifest and the orders first: they speak of the files as they were.
            for path in self._aside():
                path.rename(backup_name(path))
            if self.bin_bytes is not None:
                _cut(bin_path, self.bin_bytes)
            if self.index is not None:
                _replace_index(idx_path, self.index, mode=bin_path.stat().st_mode)
            sync(idx_path.parent)
        except OSError as error:
            raise StageError(f"{error.filename or self.prefix} cannot be changed: {error.strerror or error}") from None

    def _aside(self) -> list[Path]:
        manifest = manifest_path(self.prefix)
        changed = self.index is not None or self.bin_bytes is not None
        return [*self.stale, *([manifest] if changed and manifest.exists() else [])]


def stamps(prefix: Path) -> tuple[Stamp | None, Stamp | None]:
    """Size in bytes and time of the last change (ns) of the .bin and the .idx; None for one that is not there."""

    def stamp(path: Path) -> Stamp | None:
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns

    bin_path, idx_path = files_of(prefix)
    return stamp(bin_path), stamp(idx_path)


def backup_name(path: Path) -> Path:
    """{name}.bak, or the first {name}.bak-N that is not taken."""
    names = (path.with_name(f"{path.name}.bak{f'-{number}' if number else ''}") for number in count())
    return next(name for name in names if not os.path.lexists(name))


def _keep(path: Path) -> None:
    """Give the file a second name, which cannot take the place of another; a copy where there are no hard links."""
    while True:
        backup = backup_name(path)
        try:
            backup.hardlink_to(path)
            return
        except FileExistsError:
            continue
        except OSError:
            with path.open("rb") as source:
                _copy_rest(source, backup)
            shutil.copystat(path, backup)
            return


def _copy_rest(source: BinaryIO, target: Path) -> None:
    """What follows in `source` into the new file `target`. Where that breaks off, no half of it stays: it would look like a backup."""
    with target.open("xb") as copy:
        try:
            shutil.copyfileobj(source, copy, COPIED_AT_ONCE)
            copy.flush()
            os.fsync(copy.fileno())
        except BaseException:
            target.unlink()
            raise


def _replace_index(path: Path, index: Index, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_index(temporary, index)
        if path.exists():
            mode = path.stat().st_mode
            _keep(path)
        temporary.chmod(mode & 0o777)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _cut(path: Path, size: int) -> None:
    """Cut the file in place, once what is cut off is safe: a copy of terabytes would ask for as much room again."""
    backup = backup_name(path.with_name(path.name + ".end"))
    with path.open("r+b") as file:
        file.seek(size)
        _copy_rest(file, backup)
        sync(path.parent)
        file.truncate(size)
        os.fsync(file.fileno())


def repair_append_eod(prefix: Path, eod: int) -> int:
    """Count the end-of-document token in an index that preprocess_data.py --append-eod wrote without it.

    The old index stays as {prefix}.idx.bak. Returns how many documents were mended, 0 where the index was right already.

    Raises:
        InputError: a file is missing or damaged in another way, or the documents would not end with `eod`.
        StageError: the files cannot be written.
    """
    bin_path, idx_path = files_of(prefix)
    for path in (bin_path, idx_path):
        if not path.is_file():
            raise InputError(f"the token file {path} does not exist", "preprocess_data.py ended before it was written")
    index, size = read_index(idx_path), bin_path.stat().st_size
    if size == index.tokens * index.dtype.itemsize and size > 0:
        return 0
    counted = with_end_counted(index)
    ends = not_empty_ends(counted)
    if size != counted.tokens * index.dtype.itemsize or size == 0:
        raise InputError(
            f"{bin_path} has {size} bytes; {index.tokens:,} tokens of {index.dtype.itemsize} bytes and one more for each of "
            f"{len(ends):,} documents need {counted.tokens * index.dtype.itemsize}",
            f"llm-wizard data check {prefix} says what is wrong",
        )
    tokens = map_tokens(bin_path, index.dtype)
    if common_end(tokens, ends, (eod,)) is None:
        raise InputError(
            f"{prefix}: not every document would end with the end-of-document token (id {eod})",
            "the files were made with another tokenizer, or the .bin and the .idx do not belong together",
        )
    Repair(prefix, counted, None, (), stamps(prefix)).carry_out()
    return len(ends)
