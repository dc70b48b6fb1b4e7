"""Text to ids: SentencePiece's own, also of texts that are too long to be encoded at once."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from small_tokenizer import texts, train_small

from core.data.encode import DocumentEncoder
from core.errors import InputError


def ids_of(encoder: DocumentEncoder, text: str, longest: int = 1 << 20) -> list[int]:
    parts = encoder.encode(text, longest)
    return [int(number) for part in parts for number in part]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_documents_ids_are_sentencepieces_and_then_the_end(models: dict[str, Path], kind: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(models[kind]))
    with_end, without = (DocumentEncoder(models[kind], append_eod=end) for end in (True, False))
    assert with_end.eod == processor.piece_to_id("<EOD>") == 6
    for text in [*texts()[::20], "a", "\n", " x", "<EOD>"]:
        assert ids_of(with_end, text) == [*processor.encode(text), 6]
        assert ids_of(without, text) == processor.encode(text)
    assert all(part.dtype == np.uint16 for part in with_end.encode("a"))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("longest", [40, 101, 1000])
def test_a_long_text_in_parts_has_the_ids_of_the_whole(models: dict[str, Path], kind: str, longest: int) -> None:
    encoder = DocumentEncoder(models[kind], append_eod=True)
    order = random.Random(longest)
    words = [word for text in texts()[:40] for word in text.split()] + ["<EOD>", "x" * 30, "  ", "123", "="]
    lined = "".join(order.choice(words)[:30] + order.choice([" ", "  ", "\n", "\n\n  "]) for _ in range(3000))
    no_newline = lined.replace("\n", " ")
    japanese = "\n".join(text for text in texts() if "。" in text)
    for text in (lined, no_newline, japanese, "\n" * 500, "a\n" * 300):
        assert ids_of(encoder, text, longest) == ids_of(encoder, text)


def test_a_text_without_any_place_to_cut_still_decodes_to_itself(models: dict[str, Path]) -> None:
    encoder = DocumentEncoder(models["bpe"], append_eod=False)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(models["bpe"]))
    for text in ("猫" * 500 + "である" * 200, "x" * 777, " " * 500):
        assert processor.decode(ids_of(encoder, text, 100)) == text


@pytest.mark.parametrize(
    "options",
    [{"add_dummy_prefix": False}, {"user_defined_symbols": ["<s>", "</s>", "<pad>", "<EOD>"]}],
    ids=["no dummy prefix", "newline no symbol"],
)
def test_parts_are_exact_with_other_options_too(tmp_path: Path, options: dict[str, object]) -> None:
    path = tmp_path / "a.model"
    path.write_bytes(train_small(tmp_path, model_type="bpe", **options))
    encoder = DocumentEncoder(path, append_eod=True)
    for text in (texts()[3], texts()[5].replace("\n", " ")):
        assert ids_of(encoder, text, 100) == ids_of(encoder, text)


def test_a_text_without_tokens_is_no_document(tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    path.write_bytes(train_small(tmp_path, model_type="char", remove_extra_whitespaces=True))
    assert DocumentEncoder(path, append_eod=True).encode("   ") == []


def test_a_missing_or_foreign_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.model cannot be read: No such file"):
        DocumentEncoder(tmp_path / "a.model", append_eod=True)
    (tmp_path / "a.model").write_text("{}")
    with pytest.raises(InputError, match="is no SentencePiece model"):
        DocumentEncoder(tmp_path / "a.model", append_eod=True)
