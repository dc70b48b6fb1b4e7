"""The proof that the Hugging Face tokenizer gives what SentencePiece gives, on lines that neither was made from.

Checked of every line: the ids, with and without `add_special_tokens`; the text they decode to; and, where SentencePiece
keeps text as it is (identity, byte fallback), that this text is the line itself. One thing SentencePiece itself cannot keep
there is a literal U+2581, its own sign for a space.

With a normaliser (nfkc, nmt_nfkc) no exact twin is possible: `tokenizers` applies SentencePiece's character map to whole
graphemes, so stacked combining marks come out otherwise. There the held-out lines decide, and probes that differ are a
warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from core.errors import StageError
from core.tokenizer.convert import SPACE
from core.tokenizer.model_file import ModelFile, PieceType

NORMALISER_HINT = (
    "SentencePiece's normaliser has no exact equal among Hugging Face tokenizers; "
    "`--set tokenizer.normalization=identity --set corpus.normalize=nfkc` folds the text once, in the data, instead"
)
SHOWN = 3
SHOWN_CHARACTERS = 200
SHOWN_PIECES = 24


@dataclass
class Proof:
    """What was checked."""

    lines: int = 0
    """The held-out lines and the probes."""
    held_out: int = 0
    """The held-out lines alone; `tokens` and `text_bytes` are theirs."""
    tokens: int = 0
    text_bytes: int = 0
    left_out: int = 0
    """Lines with a literal control token, which SentencePiece spells out on purpose."""
    ties: int = 0
    """Lines that differ in the order of the same pieces only, see `may_tie`."""
    first_tie: str = ""
    probe_mismatches: int = 0
    """Probes that differ under a normaliser."""
    first_probe_mismatch: str = ""


@dataclass(frozen=True)
class _Mismatch:
    what: str
    line: str
    expected: Any
    found: Any

    def describe(self, pieces: Sequence[str]) -> str:
        shown = self.line if len(self.line) <= SHOWN_CHARACTERS else self.line[:SHOWN_CHARACTERS] + "..."
        return (
            f"  {self.what} of {shown!r}:\n"
            f"    SentencePiece: {_show(self.expected, pieces)}\n"
            f"    Hugging Face:  {_show(self.found, pieces)}"
        )


def _show(value: Any, pieces: Sequence[str]) -> str:
    if isinstance(value, str):
        return repr(value[:SHOWN_CHARACTERS])
    ids = list(value)
    names = " ".join(repr(pieces[i]) if i < len(pieces) else f"#{i}" for i in ids[:SHOWN_PIECES])
    more = f" ... ({len(ids)} ids)" if len(ids) > SHOWN_PIECES else ""
    return f"{ids[:SHOWN_PIECES]} {names}{more}"


def prove(folder: Path, model: ModelFile, held_out: Sequence[str], probes: Sequence[str], trained_here: bool) -> Proof:
    """Load the folder as any user would and compare.

    A model that was not trained here has scores whose sums are rounded (see `exact_scores`): lines that then differ only
    in the order of the same pieces are counted as ties.

    Raises:
        StageError: the two differ; the first three differences are in the message.
    """
    from transformers import AutoTokenizer

    processor = sentencepiece.SentencePieceProcessor(model_proto=model.data)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    pieces = model.texts
    if tokenizer.convert_ids_to_tokens(range(len(tokenizer))) != pieces:
        raise StageError(
            f"the Hugging Face tokenizer has {len(tokenizer)} tokens that are not the model's {len(pieces)} pieces"
        )
    control = [piece.text for piece in model.pieces if piece.type == PieceType.CONTROL]
    sample, others = (
        [line for line in given if not any(text in line for text in control)] for given in (held_out, probes)
    )
    lines = sample + others
    proof = Proof(lines=len(lines), held_out=len(sample), left_out=len(held_out) + len(probes) - len(lines))
    if not lines:
        return proof
    expected: list[list[int]] = processor.encode(lines)
    # verbose: a line may be longer than the model's sequences.
    found, plain = (
        tokenizer(lines, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
        for special in (True, False)
    )
    wrong = []
    for line, right, got, got_plain in zip(lines, expected, found, plain, strict=True):
        if right == got == got_plain:
            continue
        if got == got_plain and Counter(right) == Counter(got) and may_tie(line, model, trained_here):
            proof.ties += 1
            proof.first_tie = proof.first_tie or _Mismatch("the ids", line, right, got).describe(pieces)
            continue
        wrong.append(_Mismatch("the ids", line, right, got if got != right else got_plain))
    wrong += _compare_decoding(lines, expected, processor.decode(expected), tokenizer, model)
    if model.charsmap:
        probed = {*others}.difference(sample)
        tolerated = [mismatch for mismatch in wrong if mismatch.line in probed]
        wrong = [mismatch for mismatch in wrong if mismatch.line not in probed]
        if tolerated:
            proof.probe_mismatches = len({mismatch.line for mismatch in tolerated})
            proof.first_probe_mismatch = tolerated[0].describe(pieces)
    if wrong:
        raise _failure(wrong, lines, pieces, model)
    proof.tokens = sum(map(len, expected[: len(sample)]))
    proof.text_bytes = sum(len(line.encode()) for line in sample)
    return proof


def may_tie(line: str, model: ModelFile, exact: bool) -> bool:
    """Whether SentencePiece's rounding may decide between two orders of the same pieces in this line.

    With `exact_scores` it may only after a symbol of several bytes: its score is a multiple of 0.1, set in SentencePiece. (Seen
    on one of 48,000 made-up lines: nine `</s>`, then a run of asterisks.)
    """
    if model.model_type != "unigram":
        return False
    symbols = (piece.text for piece in model.pieces if piece.type == PieceType.USER_DEFINED)
    return not exact or any(symbol in line for symbol in symbols if len(symbol.encode()) > 1)


def _compare_decoding(
    lines: Sequence[str], ids: Sequence[Sequence[int]], decoded: Sequence[str], tokenizer: Any, model: ModelFile
) -> list[_Mismatch]:
    texts: list[str] = tokenizer.batch_decode(ids)
    wrong = [
        _Mismatch("the decoded text", line, right, got)
        for line, right, got in zip(lines, decoded, texts, strict=True)
        if right != got
    ]
    if model.charsmap or model.remove_extra_whitespaces or not model.byte_fallback:
        return wrong
    return wrong + [
        _Mismatch("the text kept", line, line, got)
        for line, got in zip(lines, decoded, strict=True)
        if got != line.replace(SPACE, " ")
    ]


def _failure(wrong: list[_Mismatch], lines: Sequence[str], pieces: Sequence[str], model: ModelFile) -> StageError:
    shown = "\n".join(mismatch.describe(pieces) for mismatch in wrong[:SHOWN])
    different = len({mismatch.line for mismatch in wrong})
    hint = "this is a fault of the conversion (core/tokenizer/convert.py); please report it with the lines above"
    if model.charsmap:
        hint = NORMALISER_HINT
    return StageError(
        f"the Hugging Face tokenizer differs from SentencePiece on {different} of {len(lines)} lines. The first:\n{shown}",
        hint,
    )
