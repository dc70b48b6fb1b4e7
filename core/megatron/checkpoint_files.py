"""The checkpoints that Megatron-DeepSpeed leaves in its folder: which are complete, and two pointers that must say the same.

    global_step1000/                    layer_01-model_00-model_states.pt ..., mp_rank_00_model_states.pt ..., zero_pp_rank_...
    latest                              "global_step1000": what DeepSpeed loads
    latest_checkpointed_iteration.txt   "1000": what Megatron's own tools read

Every rank writes its files there directly, and the pointers come afterwards, one after the other, neither of them atomically: a
training that is killed while it saves leaves half a folder, or pointers that differ. Nothing is ever deleted here. Standard library.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

POINTER = "latest"
TRACKER = "latest_checkpointed_iteration.txt"
STEP_FOLDER = re.compile(r"global_step(\d+)")
_ZERO_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_END_OF_ZIP = b"PK\x05\x06"
_END_BYTES = 22


@dataclass(frozen=True)
class FileLayout:
    """What a checkpoint of one training must consist of. `layers` are transformer layers."""

    layers: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    pipeline_engine: bool = True
    untied: bool = False
    """Whether the output layer has a matrix of its own, in a layer file of its own."""
    zero: int = 0
    partitioned: bool = False
    """Whether the optimizer's state is in files of its own: with ZeRO, and always with bf16."""

    def required(self) -> set[str]:
        """The names of the files, but for those with the optimizer's state, which have a different one in bf16."""
        names = set()
        if self.pipeline_engine:
            last = self.layers + (3 if self.untied else 2)
            names |= {
                f"layer_{layer:02d}-model_{rank:02d}-model_states.pt"
                for layer in range(1, last + 1)
                for rank in range(self.tensor_parallel)
            }
        for rank in range(self._model_ranks):
            if self.zero == 3:
                names |= {
                    f"zero_pp_rank_{data}_mp_rank_{rank:02d}_model_states.pt" for data in range(self.data_parallel)
                }
            else:
                names.add(f"mp_rank_{rank:02d}_model_states.pt")
        return names

    def missing(self, names: Iterable[str]) -> list[str]:
        """What a folder with files of these names lacks."""
        present = set(names)
        lacking = self.required() - present
        if self.partitioned:
            found = {(int(match[1]), int(match[2])) for name in present if (match := _ZERO_FILE.fullmatch(name))}
            lacking |= {
                f"zero_pp_rank_{data}_mp_rank_{rank:02d}_optim_states.pt"
                for data in range(self.data_parallel)
                for rank in range(self._model_ranks)
                if (data, rank) not in found
            }
        return sorted(lacking)

    @property
    def _model_ranks(self) -> int:
        return self.tensor_parallel * (self.pipeline_parallel if self.pipeline_engine else 1)


def layout_of(argv: Sequence[str], processes: int) -> FileLayout:
    """The layout from the command that trains: whatever a preset says, this is what is run. `processes` is the world size."""
    options = {word: value for word, value in zip(argv, [*argv[1:], ""], strict=True) if word.startswith("--")}
    tensor = int(options.get("--tensor-model-parallel-size", 1))
    pipeline = int(options.get("--pipeline-model-parallel-size", 1))
    zero = int(options.get("--zero-stage", 1))  # Megatron's own default
    return FileLayout(
        layers=int(options["--num-layers"]),
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        data_parallel=max(1, processes // (tensor * pipeline)),
        pipeline_engine="--no-pipeline-parallel" not in options,
        untied="--untie-embeddings-and-output-weights" in options,
        zero=zero,
        partitioned=zero > 0 or "--bf16" in options,
    )


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """The global_stepN folders with their steps, the newest first; whether they are complete is another question."""
    try:
        found = [(int(match[1]), path) for path in folder.iterdir() if (match := STEP_FOLDER.fullmatch(path.name))]
    except OSError:
        return []
    return sorted(found, reverse=True)


def what_is_wrong(folder: Path, layout: FileLayout) -> str:
    """Why a global_stepN folder is no complete checkpoint; empty where it is one."""
    try:
        names = [path.name for path in folder.iterdir()]
        if missing := layout.missing(names):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            return f"{missing[0]}{more} is missing"
        torn = [name for name in sorted(names) if name.endswith(".pt") and not is_whole(folder / name)]
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return f"{torn[0]} was not written to its end" if torn else ""


def is_whole(path: Path) -> bool:
    """Whether a file of torch.save was written to its end, where zip has its directory. Its content is not read."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < _END_BYTES:
            return False
        file.seek(size - _END_BYTES)
        end = file.read(_END_BYTES)
        if not end.startswith(_END_OF_ZIP):
            return False
        length, begin = int.from_bytes(end[12:16], "little"), int.from_bytes(end[16:20], "little")
        if begin == 0xFFFFFFFF or length == 0xFFFFFFFF:  # zip64, from 4 GiB on: the true numbers stand before
            return True
        if begin + length > size - _END_BYTES:
            return False
        file.seek(begin)
        return file.read(4) == b"PK\x01\x02"


def newest_complete(folder: Path, layout: FileLayout) -> int | None:
    """The step of the newest complete checkpoint."""
    return next((step for step, path in step_folders(folder) if not what_is_wrong(path, layout)), None)


def mend(folder: Path, layout: FileLayout, say: Callable[[str], None]) -> int | None:
    """Make the newest complete checkpoint the one that both pointers name, and return its step; None where there is none.

    Newer folders that are not complete are put aside under another name, as are pointers to nothing; `say` is told in words.

    Raises:
        OSError: the folder cannot be changed.
    """
    found: int | None = None
    for step, path in step_folders(folder):
        wrong = what_is_wrong(path, layout)
        if not wrong:
            found = step
            break
        aside = _put_aside(path, "incomplete")
        say(f"{path.name} is not a complete checkpoint ({wrong}); it is kept as {aside.name} and not used")
    for name, wanted in ((POINTER, f"global_step{found}"), (TRACKER, str(found))):
        pointer = folder / name
        said = _content(pointer)
        if found is None:
            if said is not None:
                aside = _put_aside(pointer, "stale")
                say(f"{name} says {said!r}, where there is no complete checkpoint; it is kept as {aside.name}")
        elif said != wanted:
            say(
                f"{name} said {said if said is not None else 'nothing'!r}; now {wanted!r}, the newest complete checkpoint"
            )
            _write(pointer, wanted)
    return found


def _content(pointer: Path) -> str | None:
    try:
        return pointer.read_bytes()[:100].decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return None


def _put_aside(path: Path, why: str) -> Path:
    aside = path.with_name(f"{path.name}.{why}-{time.strftime('%Y%m%d-%H%M%S')}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{why}-{time.strftime('%Y%m%d-%H%M%S')}-{number}")
    path.rename(aside)
    return aside


def _write(pointer: Path, text: str) -> None:
    beside = pointer.with_name(f".{pointer.name}.tmp")
    beside.write_text(text)
    beside.replace(pointer)
