"""The fields of a SentencePiece .model that its Python interface does not give: piece types, scores, the normaliser.

The file is a protocol buffer (sentencepiece_model.proto). It is read here by hand because the generated code in the
sentencepiece wheel needs a protobuf runtime as new as the wheel (0.2.3 wants 7.36), which other packages forbid.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from core.errors import InputError

Field = tuple[int, int, int, int]
"""Field number, its value where it is an integer, and the place of its content: begin and end."""


class PieceType(IntEnum):
    """sentencepiece_model.proto, ModelProto.SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place in the list."""

    text: str
    score: float
    type: PieceType
    score_at: int | None
    """Where the score's four bytes lie in the file; None where the file leaves it out (0)."""


@dataclass(frozen=True)
class ModelFile:
    """What the conversion must know; the defaults are those of the .proto."""

    data: bytes
    pieces: list[Piece]
    model_type: str
    byte_fallback: bool
    normalization: str
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    @property
    def texts(self) -> list[str]:
        return [piece.text for piece in self.pieces]

    def with_scores(self, scores: Sequence[float]) -> bytes:
        """The same model with other scores of its pieces."""
        changed = bytearray(self.data)
        for piece, score in zip(self.pieces, scores, strict=True):
            if piece.score_at is not None:
                struct.pack_into("<f", changed, piece.score_at, score)
        return bytes(changed)


def parse_model(data: bytes, source: str) -> ModelFile:
    """Read a .model. `source` is named in the error.

    Raises:
        InputError: it is none.
    """
    try:
        pieces: list[Piece] = []
        trainer: dict[int, int] = {}
        normalizer: dict[int, int] = {}
        name = charsmap = b""
        for number, _, begin, end in _fields(data, 0, len(data)):
            if number == 1:
                pieces.append(_piece(data, begin, end))
            elif number == 2:
                trainer = {field: value for field, value, _, _ in _fields(data, begin, end)}
            elif number == 3:
                inner = list(_fields(data, begin, end))
                normalizer = {field: value for field, value, _, _ in inner}
                contents = {field: data[a:b] for field, _, a, b in inner}
                name, charsmap = contents.get(1, b""), contents.get(2, b"")
        model_type = MODEL_TYPES[trainer.get(3, 1)]
        normalization = name.decode()
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise InputError(f"{source} is no SentencePiece model ({error})") from None
    if not pieces:
        raise InputError(f"{source} is no SentencePiece model: there are no pieces in it")
    return ModelFile(
        data=data,
        pieces=pieces,
        model_type=model_type,
        byte_fallback=bool(trainer.get(35, 0)),
        normalization=normalization,
        charsmap=charsmap,
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    )


def _piece(data: bytes, begin: int, end: int) -> Piece:
    text, score, kind, score_at = "", 0.0, PieceType.NORMAL, None
    for number, value, inner, inner_end in _fields(data, begin, end):
        if number == 1:
            text = data[inner:inner_end].decode()
        elif number == 2:
            (score,) = struct.unpack_from("<f", data, inner)
            score_at = inner
        elif number == 3:
            kind = PieceType(value)
    return Piece(text, score, kind, score_at)


def _fields(data: bytes, position: int, end: int) -> Iterator[Field]:
    """The fields of one message (protobuf wire format: varint, 64 bit, length-delimited, 32 bit)."""
    while position < end:
        key, position = _varint(data, position, end)
        number, wire_type = key >> 3, key & 7
        value, begin = 0, position
        if wire_type == 0:
            value, position = _varint(data, position, end)
        elif wire_type == 1:
            position += 8
        elif wire_type == 2:
            size, begin = _varint(data, position, end)
            position = begin + size
        elif wire_type == 5:
            position += 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if position > end or number == 0:
            raise ValueError(f"a field is cut off at byte {begin}")
        yield number, value, begin, position


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"a number is cut off at byte {position}")
