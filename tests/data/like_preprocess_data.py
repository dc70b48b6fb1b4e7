"""Behaves like Megatron-DeepSpeed's tools/preprocess_data.py: its options, its progress lines, its index without the ends of documents,
and its exit code 0 whatever happens to the process that does the work.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, os.environ["REPOSITORY"])
from core.data.encode import DocumentEncoder
from core.data.indexed import Index, write_index


def work(options: argparse.Namespace) -> None:
    print("Opening", options.input)
    key = options.json_keys[0]
    encoder = DocumentEncoder(Path(options.tokenizer_model), options.append_eod)
    prefix = f"{options.output_prefix}_{key}_document"
    sizes = []
    with Path(options.input).open(encoding="utf-8") as lines, Path(f"{prefix}.bin").open("wb") as out:
        for count, line in enumerate(lines, 1):
            parts = encoder.encode(json.loads(line)[key])
            out.write(b"".join(part.tobytes() for part in parts))
            sizes.append(sum(map(len, parts)) - options.append_eod)
            if count % 100 == 0:
                print(f"Processed {count} documents ({count / 0.5} docs/s, {1.25} MB/s).", file=sys.stderr, flush=True)
            if "slow" in options.input:
                time.sleep(0.05)
    index = Index(encoder.dtype, np.array(sizes, np.int32), np.arange(len(sizes) + 1, dtype=np.int64))
    write_index(Path(f"{prefix}.idx"), index)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("tokenizer-type", "tokenizer-model", "input", "output-prefix", "dataset-impl", "workers"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--json-keys", nargs="+", default=["text"])
    parser.add_argument("--append-eod", action="store_true")
    process = multiprocessing.Process(target=work, args=(parser.parse_args(),))
    process.start()
    process.join()


if __name__ == "__main__":
    main()
