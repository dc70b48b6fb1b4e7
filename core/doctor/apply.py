"""Carrying out the steps of a fix: live output, a log, nothing deleted, nothing done twice."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from core.doctor.fix import AddLines, Block, Command, MoveAside, RemoveLines, Step, WriteFile
from core.errors import StageError
from core.files import write_atomically
from core.runs.masking import Masker

Say = Callable[[str], None]


def apply(step: Step, say: Say) -> None:
    """Do one step; `say` gets its output line by line, secrets masked.

    Raises:
        StageError: it failed; what was done before stays as it is.
    """
    try:
        if isinstance(step, Command):
            _command(step, say)
        elif isinstance(step, WriteFile):
            _write(Path(step.path), step.text, say)
        elif isinstance(step, Block):
            _block(step, say)
        elif isinstance(step, AddLines):
            _add(step, say)
        elif isinstance(step, RemoveLines):
            _remove(step, say)
        else:
            _move_aside(step, say)
    except OSError as error:
        raise StageError(f"{step.preview()[0]}: {error}") from None


def _command(step: Command, say: Say) -> None:
    if step.creates and os.path.lexists(step.creates):
        say(f"already there: {step.creates}")
        return
    process = subprocess.Popen(
        list(step.argv),
        env={**os.environ, **step.env},
        cwd=step.cwd or None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    masker = Masker()
    try:
        for line in process.stdout:
            say(masker.mask(line).decode("utf-8", "replace").rstrip("\n"))
        code = process.wait()
    except BaseException:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if code:
        raise StageError(f"exit code {code}: {step.preview()[0]}")


def _write(path: Path, text: str, say: Say) -> None:
    if path.is_file() and path.read_text(errors="replace") == text:
        say(f"already so: {path}")
        return
    mode = _keep(path, say)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode(), mode)
    path.chmod(mode)
    say(f"wrote {path}")


def _block(step: Block, say: Say) -> None:
    """Above everything else: a ~/.bashrc usually leaves at once where there is no terminal."""
    path, (begin, end) = Path(step.path), step.marks
    lines = path.read_text(errors="surrogateescape").splitlines() if path.is_file() else []
    block = [begin, *step.lines, end]
    if begin in lines and end in lines[lines.index(begin) :]:
        first = lines.index(begin)
        last = lines.index(end, first)
        changed = lines[:first] + block + lines[last + 1 :]
    else:
        changed = block + lines
    if changed == lines:
        say(f"already so: {path}")
        return
    _rewrite(path, changed, say)


def _add(step: AddLines, say: Say) -> None:
    path = Path(step.path)
    lines = path.read_text(errors="surrogateescape").splitlines() if path.is_file() else []
    new = [line for line in step.lines if line not in lines]
    if not new:
        say(f"already so: {path}")
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _rewrite(path, [*lines, *new], say)


def _remove(step: RemoveLines, say: Say) -> None:
    path = Path(step.path)
    lines = path.read_text(errors="surrogateescape").splitlines()
    # Only what still stands where it was seen: the file may have changed since.
    gone = {number for number, text in step.lines if number <= len(lines) and lines[number - 1] == text}
    if gone:
        _rewrite(path, [line for number, line in enumerate(lines, 1) if number not in gone], say)
    say(f"removed {len(gone)} lines")


def _rewrite(path: Path, lines: list[str], say: Say) -> None:
    mode = _keep(path, say)
    # A link (a dotfiles repository) stays one: its target is replaced.
    target = path.resolve()
    write_atomically(target, ("\n".join(lines) + "\n").encode(errors="surrogateescape"), mode)
    target.chmod(mode)  # whatever the umask took away
    say(f"wrote {path}")


def _keep(path: Path, say: Say) -> int:
    """Copy a file to NAME.bak-TIME if it exists; returns the mode for the new one."""
    if not path.is_file():
        return 0o644
    backup = aside(path)
    shutil.copy2(path, backup)
    say(f"kept the old one as {backup}")
    return path.stat().st_mode & 0o777


def _move_aside(step: MoveAside, say: Say) -> None:
    path = Path(step.path)
    if not os.path.lexists(path):
        say(f"already gone: {path}")
        return
    backup = aside(path)
    path.rename(backup)
    say(f"moved {path} to {backup}")


def aside(path: Path) -> Path:
    """A name beside `path` that is free: NAME.bak-TIME, with a number where two are made in one second."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = path.with_name(f"{path.name}.bak-{stamp}")
    number = 1
    while os.path.lexists(name):
        number += 1
        name = path.with_name(f"{path.name}.bak-{stamp}-{number}")
    return name
