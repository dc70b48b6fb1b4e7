"""The ids that Megatron adds behind those of a .model, as its SentencePieceTokenizer prints them."""

from __future__ import annotations

import io

import sentencepiece
from small_tokenizer import texts

from core.tokenizer.megatron_ids import MegatronIds, megatron_ids


def trained(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts()[:60] for line in text.splitlines()),
        model_writer=model, model_type="bpe", vocab_size=400, byte_fallback=True, minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()


def test_a_tokenizer_of_the_original_gets_three() -> None:
    """32,000 become 32,003 in a real log: <PAD>, <BOS>, <EOS>, as its own are user-defined symbols."""
    symbols = ["<s>", "</s>", "<pad>", "<CLS>", "<SEP>", "<EOD>", "<MASK>", "\n"]
    assert megatron_ids(trained(user_defined_symbols=symbols)) == MegatronIds(pieces=400, size=403, eod=6)


def test_a_tokenizer_without_an_end_of_document_gets_one() -> None:
    """SentencePiece's own defaults: <s> and </s> are known to it, <CLS>, <SEP>, <EOD>, <MASK> and <PAD> are added in this order."""
    assert megatron_ids(trained()) == MegatronIds(pieces=400, size=405, eod=402)
