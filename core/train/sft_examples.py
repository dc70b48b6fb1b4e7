"""Conversations as token ids, and which of the ids are learnt: the answers and the token that ends them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from core.errors import InputError
from core.text.chat import render
from core.text.conversations import Turn


@dataclass(frozen=True)
class Templates:
    """What marks the turns in the text."""

    instruction: str
    response: str


@dataclass
class Examples:
    """Token ids of each conversation; `learnt` has a 1 where the token counts in the loss, else a 0."""

    input_ids: list[list[int]] = field(default_factory=list)
    learnt: list[list[int]] = field(default_factory=list)
    cut: int = 0
    """Conversations that were longer than the limit, of which the end is missing."""
    lost: int = 0
    """Conversations of which no answer was left within the limit; they are not among the examples."""

    def columns(self) -> dict[str, list[list[int]]]:
        """The columns from which trl makes labels; the mask applies whatever trl's other loss settings are."""
        return {"input_ids": self.input_ids, "assistant_masks": self.learnt}


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, folder: str) -> str:
    """The text of the token that ends an answer. Raises InputError for a tokenizer that cannot train this model."""
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer in {folder} has no tokenizer.json, so its tokens cannot be traced back to the text",
            "convert it with the tokenizer stage (--set tokenizer.model=...)",
        )
    eos = tokenizer.eos_token
    # After a word, as it will stand: at the start of a text some tokenizers put a space before it.
    if eos is None or tokenizer.encode(f"x{eos}", add_special_tokens=False)[-1:] != [tokenizer.eos_token_id]:
        raise InputError(f"the tokenizer in {folder} has no token that ends an answer (eos_token)")
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model only {rows} rows of embeddings",
            "the two do not belong together; name a whole model folder with finetune.model",
        )
    return str(eos)


def encode(
    conversations: Iterable[Sequence[Turn]], tokenizer: PreTrainedTokenizerBase, templates: Templates, limit: int
) -> Examples:
    """Tokenize each conversation as one text, as the chat template does when the model is used.

    A token is learnt if all its characters belong to an answer or to the end token after it: one that reaches from the
    prompt into the answer is not. What is beyond `limit` tokens is cut off at the end.
    """
    examples = Examples()
    rendered = [
        render(turns, templates.instruction, templates.response, str(tokenizer.eos_token)) for turns in conversations
    ]
    encoded = tokenizer(
        ["".join(text for text, _ in segments) for segments in rendered],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    for segments, ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        learnt = _inside(offsets, _answers(segments))
        if not any(learnt[:limit]):
            examples.lost += 1
            continue
        examples.cut += len(ids) > limit
        examples.input_ids.append(ids[:limit])
        examples.learnt.append(learnt[:limit])
    return examples


def _answers(segments: Iterable[tuple[str, bool]]) -> list[tuple[int, int]]:
    """First and last-plus-one character of each answer."""
    spans, position = [], 0
    for text, is_answer in segments:
        if is_answer:
            spans.append((position, position + len(text)))
        position += len(text)
    return spans


def _inside(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """1 for each token that lies within one of the spans; both are in the order of the text."""
    result, current = [], 0
    for start, end in offsets:
        while current < len(spans) and start >= spans[current][1]:
            current += 1
        result.append(int(current < len(spans) and start >= spans[current][0] and start < end <= spans[current][1]))
    return result
