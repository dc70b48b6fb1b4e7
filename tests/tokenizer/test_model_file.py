"""Reading a .model by hand: as SentencePiece itself understands it, and nothing but a .model."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest
import sentencepiece

from core.errors import InputError
from core.tokenizer.model_file import PieceType, parse_model
from core.tokenizer.special import find_special


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
def test_pieces_types_and_scores_are_those_that_sentencepiece_reports(
    small_model: Callable[..., bytes], model_type: str
) -> None:
    data = small_model(model_type=model_type)
    model, processor = parse_model(data, "a"), sentencepiece.SentencePieceProcessor(model_proto=data)
    assert model.model_type == model_type
    assert len(model.pieces) == processor.get_piece_size()
    for number, piece in enumerate(model.pieces):
        assert piece.text == processor.id_to_piece(number)
        assert piece.score == processor.get_score(number)
        assert (piece.type == PieceType.BYTE) == processor.is_byte(number)
        assert (piece.type == PieceType.UNKNOWN) == processor.is_unknown(number)


def test_the_normaliser_is_read(small_model: Callable[..., bytes]) -> None:
    plain = parse_model(small_model(model_type="bpe"), "a")
    assert (plain.normalization, plain.charsmap, plain.add_dummy_prefix, plain.remove_extra_whitespaces) == (
        "identity",
        b"",
        True,
        False,
    )
    other = parse_model(
        small_model(
            model_type="char",
            normalization="nmt_nfkc",
            byte_fallback=False,
            add_dummy_prefix=False,
            remove_extra_whitespaces=True,
        ),
        "b",
    )
    assert (other.normalization, other.byte_fallback, other.add_dummy_prefix) == ("nmt_nfkc", False, False)
    assert other.remove_extra_whitespaces
    assert len(other.charsmap) > 100_000


def test_changed_scores_are_what_sentencepiece_then_reads(small_model: Callable[..., bytes]) -> None:
    model = parse_model(small_model(model_type="unigram"), "a")
    changed = model.with_scores([piece.score - 1 for piece in model.pieces])
    processor = sentencepiece.SentencePieceProcessor(model_proto=changed)
    assert [processor.get_score(i) for i in range(300, 310)] == [model.pieces[i].score - 1 for i in range(300, 310)]


def test_anything_else_is_refused_whatever_it_is(small_model: Callable[..., bytes]) -> None:
    data = small_model(model_type="char")
    order = random.Random(5)
    for bad in (b"", b"hello", b"{}", b"\0" * 100, data[:-7], data[1:]):
        with pytest.raises(InputError, match="x is no SentencePiece model"):
            parse_model(bad, "x")
    for _ in range(300):
        changed = bytearray(data)
        changed[order.randrange(len(data))] ^= 1 << order.randrange(8)
        with contextlib.suppress(InputError):  # whatever was changed, no other exception
            assert parse_model(bytes(changed), "x").pieces


def test_missing_special_pieces_are_replaced_and_said(small_model: Callable[..., bytes]) -> None:
    whole = small_model(model_type="char")
    assert find_special(parse_model(whole, "a"), "a").notes == []
    lacking = parse_model(
        whole.replace(b"<EOD>", b"<eod>").replace(b"<pad>", b"<PAD>").replace(b"<SEP>", b"<sep>"), "a"
    )
    special = find_special(lacking, "a")
    assert special.ids["eod"] == special.ids["pad"] == special.ids["eos"] == 2
    assert "sep" not in special.ids
    assert special.notes == [
        "the tokenizer has no <pad>; </s> is used instead",
        "the tokenizer has no <EOD>; </s> is used instead",
    ]
    with pytest.raises(InputError, match="neither </s> nor <EOD>"):
        find_special(parse_model(whole.replace(b"<EOD>", b"<eod>").replace(b"</s>", b"</S>"), "a"), "a")
