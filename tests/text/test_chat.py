"""The chat format: fine-tuning's text and the chat template's text are the same bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from core.text.chat import chat_template, render
from core.text.conversations import turns_of_messages

HUMAN, ASSISTANT = "### Human:", "### Assistant:"


def by_template(messages: list[dict[str, str]], instruction: str, response: str, prompt: bool = False) -> str:
    rendered: Any = render_jinja_template(
        [messages],
        chat_template=chat_template(instruction, response),
        add_generation_prompt=prompt,
        eos_token="</s>",
    )
    return rendered[0][0]


def messages_of(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    pairs = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in turns]
    return [message for pair in pairs for message in pair]


def test_two_turns_are_written_as_the_original_pipeline_writes_them() -> None:
    turns = [("Hi", "Hello"), ("Who?", "Me")]
    expected = "### Human: Hi\n### Assistant: Hello</s>\n### Human: Who?\n### Assistant: Me</s>\n"
    assert "".join(text for text, _ in render(turns, HUMAN, ASSISTANT, "</s>")) == expected
    assert by_template(messages_of(turns), HUMAN, ASSISTANT) == expected


def test_only_answers_and_their_end_are_learnt() -> None:
    segments = render([("Hi", "Hello"), ("Who?", "Me")], HUMAN, ASSISTANT, "</s>")
    assert [text for text, learnt in segments if learnt] == [" Hello</s>", " Me</s>"]


def test_the_prompt_is_where_the_training_text_begins_its_answer() -> None:
    messages = [*messages_of([("Hi", "Hello")]), {"role": "user", "content": "Who?"}]
    prompt = by_template(messages, HUMAN, ASSISTANT, prompt=True)
    assert prompt == "### Human: Hi\n### Assistant: Hello</s>\n### Human: Who?\n### Assistant:"
    segments = render([("Hi", "Hello"), ("Who?", "Me")], HUMAN, ASSISTANT, "</s>")
    assert prompt == "".join(text for text, _ in segments[:4])


TEXT = st.text(min_size=1, max_size=30).filter(lambda text: bool(text.strip()))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), TEXT, TEXT, st.none() | TEXT)
def test_template_and_training_text_agree_for_any_text(
    turns: list[tuple[str, str]], instruction: str, response: str, system: str | None
) -> None:
    messages = messages_of(turns)
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    trained = render(turns_of_messages(messages), instruction, response, "</s>")
    assert by_template(messages, instruction, response) == "".join(text for text, _ in trained)


@pytest.mark.parametrize(
    "template",
    ['say "hi" \\ \n', "{{ 7 * 7 }}", "%} {# x #} {% endfor %}", "質問：", "\N{GRINNING FACE}", "instruction"],
)
def test_a_template_with_jinja_in_it_is_text(template: str) -> None:
    assert by_template(messages_of([("q", "a")]), template, template).count(template) == 2


@pytest.mark.parametrize("roles", [["assistant"], ["user", "user"], ["user", "system"], ["tool"]])
def test_messages_out_of_turn_are_refused(roles: list[str]) -> None:
    with pytest.raises(TemplateError, match="expected a message of the role"):
        by_template([{"role": role, "content": "x"} for role in roles], HUMAN, ASSISTANT)
