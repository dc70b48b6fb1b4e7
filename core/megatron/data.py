"""Which token files a Megatron training reads, and how they are blended: in proportion to their bytes, as the original does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import InputError
from core.megatron.originals import ORIGINALS
from core.megatron.section import MegatronSection
from core.stages.command import BYTES

if TYPE_CHECKING:
    from core.preset import Preset

PATTERN = "*_text_document.bin"


def named_elsewhere(section: MegatronSection) -> bool:
    """Whether the preset names the token files to read."""
    return bool(section.data_files or section.data_folders)


def follows_arxiv(preset: Preset) -> bool:
    """Whether the token files are those that an original script reads, whatever the data stage makes."""
    original = ORIGINALS.get(preset.original)
    return preset.megatron.strict_original and original is not None and original.arxiv


def read_instead(preset: Preset, made: list[str]) -> str:
    """Why nobody would read what the data stage makes (the prefixes `made`); "" where it is read."""
    section = preset.megatron
    if named_elsewhere(section):
        return f"megatron.{'data_files' if section.data_files else 'data_folders'} names the token files"
    if follows_arxiv(preset) and made != [arxiv_prefix(section)]:
        return f"megatron.strict_original reads {arxiv_prefix(section)}"
    return ""


def arxiv_prefix(section: MegatronSection) -> str:
    """The token files that most of the original's scripts read, and make where they are missing."""
    return f"{section.checkout}/dataset/arxiv_text_document"


def files_to_look_at(section: MegatronSection) -> list[str]:
    """The .bin and .idx files whose sizes the plan needs. What cannot be listed has none."""
    prefixes = list(section.data_files)
    for folder in section.data_folders:
        prefixes += sorted(str(path).removesuffix(".bin") for path in Path(folder).glob(PATTERN))
    return [f"{prefix}{ending}" for prefix in prefixes for ending in (".bin", ".idx")]


def blended(section: MegatronSection, sizes: Mapping[str, int]) -> list[str]:
    """The prefixes to read: those that are named, then those in the folders, by name; `sizes` are of `files_to_look_at`.

    A .bin without its .idx is passed over in a folder, as the original does.

    Raises:
        InputError: a named file is missing, or a folder has none.
    """
    prefixes = list(section.data_files)
    for prefix in prefixes:
        for ending in (".bin", ".idx"):
            if f"{prefix}{ending}" not in sizes:
                raise InputError(
                    f"megatron.data_files: there is no file {prefix}{ending}",
                    "give prefixes: the names of the token files without .bin and .idx",
                )
    for folder in section.data_folders:
        found = sorted(
            name.removesuffix(".bin")
            for name in sizes
            if name.endswith("_text_document.bin") and Path(name).parent == Path(folder)
        )
        found = [prefix for prefix in found if f"{prefix}.idx" in sizes and prefix not in section.data_files]
        if not found:
            raise InputError(
                f"megatron.data_folders: there is no {PATTERN} with its .idx in {folder}",
                "--set megatron.data_folders=[FOLDER,...] names yours; --set megatron.data_folders=[] tokenizes corpus.files",
            )
        prefixes += found
    return prefixes


def data_words(section: MegatronSection, prefixes: list[str], sizes: Mapping[str, int]) -> list[str]:
    """The words of --data-path: weight and prefix of each, or one prefix alone."""
    if len(prefixes) == 1 and not section.data_folders:
        return prefixes
    weights = [sizes[f"{prefix}.bin"] + sizes[f"{prefix}.idx"] for prefix in prefixes]
    return [word for weight, prefix in zip(weights, prefixes, strict=True) for word in (str(weight), prefix)]


def weigh(argv: Sequence[str]) -> list[str]:
    """A command with the bytes of token files that the run itself has made since it was planned.

    Raises:
        InputError: one of them is missing.
    """
    words = list(argv)
    for place, word in enumerate(words):
        if word != BYTES:
            continue
        files = [Path(f"{words[place + 1]}{ending}") for ending in (".bin", ".idx")]
        try:
            words[place] = str(sum(file.stat().st_size for file in files))
        except OSError as error:
            raise InputError(
                f"the token file {error.filename} does not exist", "the data stage makes it: --from data"
            ) from None
    return words
