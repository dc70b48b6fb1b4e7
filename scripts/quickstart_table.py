"""What a run of the quickstart cost and gave, from its own record.

python scripts/quickstart_table.py runs/quickstart
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path

from core.runs.directory import RunDirectory
from core.runs.state import read_status


def main(folder: str) -> None:
    document = read_status(RunDirectory(Path(folder).absolute())).document
    print(
        f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    )
    total = 0.0
    for stage_id, stage in document["stages"].items():
        if stage["state"] == "done":
            total += stage["ended"] - stage["started"]
            print(f"{stage_id:<20} {stage['ended'] - stage['started']:6.1f} s")
    print(f"{'all stages':<20} {total:6.1f} s")
    m = document["stages"]["pretrain"]["metrics"]
    print(
        f"validation loss {m['first_val_loss']:.3f} -> {m['val_loss']:.3f} ({m['val_loss'] / m['first_val_loss']:.1%})"
    )
    print(f"unigram entropy of the corpus {m['unigram_entropy_nats']:.3f} nats per token")
    print(f"{m['val_bits_per_byte']:.3f} bits per byte, {m['tokens_per_s']:,.0f} tokens/s")
    converted = document["stages"]["convert"]["metrics"]
    print("converted folder: ", {name: converted[name] for name in converted})


if __name__ == "__main__":
    main(*sys.argv[1:])
