"""Which pieces of a vocabulary play the special parts: end of document, end of answer, padding and the others."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import InputError
from core.tokenizer.model_file import ModelFile, PieceType

USUAL = {
    "bos": "<s>",
    "eos": "</s>",
    "pad": "<pad>",
    "cls": "<CLS>",
    "sep": "<SEP>",
    "eod": "<EOD>",
    "mask": "<MASK>",
}
"""The original pipeline's names. `eod` ends a document in pretraining, `eos` an answer in fine-tuning."""
STAND_INS = {"bos": ("eos",), "pad": ("eos",), "eod": ("eos",), "eos": ("eod",)}
"""What takes a missing part, where the tools downstream cannot do without one."""


@dataclass(frozen=True)
class SpecialTokens:
    """Piece texts by part (USUAL's names and unk), and what had to be replaced, as sentences."""

    pieces: dict[str, str]
    ids: dict[str, int]
    notes: list[str]


def find_special(model: ModelFile, source: str) -> SpecialTokens:
    """Look the parts up in a vocabulary.

    Raises:
        InputError: there is neither a piece that ends a document nor one that ends an answer, or no piece for unknown.
    """
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    unknown = [piece.text for piece in model.pieces if piece.type == PieceType.UNKNOWN]
    if not unknown:
        raise InputError(f"{source} has no piece for unknown text")
    pieces = {part: name for part, name in USUAL.items() if name in ids}
    notes = []
    for part, stand_ins in STAND_INS.items():
        if part in pieces:
            continue
        instead = next((pieces[other] for other in stand_ins if other in pieces), None)
        if instead is None:
            raise InputError(
                f"{source} has neither {USUAL['eos']} nor {USUAL['eod']}, so nothing can end a text",
                "train a tokenizer (leave tokenizer.model empty) or give one with these pieces",
            )
        notes.append(f"the tokenizer has no {USUAL[part]}; {instead} is used instead")
        pieces[part] = instead
    pieces["unk"] = unknown[0]
    return SpecialTokens(pieces, {part: ids[name] for part, name in pieces.items()}, notes)
