"""The data stage: text to Megatron token files, with a manifest that accounts for every line.

Makes outputs/data/text_document.bin, .idx and .manifest.json of the run; the manifest is written last.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.adopt import AdoptedData, link
from core.data.indexed import IndexedWriter, token_dtype
from core.data.manifest import Tally, manifest_path, split_parts, unigram_entropy_nats
from core.data.preprocess import preprocess
from core.data.workers import Recipe, batches, encode_all
from core.errors import InputError
from core.files import sha256, write_json
from core.stages.base import Outcome, StageContext, StageStopped
from core.stages.corpus import corpus_files
from core.stages.tokenizer import tokenizer_file
from core.text.records import Position, check_files
from core.tokenizer.model_file import ModelFile, parse_model
from core.tokenizer.special import find_special

WORTH_A_WORKER = 8 << 20
"""Bytes of input; a process takes as long to start as one core needs for about so much."""
SHOWN_LINES = 5


def tokenize_corpus(context: StageContext) -> Outcome:
    """Tokenize the corpus, let preprocess_data.py do it, or take the token files that data.prefix names.

    Raises:
        InputError: the text, the tokenizer or the given token files cannot be used.
        StageError: a worker was killed.
        StageStopped: on request; nothing is kept.
    """
    context.listen_for_stop()
    run, section = context.run, context.preset.data
    path = Path(tokenizer_file(context.preset, run))
    if not path.is_file():
        raise InputError(
            f"there is no tokenizer at {path}", "run the tokenizer stage before: --from tokenizer, or resume the run"
        )
    model = parse_model(path.read_bytes(), str(path))
    special = find_special(model, str(path))
    run.data_prefix.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Old files without their manifest are recognisably unfinished.
    manifest_path(run.data_prefix).unlink(missing_ok=True)
    if section.tool == "preprocess_data":
        manifest = preprocess(context, path, model, special.ids["eod"])
        if "longest_document" in manifest:
            check_longest(
                manifest["longest_document"],
                context.preset.model.sequence_length,
                context.preset.pretrain.allow_short_documents,
            )
    elif section.prefix:
        manifest = _adopt(context, Path(section.prefix), model, special.ids["eod"])
    else:
        manifest = _tokenize(context, path, len(model.pieces))
    manifest = {
        "schema_version": 1,
        **manifest,
        "vocab_size": len(model.pieces),
        "tokenizer_sha256": sha256(path),
        "eod_id": special.ids["eod"],
    }
    write_json(manifest_path(run.data_prefix), manifest)
    shown = (
        "documents",
        "rejected",
        "tokens",
        "text_bytes",
        "longest_document",
        "bytes_per_token",
        "unigram_entropy_nats",
    )
    metrics = {name: manifest[name] for name in shown if name in manifest}
    if metrics:
        print(
            f"{manifest['documents']} documents, {manifest['tokens']} tokens, {manifest['rejected']} rejected",
            flush=True,
        )
    return Outcome(outputs=dict(context.plan["outputs"]), metrics=metrics)


def _tokenize(context: StageContext, tokenizer: Path, vocab_size: int) -> dict[str, Any]:
    preset, run, position = context.preset, context.run, Position()
    files = corpus_files(preset, run)
    check_files(files)
    recipe = Recipe(str(tokenizer), preset.data.append_eod, preset.corpus.text_key, preset.corpus.normalize)
    workers = worker_count(preset.data.workers, files)
    print(f"tokenizing {', '.join(files)} with {workers} process{'es' if workers > 1 else ''}", flush=True)
    tally = Tally(vocab_size, files)
    with IndexedWriter(run.data_prefix, token_dtype(vocab_size)) as writer:
        source = batches(files, recipe.text_key, position)
        for encoded in encode_all(source, recipe, workers, lambda: context.stop_requested):
            writer.add(encoded.tokens, encoded.sizes)
            tally.add(encoded)
            done = min(position.done, position.total - 1)
            context.progress(done, position.total, "bytes", documents=tally.documents, tokens=writer.tokens)
        if context.stop_requested:
            raise StageStopped
        context.progress(position.total, position.total, "bytes", documents=tally.documents, tokens=writer.tokens)
        check_rejected(tally, preset.corpus.max_rejected_share)
        longest = int(writer.sizes.max())
        check_longest(longest, preset.model.sequence_length, preset.pretrain.allow_short_documents)
        offsets = np.concatenate(([0], np.cumsum(writer.sizes, dtype=np.int64)))
        splits = split_parts(preset.data.split, offsets, tally.text_bytes)
        writer.commit()
    if tally.rejected:
        context.warn(
            f"{tally.rejected} of {tally.rows} lines were rejected: "
            + ", ".join(f"{count} x {reason}" for reason, count in tally.reasons.most_common())
        )
    return {
        "source": "text",
        **_numbers(tally.histogram, sum(tally.text_bytes), tally.documents, longest),
        "rows": tally.rows,
        "rejected": tally.rejected,
        "rejected_reasons": dict(tally.reasons.most_common()),
        "rejected_lines": [rejected._asdict() for rejected in tally.listed],
        "files": [{"file": name, **asdict(count)} for name, count in tally.counts.items()],
        "append_eod": preset.data.append_eod,
        "dtype": writer.dtype.name,
        "split": preset.data.split,
        "splits": splits,
        "bin_sha256": writer.bin_sha256,
        "idx_sha256": writer.idx_sha256,
    }


def _adopt(context: StageContext, prefix: Path, model: ModelFile, eod: int) -> dict[str, Any]:
    preset, run = context.preset, context.run
    print(f"checking the token files {prefix}", flush=True)

    def on_progress(done: int, total: int) -> None:
        if context.stop_requested:
            raise StageStopped
        context.progress(done, total, "tokens")

    found = AdoptedData(prefix, model, eod, preset.data.split, on_progress)
    longest = int(found.sizes.max())
    check_longest(longest, preset.model.sequence_length, preset.pretrain.allow_short_documents)
    documents = found.data.documents
    if preset.data.append_eod and found.ending_with_eod < documents:
        context.warn(
            f"only {found.ending_with_eod} of {documents} documents end with {model.pieces[eod].text} (id {eod}): "
            "the files were made without it or with another tokenizer"
        )
    link(prefix, run.data_prefix)
    text_bytes = sum(part["text_bytes"] for part in found.splits.values())
    return {
        "source": str(prefix),
        **_numbers(found.histogram, text_bytes, documents, longest),
        "rows": documents,
        "rejected": 0,
        "rejected_reasons": {},
        "rejected_lines": [],
        "files": [],
        "append_eod": found.ending_with_eod > 0,
        "dtype": found.data.dtype.name,
        "split": preset.data.split,
        "splits": found.splits,
        "bin_sha256": found.bin_sha256,
        "idx_sha256": found.idx_sha256,
    }


def _numbers(histogram: NDArray[np.int64], text_bytes: int, documents: int, longest: int) -> dict[str, Any]:
    tokens = int(histogram.sum())
    return {
        "documents": documents,
        "tokens": tokens,
        "text_bytes": text_bytes,
        "longest_document": longest,
        "bytes_per_token": text_bytes / tokens,
        "unigram_entropy_nats": unigram_entropy_nats(histogram),
    }


def worker_count(asked: int, files: list[str]) -> int:
    """As asked; else one a core, but not more than the input is worth."""
    if asked:
        return asked
    size = sum(Path(file).stat().st_size for file in files)
    return max(1, min(len(os.sched_getaffinity(0)), size // WORTH_A_WORKER))


def check_rejected(tally: Tally, allowed: float) -> None:
    """Raises InputError if there is no document, or too many lines are none; the first of them are named."""
    first = "\n".join(f"  {rejected}" for rejected in tally.listed[:SHOWN_LINES])
    if tally.documents == 0:
        names = ", ".join(tally.files)
        raise InputError(
            f"the corpus is empty: no usable document in {names} ({tally.rejected} lines rejected)"
            + (f". The first:\n{first}" if first else ""),
            "a document is a JSON object with a text under corpus.text_key, or a paragraph of a .txt file",
        )
    share = tally.rejected / tally.rows
    if share > allowed:
        raise InputError(
            f"{tally.rejected} of {tally.rows} lines ({share:.1%}) cannot be used; corpus.max_rejected_share allows "
            f"{allowed:.1%}. The first:\n{first}",
            f"mend these lines, or accept the loss: --set corpus.max_rejected_share={min(1.0, _round_up(share)):g}",
        )


def _round_up(share: float) -> float:
    return float(np.ceil(share * 1000) / 1000)


def check_longest(longest: int, sequence_length: int, allow_short: bool) -> None:
    """Raises InputError if every training sequence would have to span documents, unless that is allowed."""
    if longest < sequence_length and not allow_short:
        raise InputError(
            f"no document reaches model.sequence_length = {sequence_length}: the longest has {longest} tokens",
            f"--set model.sequence_length={longest}, or --set pretrain.allow_short_documents=true to train on "
            "sequences that span documents",
        )
