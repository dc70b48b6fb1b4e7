"""Training a SentencePiece model on the lines of documents, some of which are kept out for the proof."""

from __future__ import annotations

import itertools
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece

from core.errors import InputError, StageError
from core.stages.tokenizer import SMALLEST_VOCABULARY, TokenizerSection
from core.text.readers import Document, Rejected
from core.text.records import Position
from core.tokenizer.model_file import PieceType, parse_model

NEWLINE = "\n"
SHORTEST_GAP = 20
"""At most one line in so many is held out."""
SKIP_MARK = "\u2585"
"""SentencePiece's own mark for unknown characters: it leaves out every training line that has one."""
SCORE_STEP = 1 / 128
"""Unigram scores are rounded to multiples of this."""


@dataclass
class TrainingLines:
    """Cuts documents into training lines and takes some out, evenly over the whole input.

    A line but the first of a document begins with the newline before it, where the newline is a symbol: so the trainer
    sees words at the start of a line as the encoder will, without the space that is put before a text. A line above
    `longest` bytes is cut between characters; SentencePiece would pass it over.

    One line in `SHORTEST_GAP` at most is held out, and never more of the wanted `held_out` than the share of the input
    that was read: a rule that needs no second pass and gives the same lines every time.
    """

    held_out: int
    longest: int
    newline_is_symbol: bool
    seed: int
    position: Position
    lines: int = 0
    """Lines read for training; a sample of them is what SentencePiece gets."""
    kept: list[str] = field(default_factory=list)
    """The held-out lines."""
    rejected: int = 0
    first_rejected: str = ""
    on_progress: Callable[[int], None] | None = None

    def iterate(self, documents: Iterable[Document | Rejected]) -> Iterator[str]:
        """The lines to train on."""
        gap = SHORTEST_GAP - self.seed % SHORTEST_GAP
        for found in documents:
            if isinstance(found, Rejected):
                self.rejected += 1
                self.first_rejected = self.first_rejected or str(found)
                continue
            allowed = self.held_out * min(1.0, self.position.done / max(1, self.position.total))
            for line in self._cut(found.text):
                gap += 1
                if gap > SHORTEST_GAP and len(self.kept) < allowed:
                    gap = 1
                    self.kept.append(line)
                    continue
                self.lines += 1
                yield line.replace(SKIP_MARK, " ")
            if self.on_progress is not None:
                self.on_progress(self.lines)

    def _cut(self, text: str) -> Iterator[str]:
        for number, content in enumerate(text.split(NEWLINE)):
            if not content:
                continue
            line = NEWLINE + content if number and self.newline_is_symbol else content
            # A character has at most four bytes, so most lines need not be encoded to know.
            if len(line) * 4 <= self.longest:
                yield line
            else:
                yield from cut_line(line, self.longest)


def cut_line(line: str, longest: int) -> Iterator[str]:
    """`line` in pieces of at most `longest` UTF-8 bytes, cut between characters; joined they are the line."""
    data, begin = line.encode(), 0
    while begin < len(data):
        end = min(begin + longest, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[begin:end].decode()
        begin = end


def sampled(lines: Iterable[str], size: int, shuffle: bool, seed: int) -> Iterator[str]:
    """`size` of the lines (0: all): a uniform sample in which every line has the same chance, or else the first.

    SentencePiece could draw it, but its generator is salted anew in every process, so that equal seeds would give
    other tokenizers. Holding the sample here costs little beside what the training on it needs.
    """
    if size == 0:
        yield from lines
    elif not shuffle:
        yield from itertools.islice(lines, size)
    else:
        kept, draw = list[str](), random.Random(seed).random
        for number, line in enumerate(lines):
            if number < size:
                kept.append(line)
            elif (place := int(draw() * (number + 1))) < size:
                kept[place] = line
        kept.reverse()
        while kept:
            yield kept.pop()


def sample_lines(lines: TrainingLines, documents: Iterable[Document | Rejected], limit_bytes: int) -> list[str]:
    """Held-out lines for a model that is not trained here: from the beginning of the text, which is not read whole."""
    for _ in lines.iterate(documents):
        if lines.position.done >= limit_bytes or len(lines.kept) >= lines.held_out:
            break
    return lines.kept


def train(
    section: TokenizerSection, lines: TrainingLines, documents: Iterable[Document | Rejected], seed: int, folder: Path
) -> bytes:
    """Train and return the .model; SentencePiece's own progress goes to stderr. Equal seeds give equal models.

    (With equal `num_threads`: unigram adds its counts up per thread, so that scores may differ in their last digits.)

    Raises:
        InputError: the corpus is empty, or the vocabulary size does not fit it.
        StageError: SentencePiece failed otherwise.
    """
    failure: list[BaseException] = []

    def guarded() -> Iterator[str]:
        # SentencePiece turns an exception of the iterator into a text of its own.
        try:
            yield from sampled(
                lines.iterate(documents), section.input_sentence_size, section.shuffle_input_sentence, seed
            )
        except BaseException as error:
            failure.append(error)
            raise

    with tempfile.TemporaryDirectory(dir=folder, prefix=".training-") as scratch:
        prefix = Path(scratch) / "model"
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=guarded(), model_prefix=str(prefix), **options(section)
            )
        except Exception as error:
            if failure:
                raise failure[0] from None
            raise explain(str(error), section, lines) from None
        data = prefix.with_suffix(".model").read_bytes()
    return exact_scores(data)


def options(section: TokenizerSection) -> dict[str, Any]:
    """The section as SentencePiece's trainer flags."""
    return {
        "vocab_size": section.vocab_size,
        "model_type": section.model_type,
        "character_coverage": section.character_coverage,
        "input_sentence_size": section.input_sentence_size,
        "shuffle_input_sentence": section.shuffle_input_sentence,
        "num_threads": section.num_threads or len(os.sched_getaffinity(0)),
        "byte_fallback": section.byte_fallback,
        "split_digits": section.split_digits,
        "allow_whitespace_only_pieces": section.allow_whitespace_only_pieces,
        "remove_extra_whitespaces": section.remove_extra_whitespaces,
        "add_dummy_prefix": section.add_dummy_prefix,
        "normalization_rule_name": section.normalization,
        "max_sentence_length": section.max_sentence_length,
        "train_extremely_large_corpus": section.train_extremely_large_corpus,
        "user_defined_symbols": list(section.user_defined_symbols),
    }


def explain(message: str, section: TokenizerSection, lines: TrainingLines) -> InputError | StageError:
    """SentencePiece's error as what to type next."""
    if lines.lines == 0:
        rejected = f"; {lines.rejected} unusable, the first: {lines.first_rejected}" if lines.rejected else ""
        return InputError(
            f"there is no text to train the tokenizer on{rejected}",
            "give files with text in corpus.files (or tokenizer.files)",
        )
    if found := re.search(r"Vocabulary size too high \((\d+)\)\. Please set it to a value <= (\d+)", message):
        fits = int(found[2]) >= SMALLEST_VOCABULARY
        return InputError(
            f"tokenizer.vocab_size = {found[1]} is more than this corpus allows: {found[2]} pieces are all that can be "
            f"learnt from it (training lines: {lines.lines})",
            f"--set tokenizer.vocab_size={found[2]}, or add text"
            if fits
            else f"add text: the smallest vocabulary has {SMALLEST_VOCABULARY} pieces",
        )
    if found := re.search(r"Vocabulary size is smaller than required_chars\. (\d+) vs (\d+)", message):
        return InputError(
            f"tokenizer.vocab_size = {found[1]} is too small: the symbols, the bytes and the characters of this corpus "
            f"alone need {found[2]} pieces",
            f"--set tokenizer.vocab_size={found[2]} or more, or lower tokenizer.character_coverage "
            f"({section.character_coverage}) so that rare characters are spelt in bytes",
        )
    return StageError(f"SentencePiece could not train the tokenizer: {message}", "its own log lines are above")


def exact_scores(data: bytes) -> bytes:
    """Round the scores of a unigram model to multiples of 1/128, and leave other models alone.

    SentencePiece adds scores as 32-bit floats. A run of spaces or dashes has several best spellings that differ in the
    order of their pieces only (4 + 1 or 1 + 4); which one wins is then up to rounding: 0.4 % of the lines of Python's
    documentation came out otherwise than with 64 bits. Sums of multiples of 1/128 are exact up to 2^17, and SentencePiece
    starts anew at 10^5, so ties are ties everywhere and the first one wins. The rounding is 0.05 % of a usual score.
    """
    model = parse_model(data, "the trained model")
    if model.model_type != "unigram":
        return data
    return model.with_scores(
        [
            round(piece.score / SCORE_STEP) * SCORE_STEP if piece.type == PieceType.NORMAL else piece.score
            for piece in model.pieces
        ]
    )
