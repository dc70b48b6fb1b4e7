"""The tokenizer stage: a SentencePiece model, trained or given, and its proved Hugging Face twin.

Makes the folder outputs/tokenizer/ of the run at once: {name}.model, {name}.vocab and huggingface/.
"""

from __future__ import annotations

import time
from pathlib import Path

from core import folders
from core.errors import InputError
from core.files import write_atomically
from core.stages.base import Outcome, StageContext
from core.stages.corpus import corpus_files
from core.stages.tokenizer import TokenizerSection
from core.text.chat import chat_template
from core.text.readers import LOOK_BYTES, documents
from core.text.records import Position
from core.tokenizer import convert
from core.tokenizer.model_file import ModelFile, parse_model
from core.tokenizer.probes import PROBES
from core.tokenizer.proof import NORMALISER_HINT, Proof, prove
from core.tokenizer.special import find_special
from core.tokenizer.train import NEWLINE, TrainingLines, sample_lines, train


def make_tokenizer(context: StageContext) -> Outcome:
    """Train or take a model, convert it, prove the two equal.

    Raises:
        InputError: the text or the given model cannot be used, or the vocabulary size does not fit the text.
        StageError: the two tokenizers differ.
    """
    section, preset, run = context.preset.tokenizer, context.preset, context.run
    building = folders.begin(run.tokenizer)
    if section.model:
        data, lines = _take(context, Path(section.model))
    else:
        data, lines = _train(context, building)
    source = section.model or "the trained model"
    model = parse_model(data, source)
    _check_size(context, model)
    special = find_special(model, source)
    for note in special.notes:
        context.warn(note)

    huggingface = building / run.huggingface_tokenizer.relative_to(run.tokenizer)
    huggingface.mkdir()
    write_atomically(building / f"{section.name}.model", data)
    write_atomically(building / f"{section.name}.vocab", vocabulary_text(model).encode())
    template = chat_template(preset.finetune.instruction_template, preset.finetune.response_template)
    tokenizer = convert.build(model, special, source)
    convert.save(tokenizer, special, huggingface, data, preset.model.sequence_length, template)
    started = time.monotonic()
    proof = prove(huggingface, model, lines.kept, PROBES, trained_here=not section.model)
    _report(context, proof, time.monotonic() - started)
    folders.put_in_place(building, run.tokenizer)
    metrics: dict[str, int | float] = {
        "vocab_size": len(model.pieces),
        "training_lines": training_lines(section, lines.lines),
        "held_out_lines": proof.held_out,
        "probe_lines": proof.lines - proof.held_out,
        "mismatches": 0,
        "ties": proof.ties,
        "probe_mismatches": proof.probe_mismatches,
    }
    if proof.tokens:
        metrics["bytes_per_token"] = round(proof.text_bytes / proof.tokens, 4)
    return Outcome(outputs=dict(context.plan["outputs"]), metrics=metrics)


def training_lines(section: TokenizerSection, read: int) -> int:
    """Lines that SentencePiece was given, of those that were read."""
    if section.model:
        return 0
    return min(read, section.input_sentence_size) if section.input_sentence_size else read


def _new_lines(context: StageContext, position: Position) -> TrainingLines:
    section = context.preset.tokenizer
    return TrainingLines(
        held_out=section.held_out_lines,
        longest=section.max_sentence_length,
        newline_is_symbol=NEWLINE in section.user_defined_symbols,
        seed=context.preset.seed,
        position=position,
        # The end is reported once, by the caller: the last buffer holds many lines.
        on_progress=lambda lines: context.progress(
            min(position.done, position.total - 1), position.total, "bytes", lines=lines
        ),
    )


def _train(context: StageContext, folder: Path) -> tuple[bytes, TrainingLines]:
    section, corpus, position = context.preset.tokenizer, context.preset.corpus, Position()
    lines = _new_lines(context, position)
    files = section.files or corpus_files(context.preset, context.run)
    print(f"training a {section.model_type} model of {section.vocab_size} pieces on {', '.join(files)}", flush=True)
    found = documents(files, corpus.text_key, corpus.normalize, position)
    data = train(section, lines, found, context.preset.seed, folder)
    context.progress(position.total, position.total, "bytes", lines=lines.lines)
    used = training_lines(section, lines.lines)
    print(f"trained on {used} of {lines.lines} lines; {len(lines.kept)} more were held out", flush=True)
    if lines.rejected:
        # The data stage lists them all, and decides whether they are too many.
        context.warn(f"{lines.rejected} unusable lines were left out; the first: {lines.first_rejected}")
    return data, lines


def _take(context: StageContext, path: Path) -> tuple[bytes, TrainingLines]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"tokenizer.model: {path} cannot be read: {error.strerror}") from None
    print(f"taking the tokenizer {path}", flush=True)
    section, corpus, position = context.preset.tokenizer, context.preset.corpus, Position()
    lines = _new_lines(context, position)
    files = section.files or corpus_files(context.preset, context.run)
    # With token files of their own a user may have no text at all; the built-in probes are then all there is.
    if all(Path(file).is_file() for file in files):
        sample_lines(lines, documents(files, corpus.text_key, corpus.normalize, position), LOOK_BYTES)
    return data, lines


def _check_size(context: StageContext, model: ModelFile) -> None:
    asked, found = context.preset.tokenizer.vocab_size, len(model.pieces)
    if asked == found:
        return
    if context.preset.tokenizer.model:
        # The plan's parameters and memory rest on it.
        raise InputError(
            f"the tokenizer {context.preset.tokenizer.model} has {found} pieces, tokenizer.vocab_size says {asked}",
            f"--set tokenizer.vocab_size={found}",
        )
    context.warn(f"the corpus has characters for {found} pieces only, not for tokenizer.vocab_size = {asked}")


def vocabulary_text(model: ModelFile) -> str:
    """The .vocab: piece, tab, score, one a line in the order of the ids.

    As SentencePiece writes it, but for the newline and tab in a piece, which are written as \\n and \\t here: there they
    break the line, so that line numbers are no ids any more.
    """
    escaped = (piece.text.replace("\n", "\\n").replace("\t", "\\t") for piece in model.pieces)
    return "".join(f"{text}\t{piece.score:g}\n" for text, piece in zip(escaped, model.pieces, strict=True))


def _report(context: StageContext, proof: Proof, seconds: float) -> None:
    probes = proof.lines - proof.held_out
    print(
        f"the Hugging Face tokenizer gives the same ids and text as SentencePiece on {proof.held_out} held-out lines "
        f"and {probes - proof.probe_mismatches} of {probes} built-in ones ({seconds:.1f} s)",
        flush=True,
    )
    if proof.left_out:
        print(f"{proof.left_out} lines that hold a control token's name were not compared", flush=True)
    if proof.probe_mismatches:
        context.warn(
            f"the two differ on {proof.probe_mismatches} of the built-in lines (none of the held-out ones). The first:\n"
            f"{proof.first_probe_mismatch}\n  {NORMALISER_HINT}"
        )
    if proof.ties:
        context.warn(
            f"on {proof.ties} lines the two give the same pieces in another order, a tie that SentencePiece decides by "
            f"rounding (rare in a model trained here). The first:\n{proof.first_tie}"
        )
