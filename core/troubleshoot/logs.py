"""From what a user names (files, folders, runs, standard input, .gz) to the logs in it."""

from __future__ import annotations

import gzip
import os
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import orjson

from core.errors import InputError
from core.runs.directory import RUN_NAME, RunDirectory
from core.troubleshoot.prefixes import Origin

STDIN = "-"
MOST_FILES = 2000
LOOKED_AT = 8192
_CONTROL = bytes({*range(1, 32), 127} - {*b"\a\b\t\n\v\f\r\x1b"})
_LOG_NAME = re.compile(
    r"\.(?:log|txt|out|err|stdout|stderr|gz)(?:\.\d+)?$|^(?:stdout|stderr|log|output)$|-\d+\.(?:out|err)$|\.[oe]\d+$"
)
_NOT_LOGS = frozenset({"code", "checkpoints", "outputs", "node_modules", "site-packages", "__pycache__", "requests"})
_RANK = re.compile(
    r"(?:^|[^a-z])(?:local_)?rank[_-]?(\d+)|(?:^|/)(\d+)/(?:stdout|stderr)\.log$|/attempt_\d+/(\d+)/", re.IGNORECASE
)
_HOST = re.compile(r"(?:^|[/_.-])((?:node|host|worker|gpu|compute)[_-]?\d+)", re.IGNORECASE)


def find_logs(names: Sequence[str], runs_dir: Path | None = None) -> list[Path]:
    """The files to read, in the order given; `-` stays as it is.

    Raises:
        InputError: a name is neither a file, a folder with logs, nor a run in `runs_dir`.
    """
    return [path for name in names for path in _logs_of(name, runs_dir)]


def _logs_of(name: str, runs_dir: Path | None) -> list[Path]:
    if not name:
        raise InputError("the name of a log is empty", "name a log file, a folder, a run, or - for standard input")
    path = Path(name)
    if name == STDIN or path.is_file():
        return [path]
    if (
        not path.is_dir()
        and runs_dir is not None
        and RUN_NAME.fullmatch(name)
        and (runs_dir / name / "plan.json").is_file()
    ):
        path = runs_dir / name
    if not path.is_dir():
        if path.exists() or path.is_symlink():
            return [path]  # a pipe, or what open will say something about
        raise InputError(
            f"there is no log, folder or run {name!r}", "name a log file, a folder, a run, or - for standard input"
        )
    if not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"{name} cannot be read: Permission denied")
    if (path / "plan.json").is_file() and (path / "stages").is_dir():
        return _logs_of_run(RunDirectory(path.absolute()), name)
    found = sorted(file for file in path.rglob("*") if _is_log(file, path))
    if not found:
        raise InputError(f"no logs in {name}", "looked for *.log, *.txt, *.out, *.err and *.gz below it")
    if len(found) > MOST_FILES:
        raise InputError(f"{name} holds {len(found)} logs; at most {MOST_FILES}", "name a folder further down")
    return found


def _logs_of_run(run: RunDirectory, name: str) -> list[Path]:
    """The log of the stage that failed or runs; all of them where the run is done. The supervisor's own comes last."""
    try:
        stages = orjson.loads(run.state.read_bytes())["stages"]
    except (OSError, ValueError, KeyError):
        stages = {}
    bad = [stage_id for stage_id, stage in stages.items() if stage.get("state") in ("failed", "running", "lost")]
    chosen = [run.log(stage_id) for stage_id in bad or stages]
    found = [path for path in [*chosen, run.supervisor_log] if path.is_file() and path.stat().st_size]
    if not found:
        raise InputError(f"run {name} has no logs yet")
    return found


def _is_log(path: Path, root: Path) -> bool:
    inside = path.relative_to(root).parts[:-1]
    if _NOT_LOGS.intersection(inside) or any(part.startswith(".") for part in inside) or not path.is_file():
        return False
    return bool(_LOG_NAME.search(path.name)) and not path.name.startswith((".", "requirements"))


def origin_of(path: Path) -> Origin:
    """What a file's name says of where its lines come from: `node-2/rank3.log`, torchrun's `attempt_0/3/stderr.log`."""
    name = str(path)
    rank = _RANK.search(name)
    host = _HOST.search(path.name) or _HOST.search(path.parent.name)
    return Origin(host[1] if host else None, next((group for group in rank.groups() if group), None) if rank else None)


@contextmanager
def open_log(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a log, unpacked. Raises InputError where it cannot be read."""
    if str(path) == STDIN:
        yield sys.stdin.buffer
        return
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                yield cast(BinaryIO, Unpacked(path, file))
                return
            if _is_binary(file.peek(LOOKED_AT)[:LOOKED_AT]):
                raise InputError(
                    f"{path} is not text", "name the log; of archives only .gz of a single log is unpacked"
                )
            yield file
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _is_binary(head: bytes) -> bool:
    """More control characters than colours and progress bars explain. NUL is not counted: a node that crashed leaves blocks of it."""
    said = head.replace(b"\0", b"")
    return len(said) - len(said.translate(None, _CONTROL)) > 0.05 * len(said)


class Unpacked:
    """The content of a .gz file, as far as it goes: one that is still being written, or was cut, has no proper end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = gzip.open(file)  # noqa: SIM115 (the caller closes what it opened)
        self._ended = False
        self.cut = False
        """Whether the file stopped before its end."""

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while not self._ended and size > 0:
            try:
                part = self._file.read1(size)
            except EOFError:
                part, self.cut = b"", True
            except (gzip.BadGzipFile, zlib.error) as error:
                raise InputError(f"{self._path} is not a whole gzip file: {error}") from None
            self._ended = not part
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
