"""Reading conversations for fine-tuning: three kinds of records, one shape out, and a reason for every line left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from core.errors import InputError

LISTED = 100
"""Rejected lines that are kept with their reason; all are counted."""


class Turn(NamedTuple):
    """One question and the answer to it; both without surrounding whitespace, neither empty."""

    question: str
    answer: str


class Unusable(Exception):  # noqa: N818 (a verdict on a line, not a failure)
    """Why a line is no conversation."""


@dataclass
class Conversations:
    """What was read: `usable` in file order, and the lines that were not usable, the first `LISTED` with reasons."""

    usable: list[tuple[Turn, ...]] = field(default_factory=list)
    rejected: int = 0
    reasons: list[str] = field(default_factory=list)

    def reject(self, where: str, reason: str) -> None:
        self.rejected += 1
        if len(self.reasons) < LISTED:
            self.reasons.append(f"{where}: {reason}")


def read_conversations(
    files: list[str], instruction_template: str, response_template: str, markers: Iterable[str] = ()
) -> Conversations:
    """Every line of the JSONL `files` as a conversation or a rejection; blank lines are neither.

    A record is `{"text": "### Human: ...### Assistant: ..."}` (the templates mark the turns, several are possible),
    `{"prompt", "completion"}`, or `{"messages": [{"role", "content"}, ...]}`. A text with one of `markers` (the
    tokenizer's end of answer) is rejected: read as a token, it would end the answer where the author did not.

    Raises:
        InputError: a file cannot be read, or no line of any file is usable.
    """
    result = Conversations()
    for name in files:
        try:
            with Path(name).open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    try:
                        turns = parse_line(line, instruction_template, response_template)
                        _refuse_markers(turns, markers)
                        result.usable.append(turns)
                    except Unusable as why:
                        result.reject(f"{Path(name).name} line {number}", str(why))
        except OSError as error:
            raise InputError(
                f"{name} cannot be read: {error.strerror}", "name conversations with finetune.files"
            ) from None
    if not result.usable:
        first = f"; the first of {result.rejected} rejected lines: {result.reasons[0]}" if result.rejected else ""
        raise InputError(
            f"no usable conversation in {', '.join(files)}{first}",
            'each line should be like {"text": "### Human: a question### Assistant: an answer"}',
        )
    return result


def parse_line(line: bytes, instruction_template: str, response_template: str) -> tuple[Turn, ...]:
    """The turns of one JSONL line. Raises Unusable with the reason."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise Unusable(f"no valid JSON ({error})") from None
    if not isinstance(record, dict):
        raise Unusable(f"a JSON object was expected, not {_kind(record)}")
    if "messages" in record:
        return turns_of_messages(record["messages"])
    if "prompt" in record and "completion" in record:
        prompt, completion = _text(record, "prompt"), _text(record, "completion")
        # A prompt that already carries the templates is a text cut in two.
        if instruction_template in prompt:
            return turns_of_text(prompt + completion, instruction_template, response_template)
        return (_turn(prompt, completion, 1),)
    if "text" in record:
        return turns_of_text(_text(record, "text"), instruction_template, response_template)
    found = ", ".join(sorted(map(str, record))[:5]) or "none"
    raise Unusable(f"neither text, nor prompt and completion, nor messages among its keys ({found})")


def turns_of_text(text: str, instruction_template: str, response_template: str) -> tuple[Turn, ...]:
    """Cut a text at its templates. A last question without an answer is left out: nothing can be learnt from it."""
    parts = re.split(f"({re.escape(instruction_template)}|{re.escape(response_template)})", text)
    if parts[0].strip():
        raise Unusable(f"text before the first {instruction_template!r}: {_shorten(parts[0])}")
    marks, bodies = parts[1::2], parts[2::2]
    expected = [instruction_template, response_template]
    for position, mark in enumerate(marks):
        if mark != expected[position % 2]:
            raise Unusable(f"part {position + 1} begins with {mark!r}, expected {expected[position % 2]!r}")
    if len(marks) < 2:
        raise Unusable(f"no {response_template!r} in it")
    pairs = zip(bodies[::2], bodies[1::2], strict=False)
    return tuple(_turn(question, answer, number) for number, (question, answer) in enumerate(pairs, start=1))


def turns_of_messages(messages: Any) -> tuple[Turn, ...]:
    """Messages of the roles user and assistant, taking turns; the text of a first system message precedes the question."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Unusable("messages is not a list of objects")
    spoken = [(message.get("role"), _text(message, "content")) for message in messages]
    system = ""
    if spoken and spoken[0][0] == "system":
        system = spoken.pop(0)[1].strip()
    for position, (role, _) in enumerate(spoken):
        expected = ("user", "assistant")[position % 2]
        if role != expected:
            raise Unusable(f"message {position + 1} is of role {role!r}, expected {expected!r}")
    if len(spoken) < 2:
        raise Unusable("no answer in it")
    contents = [content for _, content in spoken]
    if system and contents[0].strip():
        contents[0] = f"{system}\n\n{contents[0].strip()}"
    pairs = zip(contents[::2], contents[1::2], strict=False)
    return tuple(_turn(question, answer, number) for number, (question, answer) in enumerate(pairs, start=1))


def _turn(question: str, answer: str, number: int) -> Turn:
    turn = Turn(question.strip(), answer.strip())
    for name, text in zip(Turn._fields, turn, strict=True):
        if not text:
            raise Unusable(f"the {name} of turn {number} is empty")
    return turn


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise Unusable(f"{key} is {_kind(value)}, expected a text")
    return value


def _refuse_markers(turns: tuple[Turn, ...], markers: Iterable[str]) -> None:
    for marker in markers:
        if any(marker in text for turn in turns for text in turn):
            raise Unusable(f"its text contains {marker!r}, which ends an answer")


def _kind(value: Any) -> str:
    names = {type(None): "missing or null", bool: "a boolean", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "a text")


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
