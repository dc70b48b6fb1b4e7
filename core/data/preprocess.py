"""Token files by Megatron-DeepSpeed's own preprocess_data.py: the plan's commands one after another, judged by what they leave.

Its exit code says nothing: it is 0 also when the process that does the work died on a bad line, and then there is a .bin and no
.idx (read in the tag ucllm_nedo_v20240415.1.0, tools/preprocess_data.py, and seen). What is judged here is the files.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.adopt import AdoptedData, link
from core.data.encode import DocumentEncoder
from core.data.ends import map_tokens, with_end_counted
from core.data.indexed import files_of, read_index, token_dtype
from core.data.manifest import unigram_entropy_nats
from core.data.preprocess_command import Pair, pairs
from core.data.repair import repair_append_eod
from core.errors import InputError, StageError
from core.runs.process import end_with_parent
from core.stages.base import StageContext, StageStopped
from core.text.readers import Document, decode, look_into
from core.text.records import Position, records
from core.tokenizer.megatron_ids import megatron_ids
from core.tokenizer.model_file import ModelFile

PROGRESS = re.compile(rb"Processed (\d+) documents \(([\d.e+]+) docs/s, ([\d.e+-]+) MB/s\)\.")
BAD_LINE = re.compile(r"^(?:json\.decoder\.)?(?:KeyError|JSONDecodeError|TypeError|UnicodeDecodeError)\b")
ERROR = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b")
NOT_FOR_CHILD = ("PYTHONPATH", "PYTHONSAFEPATH")
COMPARED = 50
"""Documents at the beginning of a file that must be in the token files, for these to be taken as they are; and the last one."""
LAST_BYTES = 1 << 20
SPECIAL = ("<CLS>", "<SEP>", "<EOD>", "<MASK>", "<PAD>", "<BOS>", "<EOS>", "<unk>", "<s>", "</s>", "<pad>")
"""Texts with these are split there by Megatron's tokenizer, and are not compared."""


def preprocess(context: StageContext, tokenizer: Path, model: ModelFile, eod: int) -> dict[str, Any]:
    """Carry out the plan's commands; returns the manifest of all token files together.

    Raises:
        InputError: a line that preprocess_data.py cannot use, or token files of something else in their place.
        StageError: it failed otherwise.
        StageStopped: on request.
    """
    preset, run = context.preset, context.run
    strict = preset.megatron.strict_original
    found = pairs(preset, context.plan["inputs"]["text"], run)
    commands = [value for name, value in context.plan["derived"].items() if name.startswith("command")]
    for pair in found:
        Path(pair.prefix).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    done, end = 0, megatron_ids(tokenizer.read_bytes()).eod
    for pair, command in zip(found, commands, strict=True):
        if strict and all(path.is_file() for path in files_of(Path(pair.prefix))):
            print(f"{pair.prefix}.bin and .idx exist and are used as they are", flush=True)
            continue
        if fault_of(Path(pair.prefix)) is None:
            check_same_text(pair, tokenizer, preset.data.append_eod)
            print(f"{pair.prefix}.bin and .idx are whole and hold this text: not made again", flush=True)
        else:
            done += _run(context, command, pair, done)
        if not strict and (documents := repair_append_eod(Path(pair.prefix), end)):
            context.event("index-repaired", prefix=pair.prefix, documents=documents)
            print(f"{pair.prefix}.idx: the end of {documents} documents was not counted, and is now", flush=True)
    prefixes = [Path(pair.prefix) for pair in found]
    if strict:
        return {"source": "preprocess_data", "prefixes": [str(prefix) for prefix in prefixes]}
    manifest = _describe(context, prefixes, model, eod)
    if preset.pretrain.backend == "embedded":
        link(prefixes[0], run.data_prefix)
    return manifest


def fault_of(prefix: Path) -> str | None:
    """What keeps a pair from being whole, by the sizes of its files; None where they fit.

    The .idx has 34 + 12 N + 8 D bytes for its own N and D, and the .bin as many tokens as the sizes say, or one more for each document
    that has any: the end-of-document tokens that --append-eod leaves out of the sizes.
    """
    bin_path, idx_path = files_of(prefix)
    for path in (bin_path, idx_path):
        if not path.is_file():
            return f"there is no {path.name}"
    try:
        index = read_index(idx_path)
    except InputError as error:
        return error.message
    if not index.tokens:
        return f"{idx_path.name} has no document"
    size, item = bin_path.stat().st_size, index.dtype.itemsize
    if size not in (index.tokens * item, with_end_counted(index).tokens * item):
        return f"{bin_path.name} has {size} bytes; its index says {index.tokens} tokens of {item} bytes"
    return None


def check_same_text(pair: Pair, tokenizer: Path, append_eod: bool) -> None:
    """Raises InputError unless the token files begin with the ids that this tokenizer gives the first documents, and end with
    those of the last.

    Only the .bin is looked at, where the documents lie one after another whatever the index says of them.
    """
    encoder = DocumentEncoder(tokenizer, append_eod)
    bin_path, idx_path = files_of(Path(pair.prefix))
    dtype = read_index(idx_path).dtype
    tokens = map_tokens(bin_path, dtype)
    at, compared = 0, 0
    same = dtype == token_dtype(megatron_ids(tokenizer.read_bytes()).size)
    for text in _first_texts(pair):
        if any(special in text for special in SPECIAL):
            break  # from here on it is not known where a document begins
        ids = _ids(encoder, text)
        same = same and np.array_equal(tokens[at : at + len(ids)], ids)
        at, compared = at + len(ids), compared + 1
    last = _last_text(pair)
    if last is not None and not any(special in last for special in SPECIAL):
        ids = _ids(encoder, last)
        same, compared = same and np.array_equal(tokens[len(tokens) - len(ids) :], ids), compared + 1
    if same and compared:
        return
    raise InputError(
        f"{bin_path} is there, but "
        + ("its ids are not those of " if compared else "it cannot be seen whether it holds ")
        + f"{pair.source} in the tokenizer of this run",
        "move both files away, choose another data.output_folder, or train on them as they are: data.prefix, or "
        "megatron.data_files with the megatron backend",
    )


def _ids(encoder: DocumentEncoder, text: str) -> NDArray[Any]:
    parts = encoder.encode(text)
    return np.concatenate(parts) if parts else np.zeros(0, encoder.dtype)


def _first_texts(pair: Pair) -> Iterator[str]:
    for number, record in enumerate(records(pair.source, pair.key, Position())):
        if number == COMPARED:
            return
        document = decode(record, pair.source, True, pair.key, "none")
        if not isinstance(document, Document):
            return  # preprocess_data.py makes ids of what we reject as a text, such as spaces
        yield document.text


def _last_text(pair: Pair) -> str | None:
    """The text of the last line; None where that cannot be said."""
    import orjson

    with Path(pair.source).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LAST_BYTES))
        lines = file.read().splitlines()
    try:
        text = orjson.loads(lines[-1])[pair.key]
    except (IndexError, KeyError, TypeError, orjson.JSONDecodeError):
        return None
    return text if isinstance(text, str) else None


def _run(context: StageContext, command: str, pair: Pair, done_before: int) -> int:
    """One command, its output passed on; returns the documents that it said it has done."""
    print(f"$ {command}", flush=True)
    environment = {name: value for name, value in os.environ.items() if name not in NOT_FOR_CHILD}
    environment["PYTHONPATH"] = context.plan["derived"]["pythonpath"]
    done = 0
    lines: deque[str] = deque(maxlen=60)
    try:
        process = subprocess.Popen(
            shlex.split(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    except OSError as error:
        raise InputError(
            f"{shlex.split(command)[0]} could not be started: {error.strerror}",
            "megatron.python is the Python of the checkout's environment",
        ) from None
    try:
        for line in _lines(process, context):
            print(line.decode("utf-8", "replace"), flush=True)
            lines.append(line.decode("utf-8", "replace").strip())
            if match := PROGRESS.search(line):
                done = int(match[1])
                speed = {"documents_per_s": float(match[2]), "mb_per_s": float(match[3])}
                context.progress(done_before + done, None, "documents", file=pair.source, **speed)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what a worker left; the process itself has ended, or must
        process.wait()
    if context.stop_requested:
        raise StageStopped
    if (fault := fault_of(Path(pair.prefix))) is not None:
        raise _failure(pair, process.returncode, fault, list(lines))
    return done


def _lines(process: subprocess.Popen[bytes], context: StageContext) -> Iterator[bytes]:
    """What the process prints, until it ends or a stop is asked for."""
    assert process.stdout is not None
    pipe, rest = process.stdout.fileno(), b""
    while not context.stop_requested:
        ended = process.poll() is not None
        ready, _, _ = select.select([pipe], [], [], 0 if ended else 0.2)
        chunk = os.read(pipe, 1 << 16) if ready else b""
        if (ready and not chunk) or (ended and not ready):  # a worker that is left may hold the pipe open
            break
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _failure(pair: Pair, code: int, fault: str, lines: list[str]) -> InputError | StageError:
    said = next((line for line in reversed(lines) if ERROR.match(line)), lines[-1] if lines else "nothing")
    words = f"preprocess_data.py ended with exit code {code} and left no whole token files of {pair.source}: {fault}; it said: {said}"
    if any(BAD_LINE.match(line) for line in lines):
        seen = look_into([pair.source], pair.key)
        which = f" (the first: {seen.first_rejected})" if seen.first_rejected else ""
        return InputError(
            words,
            f"it takes no line without a text under {pair.key!r}{which}: mend the file, or --set data.tool=own, which passes "
            "such lines over and counts them",
        )
    return StageError(words, "see the lines above; `llm-wizard doctor` looks at the checkout and its environment")


def _describe(context: StageContext, prefixes: list[Path], model: ModelFile, eod: int) -> dict[str, Any]:
    """The manifest, from the token files themselves; they are read once."""

    def on_progress(done: int, total: int) -> None:
        if context.stop_requested:
            raise StageStopped
        context.progress(done, total, "tokens")

    histogram, documents, longest, text_bytes = np.zeros(len(model.pieces), np.int64), 0, 0, 0
    each: list[dict[str, Any]] = []
    for prefix in prefixes:
        found = AdoptedData(prefix, model, eod, context.preset.data.split, on_progress)
        histogram += found.histogram
        documents += found.data.documents
        longest = max(longest, int(found.sizes.max()))
        text_bytes += sum(part["text_bytes"] for part in found.splits.values())
        each.append(
            {
                "prefix": str(prefix),
                "documents": found.data.documents,
                "tokens": int(found.histogram.sum()),
                "dtype": found.data.dtype.name,
                "splits": found.splits,
                "bin_sha256": found.bin_sha256,
                "idx_sha256": found.idx_sha256,
            }
        )
    tokens = int(histogram.sum())
    return {
        "source": "preprocess_data",
        "prefixes": [str(prefix) for prefix in prefixes],
        "documents": documents,
        "tokens": tokens,
        "text_bytes": text_bytes,
        "longest_document": longest,
        "bytes_per_token": text_bytes / tokens,
        "unigram_entropy_nats": unigram_entropy_nats(histogram),
        "rows": documents,
        "rejected": 0,
        "append_eod": context.preset.data.append_eod,
        "split": context.preset.data.split,
        "files": each,
        **({name: each[0][name] for name in ("dtype", "splits", "bin_sha256", "idx_sha256")} if len(each) == 1 else {}),
    }
