"""Step 1: a SentencePiece tokenizer, and the same tokenizer in Hugging Face format, proved equal id for id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from core.facts import Facts
from core.runs.directory import RunDirectory
from core.section import FileList, FilePath, Section
from core.stages.base import Stage, StagePlan
from core.stages.command import stage_argv, stage_env
from core.stages.corpus import corpus_files

if TYPE_CHECKING:
    from core.preset import Preset

SMALLEST_VOCABULARY = 300
"""1 for unknown, 256 bytes, the symbols, and some characters."""
NEEDED_SYMBOLS = ("<s>", "</s>", "<pad>", "<EOD>")
ORIGINAL_SYMBOLS = ["<s>", "</s>", "<pad>", "<CLS>", "<SEP>", "<EOD>", "<MASK>", "\n"]


class TokenizerSection(Section):
    """How the tokenizer is trained. The defaults are the original pipeline's, but for `normalization`."""

    model: FilePath | None = None
    """An existing SentencePiece .model file to use instead of training one."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "tokenizer"
    """File name of the tokenizer, without its ending."""
    files: FileList = []
    """Text files to train on; the corpus when empty."""
    vocab_size: Annotated[int, Field(ge=SMALLEST_VOCABULARY, le=1_000_000)] = 32000
    """Pieces in the vocabulary: 1 for unknown, the user-defined symbols, 256 bytes, and what is learnt."""
    model_type: Literal["unigram", "bpe", "char", "word"] = "unigram"
    """SentencePiece's algorithm; `word` is refused, because no Hugging Face tokenizer is equal to it."""
    character_coverage: Annotated[float, Field(ge=0.98, le=1)] = 0.9995
    """Share of the characters in the text that get a piece of their own; the rest is spelt in bytes."""
    input_sentence_size: Annotated[int, Field(ge=0)] = 3_000_000
    """Lines sampled for training; 0 takes all."""
    shuffle_input_sentence: bool = True
    """Whether the sample is drawn from the whole input; otherwise it is the beginning."""
    num_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Training threads; 0 for one a core."""
    byte_fallback: bool = True
    """Whether characters without a piece are spelt as UTF-8 bytes instead of becoming unknown."""
    split_digits: bool = True
    """Whether every digit is a piece of its own."""
    allow_whitespace_only_pieces: bool = True
    """Whether runs of spaces may become pieces (indentation of code)."""
    remove_extra_whitespaces: bool = False
    """Whether leading, trailing and repeated spaces are removed; text does not decode to itself then."""
    add_dummy_prefix: bool = True
    """Whether a space is put before the text, so that a word at its start is spelt as inside it."""
    normalization: Literal["identity", "nfkc", "nmt_nfkc"] = "identity"
    """SentencePiece's normaliser; with identity the text decodes to itself. The original used nmt_nfkc: see corpus.normalize."""
    max_sentence_length: Annotated[int, Field(ge=64)] = 4192
    """Bytes in one training line; longer lines are split, not skipped."""
    train_extremely_large_corpus: bool = True
    """Passed on as the original does; SentencePiece 0.2 ignores it."""
    user_defined_symbols: list[Annotated[str, Field(min_length=1)]] = ORIGINAL_SYMBOLS
    """Symbols that are always one piece; <s>, </s>, <pad> and <EOD> must be among them."""
    held_out_lines: Annotated[int, Field(ge=1)] = 2000
    """Lines kept out of training, on which the two tokenizers must agree."""

    @field_validator("model_type")
    @classmethod
    def _has_an_equal(cls, value: str) -> str:
        if value == "word":
            raise ValueError(
                "no Hugging Face tokenizer gives the ids of a SentencePiece `word` model; use unigram, bpe or char"
            )
        return value

    @field_validator("user_defined_symbols")
    @classmethod
    def _needed_symbols(cls, value: list[str]) -> list[str]:
        if absent := [symbol for symbol in NEEDED_SYMBOLS if symbol not in value]:
            raise ValueError(f"{', '.join(absent)} must be among the symbols; the other stages rely on them")
        if twice := sorted({symbol for symbol in value if value.count(symbol) > 1}):
            raise ValueError(f"{', '.join(map(repr, twice))} is given twice")
        if "<unk>" in value:
            raise ValueError("<unk> is SentencePiece's own piece for unknown text; leave it out")
        return value


def tokenizer_file(preset: Preset, run: RunDirectory) -> str:
    """The SentencePiece model that the stage leaves, trained or copied."""
    return str(run.tokenizer / f"{preset.tokenizer.name}.model")


def plan(preset: Preset, facts: Facts, run: RunDirectory) -> StagePlan:
    section = preset.tokenizer
    files = section.files or corpus_files(preset, run)
    threads = section.num_threads or facts.cores
    return StagePlan(
        id=STAGE.id,
        argv=stage_argv(run, STAGE.id, facts),
        env=stage_env(run),
        cwd=str(run.root),
        nodes=[facts.host],
        inputs={"model": [section.model]} if section.model else {"text": files},
        outputs={
            "model": tokenizer_file(preset, run),
            "vocab": str(run.tokenizer / f"{section.name}.vocab"),
            "huggingface": str(run.huggingface_tokenizer),
        },
        derived={"vocab_size": section.vocab_size, "model_type": section.model_type, "threads": threads},
        settings={
            "tokenizer": section.model_dump(exclude={"num_threads"}),
            "corpus": preset.corpus.model_dump(include={"text_key", "normalize"}),
            "sequence_length": preset.model.sequence_length,
            "seed": preset.seed,
            "chat": preset.finetune.model_dump(include={"instruction_template", "response_template"}),
        },
    )


STAGE = Stage("tokenizer", "Tokenizer", "tokenizer", plan, "core.tokenizer.work:make_tokenizer")
