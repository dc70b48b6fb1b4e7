"""A run directory with a tokenizer and token files, ready to pretrain a model of some ten thousand weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from core.data.indexed import write_indexed
from core.files import write_json
from core.runs.directory import RunDirectory

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<CLS>", "<SEP>", "<EOD>", "<MASK>"]
VOCAB = 300
LENGTH = 32


@pytest.fixture
def training_run(make_run: Callable[..., RunDirectory]) -> Callable[..., RunDirectory]:
    """`training_run(pretrain={...}, model={...}, name="r")`: nothing is trained yet; the text is a noisy cycle of ids."""

    def make(
        pretrain: dict[str, Any] | None = None, model: dict[str, Any] | None = None, name: str = "r", **preset: Any
    ) -> RunDirectory:
        run = make_run(
            {
                "tokenizer": {"vocab_size": VOCAB},
                "model": {
                    "layers": 2,
                    "hidden_size": 32,
                    "heads": 4,
                    "kv_heads": None if (model or {}).get("family") == "gpt2" else 2,
                    "sequence_length": LENGTH,
                    **(model or {}),
                },
                "pretrain": {
                    "steps": 6,
                    "micro_batch": 2,
                    "global_batch": 8,
                    "lr": 3e-3,
                    "save_interval": 3,
                    "valid_interval": 3,
                    "valid_batches": 4,
                    "device": "cpu",
                    **(pretrain or {}),
                },
                "cluster": {"threads": 1, **preset.pop("cluster", {})},
                **preset,
            },
            name,
        )
        write_tokenizer(run.huggingface_tokenizer)
        write_tokens(run.data_prefix)
        return run

    return make


def write_tokenizer(folder: Path) -> None:
    """A tokenizer folder with the special pieces at the places where the tokenizer stage puts them."""
    folder.mkdir(parents=True)
    pieces = SPECIAL + [f"w{number}" for number in range(VOCAB - len(SPECIAL))]
    tokenizer = Tokenizer(WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
    )


def write_tokens(prefix: Path, documents: int = 60, vocab: int = VOCAB, seed: int = 0) -> None:
    """Token files in which the next id mostly follows from the last, so that a model can learn something."""
    prefix.parent.mkdir(parents=True)
    random = np.random.default_rng(seed)
    texts = []
    for size in random.integers(20, 120, documents):
        text = (random.integers(0, 40) + np.arange(size) * 3) % 40 + len(SPECIAL)
        noise = random.random(size) < 0.1
        text[noise] = random.integers(len(SPECIAL), vocab, noise.sum())
        texts.append(np.append(text, SPECIAL.index("<EOD>")))
    write_indexed(prefix, texts, np.uint16)
