"""Several processes that turn raw records into token ids; the results come back in the order of the text.

The main process reads and cuts the files (I/O and decompression), the workers do the rest: JSON, checks, normalisation,
encoding. What they return does not depend on how many there are.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.encode import DocumentEncoder
from core.errors import StageError
from core.text.readers import Rejected, decode
from core.text.records import Position, Record, check_files, is_jsonl, records

BATCH_BYTES = 1 << 20
BATCH_RECORDS = 4096
WAITING_BYTES = 32 << 20
"""Raw text handed to workers and not yet taken back; one batch is always let through."""
WAITING_BATCHES = 4
"""Per worker."""


@dataclass(frozen=True)
class Recipe:
    """How a record becomes ids."""

    model: str
    append_eod: bool
    text_key: str
    normalize: str


@dataclass
class Batch:
    """Consecutive records of one file, in bytes as they were read."""

    file: str
    records: list[Record] = field(default_factory=list)
    size: int = 0


@dataclass
class Encoded:
    """What became of a batch: token ids one document after another, and each document's tokens and UTF-8 bytes."""

    file: str
    rows: int
    tokens: NDArray[Any]
    sizes: list[int]
    text_bytes: list[int]
    rejected: list[Rejected]


def batches(files: list[str], text_key: str, position: Position) -> Iterator[Batch]:
    """The records of all files in order."""
    check_files(files)
    position.total = sum(Path(file).stat().st_size for file in files)
    for file in files:
        batch = Batch(file)
        for record in records(file, text_key, position):
            batch.records.append(record)
            batch.size += len(record.data or b"")
            if batch.size >= BATCH_BYTES or len(batch.records) >= BATCH_RECORDS:
                yield batch
                batch = Batch(file)
        if batch.records:
            yield batch


class Encoder:
    """Encodes batches; one in each process."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.documents = DocumentEncoder(Path(recipe.model), recipe.append_eod)

    def encode(self, batch: Batch) -> Encoded:
        """Encode a batch; its records and texts are let go one by one, as a line may have tens of MB."""
        jsonl, recipe, rows = is_jsonl(batch.file), self.recipe, len(batch.records)
        parts: list[NDArray[Any]] = []
        sizes: list[int] = []
        text_bytes: list[int] = []
        rejected: list[Rejected] = []
        waiting = deque(batch.records)
        batch.records = []
        while waiting:
            found = decode(waiting.popleft(), batch.file, jsonl, recipe.text_key, recipe.normalize)
            if isinstance(found, Rejected):
                rejected.append(found)
                continue
            ids = self.documents.encode(found.text)
            if not ids:
                rejected.append(Rejected(found.file, found.line, "the text has no tokens"))
                continue
            parts += ids
            sizes.append(sum(map(len, ids)))
            text_bytes.append(utf8_bytes(found.text))
        tokens = np.concatenate(parts) if parts else np.zeros(0, self.documents.dtype)
        return Encoded(batch.file, rows, tokens, sizes, text_bytes, rejected)


def utf8_bytes(text: str) -> int:
    """Length in UTF-8, without making all of it at once."""
    if text.isascii():
        return len(text)
    return sum(len(text[begin : begin + BATCH_BYTES].encode()) for begin in range(0, len(text), BATCH_BYTES))


def encode_all(
    source: Iterator[Batch], recipe: Recipe, workers: int, stopped: Callable[[], bool] = lambda: False
) -> Iterator[Encoded]:
    """Encode batches with `workers` processes (1: in this one), in order; ends early when `stopped` says so.

    Raises:
        StageError: a worker was killed.
    """
    if workers == 1:
        encoder = Encoder(recipe)
        for batch in source:
            if stopped():
                return
            yield encoder.encode(batch)
        return
    # spawn: a fork would copy the threads' locks of whatever runs in this process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(recipe,)) as pool:
        try:
            yield from _in_order(pool, source, workers, stopped)
        except BrokenProcessPool:
            raise StageError(
                "a tokenizing process was killed, perhaps because memory ran out",
                f"use fewer than {workers} with --set data.workers=N",
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, source: Iterator[Batch], workers: int, stopped: Callable[[], bool]
) -> Iterator[Encoded]:
    waiting: deque[tuple[Future[Encoded], int]] = deque()
    size = 0
    for batch in source:
        while waiting and (size + batch.size > WAITING_BYTES or len(waiting) >= WAITING_BATCHES * workers):
            future, taken = waiting.popleft()
            size -= taken
            yield future.result()
        if stopped():
            return
        waiting.append((pool.submit(_encode, batch), batch.size))
        size += batch.size
    while waiting:
        future, _ = waiting.popleft()
        yield future.result()
        if stopped():
            return


_encoder: Encoder


def _start(recipe: Recipe) -> None:
    """Make this worker's encoder, and end the worker with its parent: the pool's pipe alone would keep it waiting forever."""
    global _encoder
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _encoder = Encoder(recipe)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _encode(batch: Batch) -> Encoded:
    return _encoder.encode(batch)
