"""The ids that Megatron's SentencePieceTokenizer gives out: those of the .model, and of special tokens that it adds behind them.

Megatron wants <CLS>, <SEP>, <EOD>, <MASK>, and a piece each for padding, begin and end; what a .model lacks is appended.
A .model of the original pipeline has its <s>, </s> and <pad> as user-defined symbols, so SentencePiece knows no bos, eos
and pad of it, and Megatron appends <PAD>, <BOS> and <EOS>: 32,000 pieces are 32,003 ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import sentencepiece


@dataclass(frozen=True)
class MegatronIds:
    """`pieces`: ids of the .model; `size`: with those added (before the padding of the embedding); `eod`: what --append-eod writes."""

    pieces: int
    size: int
    eod: int


def megatron_ids(model: bytes) -> MegatronIds:
    """The ids for the content of a .model (megatron/tokenizer/tokenizer.py, _SentencePieceTokenizer)."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = processor.get_piece_size()
    ids = {processor.id_to_piece(number): number for number in range(pieces)}
    wanted = ["<CLS>", "<SEP>", "<EOD>", "<MASK>"]
    own = ((processor.pad_id(), "<PAD>"), (processor.bos_id(), "<BOS>"), (processor.eos_id(), "<EOS>"))
    wanted += [processor.id_to_piece(number) if number >= 0 else name for number, name in own]
    for token in wanted:
        ids.setdefault(token, len(ids))
    return MegatronIds(pieces, len(ids), ids["<EOD>"])
