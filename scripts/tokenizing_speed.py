"""How fast the data stage tokenizes, by number of processes: `python scripts/tokenizing_speed.py [--mb 64] [--workers 1 2]`.

Text is Python's documentation and source, repeated in another order each time; the tokenizers are trained on it first. Start-up of
the processes is inside the measured time, as it is for a user.
"""

from __future__ import annotations

import argparse
import os
import random
import sysconfig
import tempfile
import time
from pathlib import Path
from pydoc_data import topics

import orjson

from core.data.indexed import IndexedWriter, token_dtype
from core.data.workers import Recipe, batches, encode_all
from core.stages.tokenizer import TokenizerSection
from core.text.readers import documents
from core.text.records import Position
from core.tokenizer.train import TrainingLines, train


def write_corpus(path: Path, megabytes: int) -> None:
    texts = [str(text) for text in topics.topics.values()]
    texts += [file.read_text("utf-8", "replace") for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    order, size = random.Random(1), 0
    with path.open("wb") as file:
        while size < megabytes << 20:
            for text in order.sample(texts, len(texts)):
                size += file.write(orjson.dumps({"text": text.replace("\0", "")}) + b"\n")


def make_model(corpus: Path, folder: Path, model_type: str, vocab_size: int) -> Path:
    section = TokenizerSection(
        vocab_size=vocab_size, model_type=model_type, input_sentence_size=50_000, shuffle_input_sentence=False
    )
    position = Position()
    lines = TrainingLines(100, section.max_sentence_length, True, 1, position)
    path = folder / f"{model_type}.model"
    path.write_bytes(train(section, lines, documents([str(corpus)], position=position), 1, folder))
    return path


def measure(corpus: Path, model: Path, workers: int, prefix: Path, vocab_size: int) -> tuple[float, int]:
    """Seconds and tokens."""
    recipe = Recipe(str(model), append_eod=True, text_key="text", normalize="none")
    began = time.perf_counter()
    with IndexedWriter(prefix, token_dtype(vocab_size)) as writer:
        for encoded in encode_all(batches([str(corpus)], "text", Position()), recipe, workers):
            writer.add(encoded.tokens, encoded.sizes)
        writer.commit()
    return time.perf_counter() - began, writer.tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus = folder / "corpus.jsonl"
        write_corpus(corpus, options.mb)
        size = corpus.stat().st_size / 1e6
        print(
            f"{size:.0f} MB of JSONL, vocabulary {options.vocab_size}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
        )
        print("| model | processes | seconds | MB/s | tokens/s | against the first |\n|---|---|---|---|---|---|")
        for model_type in ("unigram", "bpe"):
            model = make_model(corpus, folder, model_type, options.vocab_size)
            first = 0.0
            for workers in options.workers:
                seconds, tokens = measure(corpus, model, workers, folder / "data", options.vocab_size)
                first = first or seconds
                print(
                    f"| {model_type} | {workers} | {seconds:.1f} | {size / seconds:.1f} | {tokens / seconds:,.0f} "
                    f"| {first / seconds:.2f} x |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
