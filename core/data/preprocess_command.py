"""The commands of Megatron-DeepSpeed's tools/preprocess_data.py, as the original's preprocess_data.sh gives them: one for each file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import InputError
from core.facts import Facts
from core.runs.directory import RunDirectory

if TYPE_CHECKING:
    from core.preset import Preset

SCRIPT = "tools/preprocess_data.py"
_FOLDER = (
    "step2_pretrain_model/gcp_play_node-1_gpu-2/dataset-mc4ja_wikija-tokenizer-sentencepiece_gpt_neox_xb_gpt_0.125B/"
)
ORIGINALS = (f"{_FOLDER}preprocess_data.sh", f"{_FOLDER}preprocess_data_sbatch.sh")
"""The original's scripts that do this, by their paths below train/scripts; the second is the first as a Slurm job."""


@dataclass(frozen=True)
class Pair:
    """One corpus file and the token files that it becomes, {prefix}.bin and {prefix}.idx."""

    source: str
    output_prefix: str
    """What --output-prefix gets."""
    key: str
    """The field of a record that holds the text."""

    @property
    def prefix(self) -> str:
        """preprocess_data.py appends the key and the level to the prefix."""
        return f"{self.output_prefix}_{self.key}_document"


def pairs(preset: Preset, files: list[str], run: RunDirectory) -> list[Pair]:
    """The token files of each corpus file, in the folder that the preset or the run has for them."""
    folder = preset.data.output_folder or str(run.data_prefix.parent)
    key = preset.corpus.text_key
    return [Pair(file, f"{folder}/{Path(file).name.removesuffix('.jsonl')}", key) for file in files]


def checked_pairs(preset: Preset, files: list[str], run: RunDirectory) -> list[Pair]:
    """`pairs`, where preprocess_data.py can do what the preset asks for.

    Raises:
        InputError: no checkout, a file that it cannot read, two files that would become one, or a choice that it does not have.
    """
    if not preset.megatron.checkout:
        raise InputError(
            "data.tool is preprocess_data, which is part of a Megatron-DeepSpeed checkout, and megatron.checkout names none",
            "--set megatron.checkout=DIR, or --set data.tool=own",
        )
    if preset.corpus.normalize != "none":
        raise InputError(
            "preprocess_data.py does not normalise the text", "--set corpus.normalize=none, or --set data.tool=own"
        )
    if unread := [file for file in files if not file.endswith(".jsonl")]:
        raise InputError(
            f"preprocess_data.py reads uncompressed .jsonl files; {unread[0]} is none", "--set data.tool=own reads it"
        )
    found = pairs(preset, files, run)
    places: dict[str, str] = {}
    for pair in found:
        if other := places.get(pair.prefix):
            raise InputError(
                f"{other} and {pair.source} would both become {pair.prefix}.bin",
                "give the files different names, or --set data.tool=own",
            )
        places[pair.prefix] = pair.source
    if preset.pretrain.backend == "embedded" and len(found) > 1:
        raise InputError(
            f"preprocess_data.py makes token files of each of {len(found)} corpus files; pretrain.backend=embedded reads one",
            "--set data.tool=own puts all of them into one, or --set pretrain.backend=megatron blends them",
        )
    if preset.pretrain.backend == "embedded" and preset.megatron.strict_original and preset.data.append_eod:
        raise InputError(
            "megatron.strict_original leaves the index as preprocess_data.py --append-eod writes it, which pretrain.backend=embedded "
            "does not read: it would find all documents but the first at a wrong place",
            "--set megatron.strict_original=false",
        )
    return found


def argv(preset: Preset, python: str, tokenizer: str, pair: Pair, workers: int) -> list[str]:
    """The command for one file, argument by argument that of preprocess_data.sh."""
    command = [
        python, f"{preset.megatron.checkout}/{SCRIPT}",
        "--tokenizer-type", "SentencePieceTokenizer",
        "--tokenizer-model", tokenizer,
        "--input", pair.source,
        "--output-prefix", pair.output_prefix,
        "--dataset-impl", "mmap",
        "--workers", str(workers),
    ]  # fmt: skip
    if pair.key != "text":
        command += ["--json-keys", pair.key]
    if preset.data.append_eod:
        command.append("--append-eod")
    return command


def python_path(preset: Preset, facts: Facts, run: RunDirectory) -> str:
    """The checkout before all else: an installed megatron-core would be imported in its place. On a machine with a GPU it also
    imports apex.
    """
    path = [str(preset.megatron.checkout)]
    if preset.megatron.apex == "shim" or not facts.gpus:
        path.append(str(run.code / "core" / "megatron" / "shim"))
    return ":".join(path)


def corrections(preset: Preset) -> list[dict[str, str]]:
    """What is done otherwise than preprocess_data.sh does; empty where the original is followed to the letter."""
    if preset.megatron.strict_original:
        return []
    found = [
        {
            "what": "success",
            "original": "the exit code, which is 0 also after a bad line",
            "here": "both files are there and their sizes fit",
            "why": "preprocess_data.py ignores how its worker ended and leaves a .bin without .idx",
        },
        {
            "what": "files that are there already",
            "original": "used when both exist",
            "here": "used when they are whole and hold this text in this tokenizer's ids",
            "why": "half-written files and those of another tokenizer were used silently",
        },
    ]
    if preset.data.append_eod:
        found.append(
            {
                "what": "--append-eod",
                "original": "the .idx leaves the end-of-document token out of every document's size",
                "here": "the .idx is repaired after each command",
                "why": "every document but the first was read at a wrong place (NVIDIA/Megatron-LM issue 431)",
            }
        )
    return found
