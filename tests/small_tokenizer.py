"""A small real tokenizer and the text it is trained on: Python's own documentation, some source code, some Japanese."""

from __future__ import annotations

import inspect
import json
import random
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from pydoc_data import topics

import orjson

from core.stages.tokenizer import TokenizerSection
from core.text.readers import Document
from core.text.records import Position
from core.tokenizer.model_file import ModelFile
from core.tokenizer.train import TrainingLines, train

Converted = Callable[..., tuple[Path, ModelFile]]
"""The fixture of tests/tokenizer: options of `train_small`, or a .model -> the Hugging Face folder and the model."""
SENTENCES = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは"
    "記憶している。吾輩はここで始めて人間というものを見た。しかもあとで聞くとそれは書生という人間中で一番獰悪な種族であったそうだ。"
    "この書生というのは時々我々を捕えて煮て食うという話である。しかしその当時は何という考もなかったから別段恐しいとも思わなかった。"
)


@cache
def texts() -> list[str]:
    """About 600 documents, 900 kB, the same every time on one Python."""
    found = [str(topics.topics[name]) for name in sorted(topics.topics)]
    found += [inspect.getsource(module) for module in (json, textwrap, inspect)]
    order = random.Random(7)
    parts = SENTENCES.split("。")
    found += ["。\n".join(order.sample(parts, 5)) for _ in range(500)]
    return found


def write_jsonl(path: Path, some: list[str] | None = None) -> Path:
    """The texts, or some, as JSONL."""
    path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in (texts() if some is None else some)))
    return path


def train_small(folder: Path, **options: object) -> bytes:
    """A .model of 1,500 pieces on the texts; under a second for bpe, about two for unigram."""
    section = TokenizerSection.model_validate(
        {"vocab_size": 1500, "num_threads": 2, "input_sentence_size": 8000, **options}
    )
    lines = TrainingLines(
        held_out=200,
        longest=section.max_sentence_length,
        newline_is_symbol="\n" in section.user_defined_symbols,
        seed=1,
        position=Position(1, 1),
    )
    documents = (Document("texts", number, text) for number, text in enumerate(texts(), start=1))
    return train(section, lines, documents, 1, folder)
