"""megatron.start_from may name a Hugging Face folder: before the training it is laid out as files that Megatron loads.

That needs PyTorch, which the supervisor does without: core.megatron.to_layers does it in a process of its own, under the
Python of the convert stage.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import InputError, StageError
from core.exit_codes import ExitCode
from core.files import read_json
from core.megatron.checkpoint_files import layout_of
from core.megatron.own_arguments import VOCAB_MULTIPLE
from core.runs.directory import RunDirectory


def is_model_folder(path: Path) -> bool:
    """Whether this is a Hugging Face model folder."""
    return (path / "config.json").is_file()


def lay_out(source: Path, checkpoints: Path, argv: Sequence[str], run: RunDirectory) -> Path:
    """Write `source` beside the training's own `checkpoints` as the command `argv` divides the model; returns the folder to load.

    Beside the checkpoints, because that is a place that all nodes see. What is there from an earlier attempt is made anew.

    Raises:
        InputError: Megatron cannot compute this model, or not divided like this.
        StageError: it could not be written.
    """
    target = checkpoints.with_name(f"{checkpoints.name}_start")
    shutil.rmtree(target, ignore_errors=True)
    layout = layout_of(argv, 1)
    words = ["--tensor-parallel", str(layout.tensor_parallel), "--pipeline-parallel", str(layout.pipeline_parallel)]
    words += [] if layout.pipeline_engine else ["--no-pipeline-engine"]
    words += ["--tokenizer-model", _tokenizer(argv), "--rows", str(embedding_rows(argv, layout.tensor_parallel))]
    stages: list[Mapping[str, Any]] = read_json(run.plan)["stages"]
    convert = next(stage for stage in stages if stage["id"] == "convert")
    done = subprocess.run(
        [convert["argv"][0], "-m", "core.megatron.to_layers", str(source), str(target), *words],
        env={**os.environ, **convert["env"]},
        cwd=run.root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "no word")
        kind = InputError if done.returncode == ExitCode.USAGE else StageError
        raise kind(
            f"megatron.start_from: {said.removeprefix('error: ')}",
            "name a folder that the convert stage made, or a Megatron checkpoint folder with the file `latest`",
        )
    return target


def embedding_rows(argv: Sequence[str], tensor_parallel: int) -> int:
    """Rows of the embedding that the command's Megatron makes of its tokenizer."""
    from core.tokenizer.megatron_ids import megatron_ids

    option = "--make-vocab-size-divisible-by"
    multiple = int(argv[argv.index(option) + 1]) if option in argv else VOCAB_MULTIPLE
    multiple *= tensor_parallel
    size = megatron_ids(Path(_tokenizer(argv)).read_bytes()).size
    return -(-size // multiple) * multiple


def _tokenizer(argv: Sequence[str]) -> str:
    return argv[argv.index("--tokenizer-model") + 1]
