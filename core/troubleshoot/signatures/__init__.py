"""The known failures: one YAML file a category, read when first asked for."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml
from pydantic import ValidationError

from core.errors import InputError
from core.troubleshoot.signature import Signature

FOLDER = Path(__file__).parent
# The files are our own, so speed counts: read_yaml_file, made for users' presets, takes a quarter of a second for them.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@lru_cache(maxsize=1)
def load_signatures() -> tuple[Signature, ...]:
    """All signatures, by category. Raises InputError with the file for one that is not well formed."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        for entry in yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER):  # noqa: S506 (a safe loader)
            try:
                found.append(Signature.model_validate({"category": path.stem, **entry}))
            except ValidationError as error:
                raise InputError(f"{path}: {entry.get('id')}: {error}") from None
    return tuple(found)
