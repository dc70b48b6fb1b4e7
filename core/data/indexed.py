"""Megatron's token files: {prefix}.bin, the token ids of all documents one after another, and {prefix}.idx, where each ends.

The .idx (MMapIndexedDataset, version 1), little-endian: the 9 bytes `MMIDIDX\\0\\0`, u64 version, u8 code of the token
type, u64 N sequences, u64 D = documents + 1, then N x i32 sizes in tokens, N x i64 byte offsets into the .bin and D x
i64 sequence numbers at which documents begin (the last is N). 34 + 12 N + 8 D bytes in all.

Our writer makes one sequence a document; the reader also takes files with several. The end-of-document token is part
of a document's size. (Megatron's preprocess_data.py --append-eod forgets it there: every document but the first is then
read at a wrong offset. The reader names that damage; `llm-wizard data check` mends it.)
"""

from __future__ import annotations

import hashlib
import os
import shlex
import struct
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from core.errors import InputError
from core.files import sync

MAGIC = b"MMIDIDX\0\0"
LEGACY_MAGIC = b"TNTIDX\0\0"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TYPE_CODES: dict[int, type[np.generic]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
"""Megatron's codes; 6 and 7 are its floating-point types, which hold no token ids."""
UINT16_BELOW = 65500
"""Megatron stores ids in 16 bits where the vocabulary has fewer pieces than this."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 for a vocabulary below 65,500 pieces, else int32: Megatron's own rule."""
    return np.dtype("<u2" if vocab_size < UINT16_BELOW else "<i4")


def files_of(prefix: Path) -> tuple[Path, Path]:
    """The .bin and .idx of a prefix. The ending is appended: a prefix may hold dots."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


class Index(NamedTuple):
    """What an .idx says.

    dtype: of the ids; sizes: int32, tokens of each sequence; documents: int64, documents + 1 numbers of the sequences at
    which documents begin.
    """

    dtype: np.dtype[Any]
    sizes: NDArray[np.int32]
    documents: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return int(self.sizes.sum(dtype=np.int64))

    def document_offsets(self) -> NDArray[np.int64]:
        """int64, documents + 1 offsets, in tokens."""
        ends = np.zeros(len(self.sizes) + 1, np.int64)
        np.cumsum(self.sizes, out=ends[1:])
        return ends[self.documents]

    def not_empty(self) -> int:
        """How many documents have tokens."""
        return int(np.count_nonzero(np.diff(self.document_offsets())))


class IndexedDataset:
    """Token files, memory-mapped and checked for damage.

    Attributes:
        tokens: all token ids, 1-D, `dtype`; nothing is read until it is indexed.
        sizes: int32, tokens of each sequence.
        document_offsets: int64, documents + 1 offsets into `tokens`.
        dtype: of the ids.

    Raises:
        InputError: a file is missing, is no such file, or its parts contradict each other.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        bin_path, idx_path = files_of(prefix)
        for path in (bin_path, idx_path):
            if not path.is_file():
                raise InputError(f"the token file {path} does not exist", "data.prefix is the path without .bin/.idx")
        index = read_index(idx_path)
        self.dtype, self.sizes = index.dtype, index.sizes
        self._check_bin(bin_path, bin_path.stat().st_size, index)
        self.tokens: np.memmap[Any, np.dtype[Any]] = np.memmap(bin_path, dtype=self.dtype, mode="r")
        self.document_offsets: NDArray[np.int64] = index.document_offsets()

    def _check_bin(self, path: Path, size: int, index: Index) -> None:
        item, expected = self.dtype.itemsize, index.tokens
        if size == expected * item and size > 0:
            return
        if size == 0:
            raise InputError(f"{path} is empty", "make the token files again")
        not_empty = index.not_empty()
        if size % item == 0 and size // item - expected == not_empty:
            raise InputError(
                f"{path} holds {not_empty} tokens more than its index counts, one a document: Megatron's "
                "preprocess_data.py --append-eod writes the end-of-document token but leaves it out of the .idx "
                "(NVIDIA/Megatron-LM issue 431), so all documents but the first are read at a wrong place",
                f"llm-wizard data check --fix {shlex.quote(str(self.prefix))} mends the index",
            )
        raise InputError(
            f"{path} has {size} bytes; its index says {expected} tokens of {item} bytes, that is {expected * item}",
            "one of the two files is cut off or belongs to another prefix; "
            f"llm-wizard data check {shlex.quote(str(self.prefix))} says what can be mended",
        )

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.document_offsets) - 1

    def document(self, number: int) -> NDArray[Any]:
        """The token ids of one document, as a view of the file."""
        return self.tokens[self.document_offsets[number] : self.document_offsets[number + 1]]


def read_index(path: Path) -> Index:
    """Read an .idx and check that its parts agree.

    Raises:
        InputError: it is damaged, or no such file.
    """

    def damaged(found: str) -> InputError:
        prefix = shlex.quote(str(path.with_suffix("")))
        return InputError(
            f"{path}: {found}",
            f"the index is damaged or cut off; llm-wizard data check --fix {prefix} can make it again",
        )

    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER.size)
        if head.startswith(LEGACY_MAGIC):
            raise InputError(
                f"{path} is in Megatron's old format (TNTIDX)",
                f"llm-wizard data check --fix {shlex.quote(str(path.with_suffix('')))} writes it in the new one",
            )
        if not head.startswith(MAGIC):
            raise InputError(f"{path} is no Megatron index: it begins with {head[:9]!r}, not {MAGIC!r}")
        if len(head) < HEADER.size:
            raise damaged(f"{size} bytes; the header alone has {HEADER.size}")
        _, version, code, sequences, boundaries = HEADER.unpack(head)
        if version != VERSION:
            raise InputError(f"{path} has format version {version}; this tool reads version {VERSION}")
        if code not in TYPE_CODES:
            raise damaged(f"unknown token type {code}")
        expected = HEADER.size + 12 * sequences + 8 * boundaries
        if size != expected:
            raise damaged(f"{size} bytes; {sequences} sequences and {boundaries} boundaries need {expected}")
        sizes = np.fromfile(file, "<i4", sequences)
        offsets = np.fromfile(file, "<i8", sequences)
        documents = np.fromfile(file, "<i8", boundaries)
    dtype = np.dtype(TYPE_CODES[code]).newbyteorder("<")
    if sequences and int(sizes.min()) < 0:
        raise damaged("a sequence of negative size")
    starts = np.cumsum(sizes, dtype=np.int64) - sizes
    if not np.array_equal(offsets, starts * dtype.itemsize):
        wrong = int(np.argmax(offsets != starts * dtype.itemsize))
        raise damaged(
            f"sequence {wrong} begins at byte {offsets[wrong]}, its forerunners end at {starts[wrong] * dtype.itemsize}"
        )
    if boundaries < 1 or documents[0] != 0 or documents[-1] != sequences or np.any(np.diff(documents) < 0):
        raise damaged("the document boundaries do not run from the first sequence to the last")
    return Index(dtype, sizes, documents)


def write_index(path: Path, index: Index) -> str:
    """Write an .idx and fsync it; returns its SHA-256. Megatron's MMapIndexedDataset.Index.writer writes the same bytes."""
    codes = [code for code, kind in TYPE_CODES.items() if np.dtype(kind).newbyteorder("<") == index.dtype]
    sizes = index.sizes.astype("<i4", copy=False)
    offsets = np.cumsum(sizes, dtype="<i8")
    offsets -= sizes
    offsets *= index.dtype.itemsize
    digest = hashlib.sha256()
    with path.open("wb") as file:
        header = HEADER.pack(MAGIC, VERSION, codes[0], len(sizes), len(index.documents))
        for part in (header, sizes.data, offsets.data, index.documents.astype("<i8", copy=False).data):
            file.write(part)
            digest.update(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


class IndexedWriter:
    """Writes a pair of token files under temporary names; `commit` renames them. As a context manager it cleans up.

    Memory: 4 bytes a document until the commit. `bin_sha256` and `idx_sha256` are known after it.
    """

    def __init__(self, prefix: Path, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        if not any(np.dtype(kind).newbyteorder("<") == self.dtype for kind in TYPE_CODES.values()):
            raise ValueError(f"token ids cannot be stored as {self.dtype}")
        self._targets = files_of(prefix)
        self._temporary = tuple(path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in self._targets)
        self._sizes = array("i")
        self._digest = hashlib.sha256()
        self._limit = np.iinfo(self.dtype).max
        self.tokens = 0
        self.bin_sha256 = self.idx_sha256 = ""
        self._bin = self._temporary[0].open("wb")

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bin.close()
        for path in self._temporary:
            path.unlink(missing_ok=True)

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Tokens of each document so far."""
        return np.frombuffer(self._sizes, np.int32) if len(self._sizes) else np.zeros(0, np.int32)

    def add(self, tokens: NDArray[Any], sizes: Iterable[int]) -> None:
        """Append documents: their token ids one after another, and how many belong to each.

        Raises:
            ValueError: an id does not fit the dtype, or the sizes do not add up.
        """
        sizes = list(sizes)
        if sum(sizes) != len(tokens):
            raise ValueError(f"{len(tokens)} tokens for documents of {sum(sizes)}")
        if len(tokens) and (int(tokens.min()) < 0 or int(tokens.max()) > self._limit):
            raise ValueError(f"token ids {tokens.min()}...{tokens.max()} do not fit {self.dtype}")
        data = np.ascontiguousarray(tokens, self.dtype).data.cast("B") if len(tokens) else b""
        self._bin.write(data)
        self._digest.update(data)
        self._sizes.extend(sizes)
        self.tokens += len(tokens)

    def commit(self) -> None:
        """Write the index, fsync both files and give them their names."""
        _fsync_and_close(self._bin)
        self.bin_sha256 = self._digest.hexdigest()
        documents = np.arange(len(self.sizes) + 1, dtype=np.int64)
        self.idx_sha256 = write_index(self._temporary[1], Index(self.dtype, self.sizes, documents))
        for temporary, target in zip(self._temporary, self._targets, strict=True):
            temporary.replace(target)
        sync(self._targets[0].parent)


def _fsync_and_close(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def write_indexed(prefix: Path, documents: Iterable[NDArray[Any]], dtype: DTypeLike) -> None:
    """Write token files of whole documents (each a 1-D array of ids, the end-of-document token included)."""
    with IndexedWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add(np.asarray(document), [len(document)])
        writer.commit()
