"""Files of text as raw records: opening, decompressing and cutting, in bounded memory; nothing is decoded here.

.jsonl         a record is a line
.jsonl.gz/.zst the same, compressed
.txt           a record is a paragraph: blank lines separate documents, as in CC-100 and in BERT's corpora. (A line each, as
               SentencePiece reads text, would make documents of one sentence.) A paragraph ends at the latest at the line
               that fills PARAGRAPH_BYTES, so that a book without blank lines is several documents.
.parquet       a record is a row of one column
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from core.errors import InputError

LINE_BYTES = 64 << 20
"""A longer line is passed over and rejected: a line is held in memory several times (bytes, text, ids)."""
PARAGRAPH_BYTES = 1 << 20
"""At this size a paragraph of a .txt file ends."""
BUFFER = 1 << 20
BOM = b"\xef\xbb\xbf"
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt", ".parquet")
FOREIGN_BEGINNINGS = {
    b"\x1f\x8b": ("gzip", "give it the ending .jsonl.gz"),
    b"\x28\xb5\x2f\xfd": ("zstandard", "give it the ending .jsonl.zst"),
    b"PAR1": ("Parquet", "give it the ending .parquet"),
    b"\xff\xfe": ("UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
}


class Record(NamedTuple):
    """One line, paragraph or row before it is decoded.

    `line` counts from 1 (of a paragraph: its first line). `data` is None where there is nothing to decode, and `fault`
    says why; `whole` is false for a last line without a newline.
    """

    line: int
    data: bytes | None
    fault: str = ""
    whole: bool = True


@dataclass
class Position:
    """How far reading has come, in bytes of the files as they lie on the disk."""

    done: int = 0
    total: int = 0


def is_jsonl(file: str) -> bool:
    """Whether the records of this file are JSON."""
    return file.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst"))


def check_files(files: list[str]) -> None:
    """Raises InputError with every file that is missing, a folder, unreadable or of an unknown ending."""
    if not files:
        raise InputError("no text files are given", "name them with --set corpus.files=PATH")
    problems = []
    for name in files:
        path = Path(name)
        if path.is_dir():
            problems.append(f"{name} is a folder; give the files in it")
        elif not path.is_file():
            problems.append(f"{name} does not exist")
        elif not name.endswith(ENDINGS):
            problems.append(f"{name} has an unknown ending; known are {', '.join(ENDINGS)}")
    if problems:
        raise InputError("\n".join(problems))


def records(file: str, column: str, position: Position | None = None) -> Iterator[Record]:
    """The raw records of one file; `column` is read of a Parquet file. `position.done` grows by the file's size.

    Raises:
        InputError: the file cannot be opened, is of another kind than its ending says, or is broken from some place on.
    """
    position = position or Position()
    before = position.done
    if file.endswith(".parquet"):
        from core.text.parquet import rows

        yield from rows(file, column, position)
    else:
        yield from _lines_of(file, position)
    position.done = before + Path(file).stat().st_size


def _lines_of(file: str, position: Position) -> Iterator[Record]:
    before, line = position.done, 0
    try:
        with io.FileIO(file) as raw:
            _check_beginning(file, raw)
            stream = _decompressed(file, raw)
            cut = _paragraphs(stream) if file.endswith(".txt") else _lines(stream)
            for record in cut:
                line = record.line
                position.done = before + raw.tell()
                yield record
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise InputError(
            f"{file} is broken after line {line}: {error}", "the file was cut off or damaged; copy or download it again"
        ) from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from None


def _check_beginning(file: str, raw: io.FileIO) -> None:
    beginning = raw.read(4)
    raw.seek(0)
    if file.endswith((".gz", ".zst")):
        return
    for magic, (kind, hint) in FOREIGN_BEGINNINGS.items():
        # Only a text can begin with these letters and be right.
        if beginning.startswith(magic) and not (kind == "Parquet" and file.endswith(".txt")):
            raise InputError(f"{file} is {kind}, not plain UTF-8 text", hint)


def _decompressed(file: str, raw: io.FileIO) -> io.BufferedReader:
    if file.endswith(".gz"):
        # A smaller buffer: where the file is broken, what was unpacked for this buffer is lost.
        return io.BufferedReader(gzip.GzipFile(fileobj=raw, mode="rb"), BUFFER >> 4)
    if file.endswith(".zst"):
        return io.BufferedReader(_ZstandardFrames(raw), BUFFER >> 4)
    return io.BufferedReader(raw, BUFFER)


class _ZstandardFrames(io.RawIOBase):
    """The content of all frames of a .zst file. The library's own stream reader takes a cut-off file for a whole one."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._input:
                # Little at once: 8 KiB of a hostile file can still unfold to 256 MiB.
                self._input = self._raw.read(1 << 13)
                if not self._input:
                    if self._frame is not None:
                        raise EOFError("the last zstandard frame is not complete")
                    return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size


def _lines(stream: io.BufferedReader) -> Iterator[Record]:
    """Lines without their newline. A BOM at the start of a line is dropped: concatenated files have them inside."""
    number = 0
    while data := stream.readline(LINE_BYTES + 1):
        number += 1
        if len(data) > LINE_BYTES and not data.endswith(b"\n"):
            del data  # before the rest is read: two of them would be twice the memory
            while (rest := stream.readline(BUFFER)) and not rest.endswith(b"\n"):
                pass
            yield Record(number, None, f"the line is longer than {LINE_BYTES >> 20} MiB")
            continue
        whole = data.endswith(b"\n")
        yield Record(number, data.removeprefix(BOM).rstrip(b"\r\n"), whole=whole)


def _paragraphs(stream: io.BufferedReader) -> Iterator[Record]:
    """Runs of lines that are not blank, joined by newlines."""
    lines: list[bytes] = []
    first = size = 0
    for record in _lines(stream):
        line = record.data
        if line is None:
            if lines:
                yield Record(first, b"\n".join(lines))
                lines, size = [], 0
            yield record
        elif not line.strip():
            if lines:
                yield Record(first, b"\n".join(lines))
                lines, size = [], 0
        else:
            if not lines:
                first = record.line
            lines.append(line)
            size += len(line) + 1
            if size >= PARAGRAPH_BYTES:
                yield Record(first, b"\n".join(lines))
                lines, size = [], 0
    if lines:
        yield Record(first, b"\n".join(lines))
