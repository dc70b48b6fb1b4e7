"""Knowing a finished stage again: by its settings, the content of its inputs and the stages before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from core.files import content_key


def fingerprint(stage: Mapping[str, Any], made_by: Mapping[str, str]) -> str:
    """The SHA-256 over what a stage's result depends on.

    `stage` is its entry of plan.json; `made_by` maps the outputs of earlier stages (absolute paths) to the fingerprint of
    the stage that made them: such an input is known by how it was made, everything else by its content. A missing
    input counts as missing, so that its arrival changes the fingerprint.
    """
    inputs = {}
    for name, paths in stage["inputs"].items():
        inputs[name] = [_input_key(path, made_by) for path in paths]
    document = {"id": stage["id"], "settings": stage["settings"], "inputs": inputs}
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _input_key(path: str, made_by: Mapping[str, str]) -> str:
    if path in made_by:
        return f"stage-{made_by[path]}"
    file = Path(path)
    if file.is_dir():
        listing = "".join(f"{p.relative_to(file)} {content_key(p)}\n" for p in sorted(file.rglob("*")) if p.is_file())
        return hashlib.sha256(listing.encode()).hexdigest()
    return content_key(file) if file.is_file() else "missing"


def made_paths(stages: Iterable[Mapping[str, Any]], fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The outputs of the stages that have a fingerprint, as `fingerprint` wants them."""
    return {
        path: fingerprints[stage["id"]]
        for stage in stages
        if stage["id"] in fingerprints
        for path in stage["outputs"].values()
    }
