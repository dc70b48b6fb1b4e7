"""Conversations: three kinds of records become the same turns, and every line that is none is counted with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError
from core.text.chat import render
from core.text.conversations import LISTED, Turn, Unusable, parse_line, read_conversations

HUMAN, ASSISTANT = "### Human:", "### Assistant:"


def parse(record: Any) -> tuple[Turn, ...]:
    return parse_line(json.dumps(record).encode(), HUMAN, ASSISTANT)


TWO = (Turn("How?", "So."), Turn("Really?", "Yes."))


@pytest.mark.parametrize(
    "record",
    [
        {"text": "### Human: How?### Assistant: So.### Human: Really?### Assistant: Yes."},
        {"text": "\n### Human: How?\n### Assistant: So.\n### Human: Really?\n### Assistant: Yes.\n"},
        {"prompt": "### Human: How?### Assistant: So.### Human: Really?### Assistant:", "completion": " Yes."},
        {
            "messages": [
                {"role": "user", "content": "How?"},
                {"role": "assistant", "content": "So."},
                {"role": "user", "content": " Really? "},
                {"role": "assistant", "content": "Yes."},
            ]
        },
        {
            "text": "### Human: How?### Assistant: So.### Human: Really?### Assistant: Yes.### Human: And a last question"
        },
    ],
)
def test_every_kind_of_record_gives_the_same_turns(record: dict[str, Any]) -> None:
    assert parse(record) == TWO


def test_a_plain_prompt_and_completion_are_one_turn() -> None:
    assert parse({"prompt": "日本の首都は？", "completion": "東京です。", "id": 7}) == (
        Turn("日本の首都は？", "東京です。"),
    )


def test_a_system_message_stands_before_the_first_question() -> None:
    messages = [("system", "Be brief."), ("user", "How?"), ("assistant", "So.")]
    assert parse({"messages": [{"role": r, "content": c} for r, c in messages]}) == (Turn("Be brief.\n\nHow?", "So."),)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (["a"], "a JSON object was expected, not a list"),
        (None, "a JSON object was expected, not missing or null"),
        ({}, "neither text, nor prompt and completion, nor messages among its keys (none)"),
        ({"instruction": "x", "output": "y"}, "(instruction, output)"),
        ({"text": 5}, "text is a number, expected a text"),
        ({"text": None}, "text is missing or null, expected a text"),
        ({"text": "hello"}, "text before the first '### Human:': 'hello'"),
        ({"text": ""}, "no '### Assistant:' in it"),
        ({"text": "### Human: alone"}, "no '### Assistant:' in it"),
        ({"text": "### Assistant: first"}, "part 1 begins with '### Assistant:', expected '### Human:'"),
        ({"text": "### Human: a### Human: b### Assistant: c"}, "part 2 begins with '### Human:'"),
        ({"text": "### Human: a### Assistant:  \n"}, "the answer of turn 1 is empty"),
        ({"text": "### Human: ### Assistant: b"}, "the question of turn 1 is empty"),
        ({"prompt": "a", "completion": ""}, "the answer of turn 1 is empty"),
        ({"prompt": ["a"], "completion": "b"}, "prompt is a list, expected a text"),
        ({"messages": "a"}, "messages is not a list of objects"),
        ({"messages": []}, "no answer in it"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no answer in it"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "message 1 is of role 'assistant', expected 'user'"),
        ({"messages": [{"role": "user", "content": [1]}]}, "content is a list, expected a text"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "message 1 is of role 'tool'"),
    ],
)
def test_an_unusable_record_says_why(record: Any, reason: str) -> None:
    with pytest.raises(Unusable) as raised:
        parse(record)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    "line", [b"{", b"\xff\xfe", b'{"text": "\xe3\x81"}', b'{"text": "a"', b'{"text": "\\ud800"}', b"\x00"]
)
def test_a_line_that_is_no_json_is_unusable(line: bytes) -> None:
    with pytest.raises(Unusable, match="no valid JSON"):
        parse_line(line, HUMAN, ASSISTANT)


def test_lines_in_are_conversations_plus_rejections_and_each_rejection_has_its_line_number(tmp_path: Path) -> None:
    good = json.dumps({"text": "### Human: a### Assistant: b"})
    lines = [good, "nonsense", "", good, '{"text": "x"}', good, json.dumps({"prompt": "a</s>b", "completion": "c"})]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    found = read_conversations([str(tmp_path / "c.jsonl")], HUMAN, ASSISTANT, ["</s>"])
    assert (len(found.usable), found.rejected) == (3, 3)
    assert [reason.partition(":")[0] for reason in found.reasons] == [
        "c.jsonl line 2",
        "c.jsonl line 5",
        "c.jsonl line 7",
    ]
    assert "contains '</s>'" in found.reasons[2]


def test_a_million_bad_lines_are_counted_and_only_some_are_listed(tmp_path: Path) -> None:
    good = json.dumps({"text": "### Human: a### Assistant: b"})
    (tmp_path / "c.jsonl").write_text("bad\n" * 20_000 + good)
    found = read_conversations([str(tmp_path / "c.jsonl")], HUMAN, ASSISTANT)
    assert (found.rejected, len(found.reasons)) == (20_000, LISTED)


def test_no_usable_line_and_no_file_are_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(InputError, match=r"no usable conversation in .*c\.jsonl line 1: neither text"):
        read_conversations([str(tmp_path / "c.jsonl")], HUMAN, ASSISTANT)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_conversations([str(tmp_path / "gone.jsonl")], HUMAN, ASSISTANT)


SAFE = st.text(min_size=1).filter(lambda text: text.strip() and "###" not in text).map(str.strip)


@given(st.lists(st.tuples(SAFE, SAFE), min_size=1, max_size=4))
def test_the_text_that_is_trained_on_reads_back_as_the_same_turns(turns: list[tuple[str, str]]) -> None:
    text = "".join(part for part, _ in render(turns, HUMAN, ASSISTANT, ""))
    assert parse({"text": text}) == tuple(Turn(*turn) for turn in turns)
