"""Whether the folder that transformers' Trainer saved into holds a whole model, told from its files alone: nothing is loaded."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from core.files import read_json

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.index.json",
    "pytorch_model*.bin",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)
"""What belongs to a model. Checkpoints, the trainer's pickled arguments and TensorBoard's files do not."""
FROM_SOURCE = ("*.model", "chat_template.jinja")
"""What an older transformers does not save along: SentencePiece's file beside a tokenizer.json, and the template as a file."""


def model_files(folder: Path) -> list[Path]:
    """The files of the model at the top of the folder."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if path.is_file() and any(fnmatchcase(path.name, name) for name in MODEL_FILES)]


def what_is_missing(folder: Path) -> str:
    """In words what keeps the folder from being a whole model; "" where nothing does."""
    for name in ("config.json", "tokenizer_config.json"):
        try:
            read_json(folder / name)
        except FileNotFoundError:
            return f"there is no {name} in {folder}"
        except ValueError:
            return f"{folder / name} is cut off"
    for name in INDEXES:
        if (folder / name).is_file():
            try:
                parts = sorted(set(read_json(folder / name)["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError):
                return f"{folder / name} is cut off"
            return next((fault for part in parts if (fault := _fault_of(folder / str(part)))), "")
    weights = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    return _fault_of(weights[0]) if weights else f"there are no weights ({' or '.join(WEIGHTS)}) in {folder}"


def _fault_of(path: Path) -> str:
    try:
        return _fault_of_safetensors(path) if path.suffix == ".safetensors" else _fault_of_pickle(path)
    except FileNotFoundError:
        return f"there is no {path.name} in {path.parent}"


def _fault_of_safetensors(path: Path) -> str:
    """The header has the place of every tensor; the last one ends where the file ends (safetensors' format description)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return f"{path} is cut off"
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError:
            return f"{path} is damaged: its header cannot be read"
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if not tensors:
        return f"{path} has no weights"
    if empty := [name for name, entry in tensors.items() if 0 in entry["shape"]]:
        return f"{path} has empty weights, such as {empty[0]}: the ranks' parts were not put together"
    expected = 8 + length + max(int(entry["data_offsets"][1]) for entry in tensors.values())
    return "" if size == expected else f"{path} has {size} bytes, and its header speaks of {expected}"


def _fault_of_pickle(path: Path) -> str:
    """torch.save writes a zip file, whose list of contents comes last."""
    path.stat()
    return "" if zipfile.is_zipfile(path) else f"{path} is cut off, or no file of torch.save"


def gather(output: Path, source: Path, target: Path) -> None:
    """Put the model of `output` into the empty folder `target`, as hard links, and what its tokenizer had in `source`."""
    files = {path.name: path for path in model_files(output)}
    for path in sorted(source.iterdir()):
        if path.is_file() and any(fnmatchcase(path.name, name) for name in FROM_SOURCE):
            files.setdefault(path.name, path)
    for name, path in files.items():
        if path.parent == output:
            try:
                os.link(path, target / name)
                continue
            except OSError:
                pass
        shutil.copyfile(path, target / name)
