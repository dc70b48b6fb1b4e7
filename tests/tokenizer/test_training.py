"""Training: every line is used or held out, the same way every time; what cannot work says what to type."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_tokenizer import texts, train_small

from core.errors import InputError
from core.stages.tokenizer import ORIGINAL_SYMBOLS, TokenizerSection
from core.text.readers import Document, Rejected
from core.text.records import Position
from core.tokenizer.model_file import PieceType, parse_model
from core.tokenizer.train import SHORTEST_GAP, TrainingLines, cut_line, options, sampled, train


def lines_for(held_out: int = 10, longest: int = 4192, newline: bool = True, seed: int = 0) -> TrainingLines:
    return TrainingLines(held_out, longest, newline, seed, Position(1, 1))


def documents(*contents: str) -> list[Document | Rejected]:
    return [Document("a.jsonl", number, text) for number, text in enumerate(contents, start=1)]


@given(st.text(max_size=300), st.integers(4, 50))
def test_a_long_line_is_cut_between_characters_and_nothing_is_lost(line: str, longest: int) -> None:
    parts = list(cut_line(line, longest))
    assert "".join(parts) == line
    assert all(0 < len(part.encode()) <= longest for part in parts)


@given(st.lists(st.text(max_size=200), max_size=20), st.booleans(), st.integers(0, 100))
def test_every_line_is_trained_on_or_held_out(contents: list[str], newline: bool, seed: int) -> None:
    lines = lines_for(held_out=1000, longest=64, newline=newline, seed=seed)
    trained = list(lines.iterate(documents(*contents)))
    expected = sorted("".join(text.split("\n")) for text in contents)
    expected_characters = sorted("".join(expected).replace("\u2585", " "))
    got = [line.removeprefix("\n") if newline else line for line in [*trained, *lines.kept]]
    assert sorted("".join(got).replace("\u2585", " ")) == expected_characters
    assert lines.lines == len(trained)
    assert len(lines.kept) <= (len(trained) + len(lines.kept)) / SHORTEST_GAP + 1


def test_lines_after_the_first_keep_the_newline_before_them() -> None:
    found = list(lines_for(seed=19).iterate(documents("one\n\n  two\n", "three")))
    assert found == ["one", "\n  two", "three"]
    assert list(lines_for(seed=19, newline=False).iterate(documents("one\n\n  two\n"))) == ["one", "  two"]


def test_held_out_lines_are_spread_over_the_whole_input_and_are_the_same_every_time() -> None:
    def run() -> TrainingLines:
        lines = TrainingLines(50, 4192, True, 3, Position(0, 10_000))

        def growing() -> Iterator[Document | Rejected]:
            for number in range(10_000):
                lines.position.done = number
                yield Document("a", number, f"line {number}")

        assert sum(1 for _ in lines.iterate(growing())) == 10_000 - len(lines.kept)
        return lines

    first, second = run(), run()
    numbers = [int(line.split()[1]) for line in first.kept]
    assert first.kept == second.kept
    assert len(numbers) == 50
    assert all(100 <= after - before <= 300 for before, after in itertools.pairwise(numbers))


def test_a_rejected_record_is_counted_not_trained_on() -> None:
    lines = lines_for(seed=19)
    found = list(lines.iterate([Rejected("a", 1, "no text"), Document("a", 2, "x"), Rejected("a", 3, "no text")]))
    assert (found, lines.rejected, lines.first_rejected) == (["x"], 2, "a:1: no text")


def test_sentencepiece_neither_skips_a_long_line_nor_one_with_its_own_mark(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    section = TokenizerSection(vocab_size=300, num_threads=1, model_type="char", max_sentence_length=64)
    lines = lines_for(longest=64, seed=19)
    train(section, lines, documents("漢字" * 100, "mark \u2585 inside"), 1, tmp_path)
    log = capfd.readouterr().err
    assert lines.lines > 600 // 64
    assert f"Loaded all {lines.lines} sentences" in log
    assert "too long" not in log
    assert "Reserved chars" not in log


def test_all_options_reach_sentencepiece_with_the_defaults_of_the_original() -> None:
    assert options(TokenizerSection(num_threads=16, normalization="nmt_nfkc")) == {
        "vocab_size": 32000,
        "model_type": "unigram",
        "character_coverage": 0.9995,
        "input_sentence_size": 3_000_000,
        "shuffle_input_sentence": True,
        "num_threads": 16,
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": True,
        "normalization_rule_name": "nmt_nfkc",
        "max_sentence_length": 4192,
        "train_extremely_large_corpus": True,
        "user_defined_symbols": ["<s>", "</s>", "<pad>", "<CLS>", "<SEP>", "<EOD>", "<MASK>", "\n"],
    }


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
def test_the_vocabulary_begins_as_the_originals(small_model: Callable[..., bytes], model_type: str) -> None:
    data = small_model(model_type=model_type)
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    pieces = [processor.id_to_piece(number) for number in range(265)]
    assert pieces == ["<unk>", *ORIGINAL_SYMBOLS, *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [piece.type for piece in parse_model(data, "").pieces]
    assert types[:9] == [PieceType.UNKNOWN] + [PieceType.USER_DEFINED] * 8


def test_json_syntax_is_not_learnt(small_model: Callable[..., bytes]) -> None:
    """The original fed raw JSONL lines to SentencePiece: its vocabulary has `text` with quotes, and \\u escapes."""
    pieces = {piece.text for piece in parse_model(small_model(model_type="bpe"), "").pieces}
    assert not [piece for piece in pieces if '"text"' in piece or "\\u" in piece or "\\n\\n" in piece]
    assert "▁吾輩" in pieces or "吾輩" in pieces


TRAIN = """
import hashlib, pathlib, sys
from small_tokenizer import train_small
model = train_small(pathlib.Path(sys.argv[1]), model_type=sys.argv[2], vocab_size=600, input_sentence_size=2000)
from core.tokenizer.model_file import parse_model
print(hashlib.sha256(repr([(p.text, p.score) for p in parse_model(model, "").pieces]).encode()).hexdigest())
"""


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_equal_seeds_give_equal_models_in_other_processes_too(tmp_path: Path, model_type: str) -> None:
    """SentencePiece's own sampling does not: its generator is salted anew in every process."""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"}
    argv = [sys.executable, "-c", TRAIN, str(tmp_path), model_type]
    first, second, third = (
        subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout for _ in range(3)
    )
    assert len(first) == 65
    assert first == second == third


def test_the_sample_is_uniform_seeded_and_of_the_size_asked_for() -> None:
    lines = [str(number) for number in range(1000)]
    assert list(sampled(lines, 0, True, 1)) == list(sampled(lines, 2000, True, 1)) == lines
    assert list(sampled(lines, 10, False, 1)) == lines[:10]
    assert (
        list(sampled(lines, 100, True, 1)) == list(sampled(lines, 100, True, 1)) != list(sampled(lines, 100, True, 2))
    )
    counts = Counter(number for seed in range(400) for number in sampled(lines, 100, True, seed))
    assert sum(counts.values()) == 40_000
    assert len(counts) == 1000
    assert min(counts.values()) > 10  # 40 expected; 6 standard deviations are 36
    assert max(counts.values()) < 80


def test_unigram_scores_are_such_that_their_sums_are_exact_in_32_bits(small_model: Callable[..., bytes]) -> None:
    model = parse_model(small_model(model_type="unigram"), "")
    assert all((piece.score * 128).is_integer() for piece in model.pieces)
    assert len({piece.score for piece in model.pieces}) > 300


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize("asked", [300, 60_000])
def test_a_vocabulary_size_that_does_not_fit_the_corpus_is_answered_with_one_that_does(
    tmp_path: Path, model_type: str, asked: int
) -> None:
    with pytest.raises(InputError, match=f"vocab_size = {asked}") as caught:
        train_small(tmp_path, vocab_size=asked, model_type=model_type, character_coverage=1.0, input_sentence_size=3000)
    hint = re.search(r"--set tokenizer\.vocab_size=(\d+)", caught.value.hint)
    assert hint is not None
    data = train_small(
        tmp_path, vocab_size=int(hint[1]), model_type=model_type, character_coverage=1.0, input_sentence_size=3000
    )
    assert len(parse_model(data, "").pieces) == int(hint[1])


def test_a_corpus_too_small_for_any_vocabulary_asks_for_text(tmp_path: Path) -> None:
    section = TokenizerSection(vocab_size=400, num_threads=1)
    with pytest.raises(InputError, match="more than this corpus allows") as caught:
        train(section, lines_for(seed=19), documents("a"), 1, tmp_path)
    assert caught.value.hint == "add text: the smallest vocabulary has 300 pieces"


def test_an_empty_corpus_is_said_to_be_empty(tmp_path: Path) -> None:
    section = TokenizerSection(vocab_size=400, num_threads=1)
    for found in ([], [Rejected("a.jsonl", 7, "no 'text' among the keys")]):
        with pytest.raises(InputError, match="there is no text to train the tokenizer on") as caught:
            train(section, lines_for(), found, 1, tmp_path)
    assert "a.jsonl:7: no 'text'" in str(caught.value)


def test_an_error_while_reading_is_told_as_itself(tmp_path: Path) -> None:
    def broken() -> Iterator[Document | Rejected]:
        yield Document("a", 1, texts()[0])
        raise InputError("a.jsonl.gz is broken after line 1")

    with pytest.raises(InputError, match="is broken after line 1"):
        train(TokenizerSection(vocab_size=400), lines_for(), broken(), 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"model_type": "word"}, "use unigram, bpe or char"),
        ({"user_defined_symbols": ["<s>", "</s>", "\n"]}, "<pad>, <EOD> must be among the symbols"),
        ({"user_defined_symbols": [*ORIGINAL_SYMBOLS, "a", "a"]}, "'a' is given twice"),
        ({"character_coverage": 0.9}, "greater than or equal to 0.98"),
    ],
)
def test_what_can_never_work_is_refused_in_the_preset(section: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TokenizerSection.model_validate(section)
