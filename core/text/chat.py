"""The one text format of conversations: what fine-tuning trains on and what the chat template gives at use.

A turn is "{instruction_template} {question}\\n{response_template} {answer}{eos}\\n". A prompt ends right after
{response_template}: the space belongs to the answer, as the tokenizer spells a word with the space before it.
Questions and answers lose the whitespace around them; a system message stands before the first question, with a blank
line between (`core.text.conversations` puts it there).
"""

from __future__ import annotations

import json
from collections.abc import Iterable

Segments = list[tuple[str, bool]]
"""Pieces of a text in order, each with whether it is learnt: the answer with the end token, and nothing else."""


def render(turns: Iterable[tuple[str, str]], instruction_template: str, response_template: str, eos: str) -> Segments:
    """The text of (question, answer) turns in segments; joined they are what the chat template renders."""
    segments: Segments = []
    for question, answer in turns:
        segments.append((f"{instruction_template} {question.strip()}\n{response_template}", False))
        segments.append((f" {answer.strip()}{eos}", True))
        segments.append(("\n", False))
    return segments


def chat_template(instruction_template: str, response_template: str) -> str:
    """The Jinja template for `tokenizer.chat_template`: the same text from messages of the roles user and assistant."""
    instruction, response = _literal(instruction_template), _literal(response_template)
    return f"{{% set instruction = {instruction} %}}{{% set response = {response} %}}{_TEMPLATE}"


def _literal(text: str) -> str:
    """`text` as a Jinja string literal; Jinja reads JSON's escapes, and non-ASCII characters as they are."""
    return json.dumps(text, ensure_ascii=False)


_TEMPLATE = (
    "{% set turn = namespace(system='', expected='user') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and loop.first %}"
    "{% set turn.system = message['content'] | trim %}"
    "{% elif message['role'] != turn.expected %}"
    "{{ raise_exception('expected a message of the role ' + turn.expected + ', found ' + message['role']) }}"
    "{% elif turn.expected == 'user' %}"
    "{% set question = message['content'] | trim %}"
    "{{ instruction + ' ' + (turn.system + '\\n\\n' if turn.system else '') + question + '\\n' }}"
    "{% set turn.system = '' %}"
    "{% set turn.expected = 'assistant' %}"
    "{% else %}"
    "{{ response + ' ' + (message['content'] | trim) + eos_token + '\\n' }}"
    "{% set turn.expected = 'user' %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ response }}{% endif %}"
)
