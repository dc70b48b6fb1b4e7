"""One document's text to token ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from core.data.indexed import token_dtype
from core.errors import InputError
from core.tokenizer.model_file import parse_model
from core.tokenizer.special import find_special

LONGEST_AT_ONCE = 1 << 20
"""Characters. SentencePiece needs up to a hundred bytes of memory for each."""
NEWLINE = "\n"
SPACE_PIECE = "\u2581"


class DocumentEncoder:
    """SentencePiece's ids of a text, then the end-of-document token where asked for.

    A text of more than `LONGEST_AT_ONCE` characters is encoded in parts that are cut where no piece can reach across: before a
    newline that is a symbol, else before a space that follows other text (SentencePiece splits at whitespace in training).
    So the ids are those of the whole text. Only without either in a million characters is a cut anywhere, and one piece
    may differ.
    """

    def __init__(self, model_path: Path, append_eod: bool) -> None:
        try:
            data = model_path.read_bytes()
        except OSError as error:
            raise InputError(
                f"the tokenizer {model_path} cannot be read: {error.strerror}",
                "run the tokenizer stage first: `--from tokenizer`, or name one with --set tokenizer.model=PATH",
            ) from None
        model = parse_model(data, str(model_path))
        self.vocab_size = len(model.pieces)
        self.eod = find_special(model, str(model_path)).ids["eod"]
        self.dtype = token_dtype(self.vocab_size)
        self._append = np.array([self.eod] if append_eod else [], self.dtype)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        self._prefix = self._processor.piece_to_id(SPACE_PIECE) if model.add_dummy_prefix else None
        symbols = [piece.text for piece in model.pieces]
        self._newline = symbols.index(NEWLINE) if NEWLINE in symbols else None

    def encode(self, text: str, longest: int = LONGEST_AT_ONCE) -> list[NDArray[Any]]:
        """The token ids in parts, of the dtype that the vocabulary needs; no part at all if the text has no tokens."""
        parts = [self._ids(text)] if len(text) <= longest else list(self._long(text, longest))
        if not any(map(len, parts)):
            return []
        return [*parts, self._append]

    def _ids(self, text: str) -> NDArray[Any]:
        ids: NDArray[np.int32] = self._processor.encode(text, return_type="numpy")
        return ids.astype(self.dtype, copy=False)

    def _long(self, text: str, longest: int) -> Iterator[NDArray[Any]]:
        begin = 0
        while begin < len(text):
            end = len(text) if len(text) - begin <= longest else self._cut(text, begin, begin + longest)
            yield self._ids(text[begin:end]) if begin == 0 else self._continued(text[begin:end])
            begin = end

    def _cut(self, text: str, begin: int, limit: int) -> int:
        """Where the next part begins: in (begin, limit]."""
        if self._newline is not None and (place := text.rfind(NEWLINE, begin + 1, limit)) > 0:
            return place
        place = limit
        while (place := text.rfind(" ", begin + 1, place)) > 0:
            if not text[place - 1].isspace():
                return place
        return limit

    def _continued(self, part: str) -> NDArray[Any]:
        """The ids of a text that goes on, so without the space that SentencePiece puts before a text."""
        if self._prefix is None:
            return self._ids(part)
        if part.startswith(" "):
            return self._ids(part[1:])  # the space that is put before stands for the one that is there
        if self._newline is None:
            return self._ids(part)
        if part.startswith(NEWLINE):
            return self._ids(part)[1:]
        return self._ids(NEWLINE + part)[2:]
