"""The few lines of a log that a person would want to see first."""

from __future__ import annotations

from collections.abc import Sequence

from core.troubleshoot.entries import Entry

MOST_LINES = 40
LAST_LINES = 15


def excerpt_of(entries: Sequence[Entry], exception: Entry | None) -> tuple[Entry, list[str]]:
    """The line that matters, and the traceback around it; without an exception the last lines that say anything."""
    if exception is None:
        said = [entry for entry in entries if entry.text.strip()] or list(entries)
        last = said[-LAST_LINES:]
        return last[-1], [entry.text.rstrip() for entry in last]
    if exception.chain is None:
        own = [entry for entry in entries if entry.stream == exception.stream and entry.file == exception.file]
        at = next(place for place, entry in enumerate(own) if entry is exception)
        return exception, [entry.text.rstrip() for entry in own[max(0, at - 5) : at + 5]]
    chain = _chain(entries, exception)
    if len(chain) > MOST_LINES:
        end = next((place for place, entry in enumerate(chain) if entry is exception), len(chain) - 1)
        begin = max(0, min(end - MOST_LINES + 5, len(chain) - MOST_LINES))
        chain = chain[begin : begin + MOST_LINES]
    return exception, [entry.text.rstrip() for entry in chain]


def _chain(entries: Sequence[Entry], exception: Entry) -> list[Entry]:
    own = [entry for entry in entries if entry.stream == exception.stream and entry.file == exception.file]
    places = [place for place, entry in enumerate(own) if entry.chain == exception.chain]
    return [entry for entry in own[places[0] : places[-1] + 1] if entry.text.strip()]
