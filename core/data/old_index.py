"""Megatron's old .idx (TNTIDX, --dataset-impl lazy or cached), read into what the new one says. Its .bin is the same.

Little-endian: the 8 bytes `TNTIDX\\0\\0`, u64 version 1, u64 code of the token type, u64 bytes of a token, u64 N sequences,
u64 S sizes, u64 D boundaries, then i64 each: N + 1 places in the list of sizes, N + 1 offsets in tokens, S sizes, D boundaries.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from core.data.indexed import LEGACY_MAGIC, TYPE_CODES, Index
from core.errors import InputError

HEADER = struct.Struct("<8sQQQQQQ")


def read_old_index(path: Path) -> Index:
    """Raises InputError: it is damaged, or holds what the new format has no room for."""

    def damaged(found: str) -> InputError:
        return InputError(f"{path}: {found}", "the index is damaged; make the token files again")

    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size:
            raise damaged(f"{size} bytes; the header alone has {HEADER.size}")
        magic, version, code, item, sequences, count, boundaries = HEADER.unpack(head)
        if magic != LEGACY_MAGIC or version != 1:
            raise damaged(f"format version {version} of {magic!r}")
        if code not in TYPE_CODES or np.dtype(TYPE_CODES[code]).itemsize != item:
            raise damaged(f"token type {code} of {item} bytes, which holds no token ids")
        if count != sequences:
            raise damaged(f"{count} sizes for {sequences} sequences")
        expected = HEADER.size + 8 * (2 * (sequences + 1) + count + boundaries)
        if size != expected:
            raise damaged(f"{size} bytes; {sequences} sequences and {boundaries} boundaries need {expected}")
        places = np.fromfile(file, "<i8", sequences + 1)
        offsets = np.fromfile(file, "<i8", sequences + 1)
        sizes = np.fromfile(file, "<i8", count)
        documents = np.fromfile(file, "<i8", boundaries)
    if not np.array_equal(places, np.arange(sequences + 1)) or not np.array_equal(np.diff(offsets), sizes):
        raise damaged("sizes and offsets contradict each other")
    if sequences and (int(sizes.min()) < 0 or int(sizes.max()) > np.iinfo(np.int32).max):
        raise damaged("a sequence of impossible size")
    if boundaries < 1 or documents[0] != 0 or documents[-1] != sequences or np.any(np.diff(documents) < 0):
        raise damaged("the document boundaries do not run from the first sequence to the last")
    return Index(np.dtype(TYPE_CODES[code]).newbyteorder("<"), sizes.astype(np.int32), documents)
