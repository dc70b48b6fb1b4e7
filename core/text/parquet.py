"""Rows of one text column of a Parquet file. Apart, because pyarrow comes with the training packages only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import InputError

if TYPE_CHECKING:
    from core.text.records import Position, Record

ROWS_AT_ONCE = 256
TEXT_TYPES = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def rows(file: str, column: str, position: Position) -> Iterator[Record]:
    """The values of `column` as raw records, numbered from 1.

    Raises:
        InputError: pyarrow is not installed, the file is damaged, or it has no such column of text.
    """
    from core.text.records import Record

    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{file}: reading Parquet needs pyarrow, which this Python lacks", "pip install 'llm-wizard[train]'"
        ) from None
    before, size, number = position.done, Path(file).stat().st_size, 0
    try:
        with arrow.parquet.ParquetFile(file) as source:
            _check_column(file, column, source.schema_arrow)
            total = max(1, source.metadata.num_rows)
            for batch in source.iter_batches(batch_size=ROWS_AT_ONCE, columns=[column]):
                # As bytes: a value that is no UTF-8 must be one rejected row, not the end of reading.
                values = batch.column(0)
                for value in values.cast(arrow.large_binary()).to_pylist():
                    number += 1
                    position.done = before + size * number // total
                    yield Record(number, value, "" if value is not None else f"{column} is null")
    except (arrow.ArrowException, OSError) as error:
        raise InputError(
            f"{file} is broken after row {number}: {error}",
            "the file was cut off or damaged; copy or download it again",
        ) from None


def _check_column(file: str, column: str, schema: Any) -> None:
    if column not in schema.names:
        raise InputError(
            f"{file} has no column {column!r}, only {', '.join(schema.names)}", "--set corpus.text_key=NAME"
        )
    kind = schema.field(column).type
    value_kind = getattr(kind, "value_type", kind)  # of a dictionary-encoded column
    if str(value_kind) not in TEXT_TYPES:
        raise InputError(
            f"{file}: the column {column!r} holds {kind}, expected text", "--set corpus.text_key=NAME names another"
        )
