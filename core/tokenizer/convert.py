"""A SentencePiece model as a Hugging Face tokenizer that gives the same ids.

transformers' own ways do not (in version 5 `LlamaTokenizer(vocab_file=...)` silently builds three tokens), so the
tokenizer is put together from the parts of the `tokenizers` library. What needs care:

* The user-defined symbols (`<s>`, the newline, ...) must be found inside text as SentencePiece finds them: after the
  normaliser, with the space put before the text staying where it was put. "Added tokens", which transformers makes
  of every special token, are cut out before it. `split_special_tokens` turns that off, and the model finds them itself.
* Byte pieces and <unk> are in the vocabulary under names that a text may hold ("<0x0A>"); they must not be found there.
* SentencePiece adds unigram scores in 32 bits, `tokenizers` in 64. See `core.tokenizer.train.exact_scores`.

Control pieces of a foreign model (Llama's `</s>`) are found in text here, though SentencePiece spells them out: the chat
format needs its end token. The proof leaves out lines that hold one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from core.errors import InputError
from core.files import write_atomically, write_json
from core.tokenizer.model_file import ModelFile, Piece, PieceType
from core.tokenizer.special import SpecialTokens

SPACE = "\u2581"
NEVER = -1.0e5
"""Unigram score of a piece that must not be found in text: less than any way to spell its name out."""
ALL = 1 << 20
PLACEHOLDER = 0x10F800
"""Private characters from here on stand for symbols that the character map would change."""


def build(model: ModelFile, special: SpecialTokens, source: str) -> Tokenizer:
    """The tokenizer. Raises InputError for a `word` model, which `tokenizers` cannot express with byte fallback."""
    symbols = [p.text for p in model.pieces if p.type in (PieceType.USER_DEFINED, PieceType.CONTROL)]
    pattern = _any_of(symbols)
    if model.model_type == "unigram":
        tokenizer = Tokenizer(_unigram(model, special.ids["unk"]))
        cuts = _cuts_for_unigram(model.pieces, pattern)
    elif model.model_type in ("bpe", "char"):
        tokenizer, cuts = _merging(model, special.pieces["unk"], pattern)
    else:
        raise InputError(
            f"{source} is a {model.model_type} model; it has no equal among Hugging Face tokenizers",
            "--set tokenizer.model_type=unigram, bpe or char",
        )
    tokenizer.normalizer = normalizers.Sequence(_normalizers(model, symbols))
    if cuts:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(cuts), "isolated")
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if not model.byte_fallback:
        steps.insert(0, decoders.Replace(special.pieces["unk"], " \u2047 "))  # SentencePiece's unk_surface
    if model.remove_extra_whitespaces:
        steps.append(decoders.Strip(" ", ALL, 0))
    elif model.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special.pieces.values()])
    return tokenizer


def _unigram(model: ModelFile, unk_id: int) -> Unigram:
    vocabulary = [(piece.text, _unigram_score(piece)) for piece in model.pieces]
    return Unigram(vocabulary, unk_id=unk_id, byte_fallback=model.byte_fallback)


def _unigram_score(piece: Piece) -> float:
    if piece.type == PieceType.NORMAL:
        return piece.score
    if piece.type in (PieceType.USER_DEFINED, PieceType.CONTROL):
        # SentencePiece 0.2.3, unigram_model.cc, GetUserDefinedScore.
        return 0.1 * (len(piece.text.encode()) - 1)
    return NEVER


def _cuts_for_unigram(pieces: Iterable[Piece], symbols: str) -> str:
    """Where the name of a byte piece has a character that is unknown itself, spelling it out scores less than `NEVER`.

    (A Japanese corpus may have no "<".) Cutting the text at unknown characters is exact, as no piece reaches over one,
    and keeps the name from being found. Symbols stay whole: they may hold the same characters.
    """
    pieces = list(pieces)
    known = {p.text for p in pieces if p.type in (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.CONTROL)}
    hidden = [p.text for p in pieces if p.type in (PieceType.UNKNOWN, PieceType.BYTE, PieceType.UNUSED)]
    unknown = sorted({character for text in hidden for character in text} - known)
    if not unknown:
        return ""
    return "|".join(part for part in (symbols, _any_of(unknown)) if part)


def _merging(model: ModelFile, unk: str, symbols: str) -> tuple[Tokenizer, str]:
    """A BPE tokenizer, and where to cut the text before it. Without merges it is SentencePiece's `char`.

    Symbols are cut out and, with `ignore_merges`, taken from the vocabulary whole. So would be any other stretch between
    two cuts that is a piece but that SentencePiece spells out ("<0x0A>" on a line of its own): such stretches are cut once
    more, after the first of the tokens that they are to become.
    """
    vocabulary = {piece.text: number for number, piece in enumerate(model.pieces)}
    merges = _merges(model.pieces) if model.model_type == "bpe" else []

    def bpe(ignore_merges: bool) -> BPE:
        return BPE(
            vocabulary,
            merges,
            unk_token=unk,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
            ignore_merges=ignore_merges,
        )

    spelling, spelt = bpe(ignore_merges=False), defaultdict[str, list[str]](list)
    for piece in model.pieces:
        if piece.type in (PieceType.USER_DEFINED, PieceType.CONTROL):
            continue
        tokens = spelling.tokenize(piece.text)
        if [token.id for token in tokens] != [vocabulary[piece.text]] and len(piece.text) > 1:
            head = piece.text.encode()[: tokens[0].offsets[1]].decode()
            spelt[head].append(piece.text[len(head) :])
    before, after = (rf"(?:\A|(?<={symbols}))", rf"(?:{symbols}|\z)") if symbols else (r"\A", r"\z")
    cuts = [symbols] if symbols else []
    cuts += [f"{before}{re.escape(head)}(?=(?:{_any_of(rest)}){after})" for head, rest in spelt.items()]
    return Tokenizer(bpe(ignore_merges=True)), "|".join(cuts)


def _merges(pieces: Iterable[Piece]) -> list[tuple[str, str]]:
    """All pairs whose concatenation is a piece, in the order of the piece's score: SentencePiece merges whatever it finds."""
    normal = {
        piece.text: (number, piece.score) for number, piece in enumerate(pieces) if piece.type == PieceType.NORMAL
    }
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for text, (_, score) in normal.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal:
                found.append((-score, normal[left][0], normal[right][0], (left, right)))
    return [pair for _, _, _, pair in sorted(found)]


def _normalizers(model: ModelFile, symbols: list[str]) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        mapped = normalizers.Precompiled(model.charsmap)
        # SentencePiece's map leaves user-defined symbols alone; nmt_nfkc would make a space of the newline.
        changed = [symbol for symbol in symbols if mapped.normalize_str(symbol) != symbol]
        held = {symbol: chr(PLACEHOLDER + number) for number, symbol in enumerate(changed)}
        steps += [normalizers.Replace(symbol, place) for symbol, place in held.items()]
        steps.append(mapped)
        if "nfkc" in model.normalization:
            # Without it, 57 of 1,570 lines differed; with it, 16 of 4,000 still do (half-width kana with marks).
            steps.append(normalizers.NFC())
        steps += [normalizers.Replace(place, symbol) for symbol, place in held.items()]
    if model.remove_extra_whitespaces:
        # A literal U+2581 is no extra space to SentencePiece, except at the end.
        steps.append(normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    steps.append(normalizers.Replace(" ", SPACE))
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return steps


def _any_of(texts: Iterable[str]) -> str:
    """A regular expression that finds the longest of the texts; SentencePiece's prefix match also takes the longest."""
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))


def save(
    tokenizer: Tokenizer, special: SpecialTokens, folder: Path, model_data: bytes, max_length: int, chat_template: str
) -> None:
    """Write a folder that `AutoTokenizer.from_pretrained` of transformers 4 and 5 loads, the .model beside it.

    `encode` adds nothing of itself, with `add_special_tokens=True` neither: SentencePiece does not, documents were not
    trained on with a <s> before them, and the chat template writes its own end tokens.
    """
    parts = {
        f"{part}_token": special.pieces[part]
        for part in ("bos", "eos", "unk", "pad", "cls", "sep", "mask")
        if part in special.pieces
    }
    others = sorted({special.pieces["eod"]} - set(parts.values()))
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    write_json(
        folder / "tokenizer_config.json",
        {
            # The name that both major versions know; version 5 would write TokenizersBackend.
            "tokenizer_class": "PreTrainedTokenizerFast",
            **parts,
            "additional_special_tokens": others,
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            "chat_template": chat_template,
        },
    )
    write_atomically(folder / "tokenizer.model", model_data)
