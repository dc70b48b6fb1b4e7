"""A verb of `llm-wizard` as a process of its own: the screen shows what it prints and ends it when nobody looks any more.

The doctor and the diagnosis read whole clusters and gigabytes; in a process they can neither block the screen nor take it
down, and what the screen shows is what the command line prints.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from core.language import language
from core.text.plain import plain

if TYPE_CHECKING:
    from tui.draft import Draft

ROOT = Path(__file__).parent.parent
START = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGINT))  # PR_SET_PDEATHSIG: a screen that is killed leaves no verb behind
sys.path = [*filter(None, sys.path), sys.argv.pop(1)]
from tui.main import main
sys.exit(main())
"""
"""`python -m tui.main` without the working directory on the module path: a folder named `core` there must not be imported.
Nothing is put into the environment, which the doctor's probes would inherit and judge."""
CHUNK = 1 << 16
LONGEST_LINE = 1 << 22
"""Of a longer line the beginning is kept: a line without end must not fill the memory."""
LAST_WORDS = 12
LOOK_S = 1.0
POLL_S = 0.02


def preset_options(draft: Draft | None) -> tuple[str, ...]:
    """How a command line names the preset that Setup edits; nothing where there is none."""
    return ("--preset", draft.source, *draft.set_options()) if draft is not None else ()


class Verb:
    """`async with Verb(runs_dir, "doctor", "--stream") as verb: async for line in verb.lines(): ...`

    Leaving the block ends the process and all that it started.
    """

    def __init__(self, runs_dir: Path, *arguments: str, merge_errors: bool = False, grace_s: float = 2.0) -> None:
        python = (sys.executable, "-u", "-X", "utf8", "-c", START, str(ROOT))
        self._argv = (*python, "--lang", language(), "--runs-dir", str(runs_dir), *arguments)
        self._merge_errors = merge_errors
        self._grace_s = grace_s
        self._words: deque[str] = deque(maxlen=LAST_WORDS)
        self._process: asyncio.subprocess.Process | None = None
        self._errors: asyncio.Task[None] | None = None

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.returncode if self._process else None

    @property
    def last_words(self) -> str:
        """The last lines on its standard error, plain."""
        return "\n".join(self._words)

    def heard(self, line: str) -> None:
        """Take a line of the output into the last words: it was not what was expected."""
        self._words.append(plain(line)[:500])

    async def __aenter__(self) -> Verb:
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            env={**os.environ, "TERM": "dumb"},  # nobody draws progress bars for a pane of lines
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if self._merge_errors else asyncio.subprocess.PIPE,
            start_new_session=True,  # a group to end, and no terminal on which ssh could ask for a password
        )
        if self._process.stderr is not None:
            self._errors = asyncio.create_task(self._listen(self._process.stderr))
        return self

    async def __aexit__(self, *exception: object) -> None:
        process = self._process
        assert process is not None
        started: list[psutil.Process] = []
        try:
            if process.returncode is None:
                started = _descendants(process.pid)  # while they can still be found by their parents
                self.interrupt()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._ended(), self._grace_s)
        finally:
            _kill(process, started)
            if self._errors is not None:
                self._errors.cancel()
            # asyncio has no public way; an open transport that outlives the event loop prints a traceback over the shell.
            process._transport.close()  # type: ignore[attr-defined]

    async def _ended(self) -> None:
        """Not asyncio's wait(): that also waits for whoever has inherited the pipes."""
        while self.exit_code is None:
            await asyncio.sleep(POLL_S)

    def interrupt(self) -> None:
        """What Ctrl-C in a shell does: the verb ends what it has started, which has sessions of its own, and then itself."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGINT)

    def kill(self) -> None:
        """End it and all that it started at once."""
        if self._process is not None and self._process.returncode is None:
            _kill(self._process, _descendants(self._process.pid))

    async def lines(self) -> AsyncIterator[str]:
        """The lines of its standard output as they are printed, as they are; the process has ended when these end."""
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._split(self._process.stdout):
            yield line
        if self._errors is not None:
            await self._errors
        await self._ended()

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        async for line in self._split(stream):
            if line.strip():
                self.heard(line)

    async def _split(self, stream: asyncio.StreamReader) -> AsyncIterator[str]:
        """Chunks, not readline(): that raises for a line longer than the reader's limit."""
        rest = b""
        while data := await self._read(stream):
            *whole, rest = (rest + data).split(b"\n")
            rest = rest[:LONGEST_LINE]
            for line in whole:
                yield line.decode("utf-8", "replace")
        if rest:
            yield rest.decode("utf-8", "replace")

    async def _read(self, stream: asyncio.StreamReader) -> bytes:
        """The next chunk; b"" at the end, which is also a second after the process's own: a child may hold the pipe open."""
        while True:
            try:
                return await asyncio.wait_for(stream.read(CHUNK), LOOK_S)
            except asyncio.TimeoutError:
                if self.exit_code is not None:
                    return b""


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _kill(process: asyncio.subprocess.Process, started: list[psutil.Process]) -> None:
    """End what did not end when it was asked to."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for child in started:
        with suppress(psutil.Error):  # psutil compares start times: a pid that was given to another process is safe
            child.kill()
