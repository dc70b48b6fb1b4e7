"""What to attach to a bug report about a failure that nobody knows yet: a small archive without secrets."""

from __future__ import annotations

import io
import os
import platform
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import orjson

from core import __version__
from core.errors import InputError
from core.runs.directory import RunDirectory
from core.runs.masking import Masker
from core.troubleshoot.diagnose import Diagnosis

LARGEST = 4 << 20
"""Bytes of one file of a run that go into the archive."""


def write_bundle(path: Path, diagnosis: Diagnosis, runs: Sequence[RunDirectory]) -> None:
    """Write `path` (.tar.gz, mode 0600): the diagnosis, the excerpt, and of each run its plan, state and environment report.

    Tokens are masked and the home folder is written as ~.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    parts = {
        "diagnosis.json": orjson.dumps(diagnosis.document(), option=orjson.OPT_INDENT_2),
        "excerpt.txt": "\n".join([diagnosis.excerpt_place, *diagnosis.excerpt, ""]).encode(),
        "tool.json": orjson.dumps(
            {"llm-wizard": __version__, "python": sys.version, "platform": platform.platform()},
            option=orjson.OPT_INDENT_2,
        ),
    }
    for run in runs:
        for name, source in (
            ("plan.json", run.plan),
            ("state.json", run.state),
            ("environment.json", run.stage("environment") / "report.json"),
        ):
            if source.is_file() and source.stat().st_size <= LARGEST:
                parts[f"{run.name}/{name}"] = source.read_bytes()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise InputError(f"{path} exists", "name another file with --bundle") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", "name another place with --bundle") from None
    masker = Masker()
    home = os.path.expanduser("~").rstrip("/").encode()  # noqa: PTH111 (Path.home raises where there is none)
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in parts.items():
            data = b"\n".join(masker.mask(line) for line in data.split(b"\n"))
            data = data.replace(home, b"~") if len(home) > 1 else data
            entry = tarfile.TarInfo(f"llm-wizard-diagnosis/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
