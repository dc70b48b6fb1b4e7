"""The records of a .jsonl file that another process is writing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson


def json_records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON object in each line; a line without one is left out: a disk that was full, or half a line so far."""
    for line in lines:
        if line:
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield record
