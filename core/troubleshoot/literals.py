"""The texts that a line must hold for a pattern to match it, so that most lines never meet a regular expression."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterable
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants, _parser  # type: ignore[attr-defined]
else:
    import sre_constants as _constants
    import sre_parse as _parser

SHORTEST = 3
LEFT_OUT = "0123456789abcdef"
"""Characters that counters, times and addresses are made of. A text that a line holds is still in it when both lose them."""
_TABLE = str.maketrans("", "", LEFT_OUT)


def normalise(text: str) -> str:
    """The form in which texts are looked for: lower case, without what makes lines differ that say the same."""
    return text.lower().translate(_TABLE)


def required_literals(pattern: str) -> frozenset[str]:
    """Texts of which at least one is in every match of `pattern`, normalised, each of three or more characters.

    Raises:
        ValueError: there is no such set; the pattern would have to be tried on every line.
    """
    found = _of_sequence(list(_parser.parse(pattern).data))
    if not found:
        raise ValueError(
            f"no text of {SHORTEST} or more characters but digits and a to f is in every match of {pattern!r}"
        )
    return frozenset(found)


def by_common_part(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The texts in groups, each under a part of three or four characters that all of its group hold: few parts, chosen greedily.

    A line that holds none of the parts holds none of the texts, so five hundred texts cost seventy searches.
    """
    holders: dict[str, set[str]] = {}
    for text in texts:
        for size in (3, 4):
            for begin in range(len(text) - size + 1):
                holders.setdefault(text[begin : begin + size], set()).add(text)
    left = set().union(*holders.values())
    heap = [(-len(group) * len(part), part) for part, group in holders.items()]
    heapq.heapify(heap)
    groups: dict[str, tuple[str, ...]] = {}
    while left:
        promised, part = heapq.heappop(heap)
        group = holders[part] & left
        worth = -len(group) * len(part)
        if worth > promised:  # others of its group were taken since: it may be worth another look
            if group:
                heapq.heappush(heap, (worth, part))
            continue
        groups[part] = tuple(sorted(group))
        left -= group
    return groups


def _of_sequence(items: list[Any]) -> set[str]:
    """The best set of one sequence: its longest literal run, or the set of a branch within it."""
    candidates: list[set[str]] = []
    run = ""
    for code, value in items:
        if code is _constants.LITERAL:
            run += chr(value)
            continue
        candidates.append({run})
        run = ""
        if code is _constants.SUBPATTERN:
            candidates.append(_of_sequence(list(value[3])))
        elif code is _constants.BRANCH:
            branches = [_of_sequence(list(branch)) for branch in value[1]]
            if all(branches):
                candidates.append(set().union(*branches))
        elif code in (_constants.MAX_REPEAT, _constants.MIN_REPEAT) and value[0] >= 1:
            candidates.append(_of_sequence(list(value[2])))
    candidates.append({run})
    usable = []
    for candidate in candidates:
        normalised = {normalise(text) for text in candidate}
        if normalised and min(map(len, normalised)) >= SHORTEST:
            usable.append(normalised)
    # The set whose shortest text is longest lets the fewest lines through.
    return max(usable, key=lambda texts: min(map(len, texts)), default=set())
