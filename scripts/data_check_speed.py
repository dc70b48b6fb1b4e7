"""How fast `llm-wizard data check` reads and mends: `python scripts/data_check_speed.py [--gb 4] [--folder DIR]`.

Token files of random ids in documents of about 1,000 tokens are written first, so that they are in the page cache where memory allows:
what is measured is the work, not the disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from core.data.check import Vocabulary, check
from core.data.indexed import Index, IndexedWriter, files_of, read_index, write_index

EOD, PIECES = 6, 32000
VOCABULARY = Vocabulary(PIECES, PIECES + 3, (EOD,))


def write_files(prefix: Path, size: float) -> None:
    order = np.random.default_rng(1)
    with IndexedWriter(prefix, np.uint16) as writer:
        while writer.tokens * 2 < size:
            sizes = order.integers(500, 1500, 4096)
            tokens = order.integers(300, PIECES, sizes.sum(), np.uint16)
            tokens[np.cumsum(sizes) - 1] = EOD
            writer.add(tokens, sizes.tolist())
        writer.commit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4)
    parser.add_argument(
        "--folder", type=Path, help="where the files are written; the system's folder for temporary ones when not given"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        prefix = Path(scratch) / "speed"
        write_files(prefix, options.gb * 1e9)
        bin_path, idx_path = files_of(prefix)
        size, index = bin_path.stat().st_size / 1e9, read_index(idx_path)
        print(f"{size:.1f} GB, {index.tokens:,} tokens, {len(index.sizes):,} documents\n")
        print("| | seconds | GB/s of .bin |\n|---|---|---|")

        def measure(what: str, vocabulary: Vocabulary | None, mend: bool = False) -> None:
            began = time.perf_counter()
            report = check(prefix, vocabulary)
            if mend:
                assert report.repair is not None
                report.repair.carry_out()
            seconds = time.perf_counter() - began
            print(f"| {what} | {seconds:.2f} | {size / seconds:.1f} |", flush=True)

        measure("whole files, without the tokenizer", None)
        measure("whole files, every token by the tokenizer", VOCABULARY)
        write_index(idx_path, Index(index.dtype, index.sizes - 1, index.documents))
        measure("forgotten end of documents, found and mended with the tokenizer", VOCABULARY, mend=True)
        write_index(idx_path, Index(index.dtype, index.sizes - 1, index.documents))
        measure("the same without it", None, mend=True)
        idx_path.unlink()
        measure("lost index, made again", VOCABULARY, mend=True)


if __name__ == "__main__":
    main()
