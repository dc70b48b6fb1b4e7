"""The texts that stand for a pattern: a line without any of them cannot match."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.troubleshoot.literals import by_common_part, normalise, required_literals
from core.troubleshoot.matching import Matcher
from core.troubleshoot.signatures import load_signatures


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r"Watchdog caught \w+", {normalise("watchdog caught ")}),
        (r"(?:unhandled system|remote process) error", {normalise("unhandled system"), normalise("remote process")}),
        (r"\[Errno 28\] No space", {normalise("[errno 28] no space")}),
        (r"x?optional but (?:this )+stays", {normalise("optional but ")}),
    ],
)
def test_the_texts_of_a_pattern(pattern: str, texts: set[str]) -> None:
    assert required_literals(pattern) == texts


def test_a_pattern_without_such_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no text of"):
        required_literals(r"\d+ (?:a|long one)")


@given(before=st.text(max_size=20), number=st.integers(), after=st.text(max_size=20))
def test_a_match_always_holds_one_of_the_texts(before: str, number: int, after: str) -> None:
    pattern = r"Timed out after \d+ (?:seconds|minutes) waiting"
    line = f"{before}Timed out after {abs(number)} seconds waiting{after}"
    assert re.search(pattern, line)
    assert any(text in normalise(line) for text in required_literals(pattern))


def test_the_groups_hold_every_text_once_under_a_part_of_it() -> None:
    texts = Matcher(load_signatures()).wanted.texts
    groups = by_common_part(texts)
    assert sorted(text for group in groups.values() for text in group) == sorted(texts)
    assert all(part in text for part, group in groups.items() for text in group)
    assert len(groups) < 0.25 * len(texts)
