"""What an upload contains: an allow-list of a model folder's files, scanned for secrets, with a manifest beside it."""

from __future__ import annotations

import fnmatch
import os
import shutil
from pathlib import Path

from core.errors import InputError, StageError
from core.files import sha256, write_json
from core.hub.scan import find_secret

ALLOWED = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "*.model",
    "README.md",
)
NEEDED = (("config.json",), ("*.safetensors",), ("tokenizer.json", "*.model"))


def select(source: Path) -> tuple[list[Path], list[str]]:
    """The files of a model folder that may be published, and the names of what stays behind.

    Raises:
        InputError: the folder lacks a config, safetensors weights or a tokenizer.
    """
    if not source.is_dir():
        raise InputError(f"there is no model folder {source}", "run the stage that makes it, or name one with `model`")
    entries = sorted(source.iterdir())
    files = [path for path in entries if path.is_file() and _matches(path.name, ALLOWED)]
    for patterns in NEEDED:
        if not any(_matches(path.name, patterns) for path in files):
            raise InputError(f"{source} is no model folder that can be published: it has no {' or '.join(patterns)}")
    return files, [path.name for path in entries if path not in files]


def fill(folder: Path, files: list[Path], card: str | None) -> None:
    """Put the files (hard links where the file system can) and the model card into an empty folder."""
    for file in files:
        target = folder / file.name
        try:
            # A link in a Hub cache points to the blob: publish what it names, not the link.
            os.link(file.resolve(), target)
        except OSError:
            shutil.copyfile(file, target)
    if card is not None:
        readme = folder / "README.md"
        readme.unlink(missing_ok=True)
        readme.write_text(card, encoding="utf-8")


def refuse_secrets(files: list[Path]) -> None:
    """Raises StageError naming the first file with something that must not be published, and its kind; never the value."""
    for file in files:
        kind = find_secret(file)
        if kind:
            raise StageError(
                f"nothing was published: {file.name} contains {kind}",
                f"take it out of the model folder's {file.name} and start again",
            )


def write_manifest(folder: Path, manifest: Path) -> list[dict[str, object]]:
    """Name, size and SHA-256 of every file in `folder`, written to `manifest` (outside of it) and returned."""
    entries: list[dict[str, object]] = [
        {"name": file.name, "size": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())
    ]
    write_json(manifest, {"schema_version": 1, "files": entries})
    return entries


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
