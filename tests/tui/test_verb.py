"""A verb as a process of the screen: what it prints arrives, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

import tui.verb
from core.language import set_language
from tui.verb import ROOT, Verb

pytestmark = pytest.mark.anyio


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(tui.verb, "START", "import os, subprocess, sys, time; sys.argv.pop(1)\n" + program)


async def lines_of(verb: Verb) -> list[str]:
    async with verb:
        return [line async for line in verb.lines()]


async def test_it_is_the_real_command_line_wherever_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("core", "tui"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (tmp_path / "argparse.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    verb = Verb(tmp_path / "runs", "status")
    assert await lines_of(verb) == [f"no runs in {tmp_path / 'runs'}"]
    assert verb.exit_code == 0


async def test_it_speaks_the_language_of_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "print(*sys.argv[1:], sep='\\n')")
    set_language("ja")
    try:
        assert (await lines_of(Verb(tmp_path, "doctor")))[:2] == ["--lang", "ja"]
    finally:
        set_language("en")


async def test_the_environment_that_the_doctor_judges_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "print(*sorted(f'{name}={value}' for name, value in os.environ.items()), sep='\\0', end='')")
    (printed,) = await lines_of(Verb(tmp_path, "doctor"))
    seen = dict(pair.split("=", 1) for pair in printed.split("\0"))
    assert seen.pop("TERM") == "dumb"
    ours = {name: value for name, value in os.environ.items() if name != "TERM"}
    assert {name: value for name, value in seen.items() if name != "LC_CTYPE"} == ours
    assert str(ROOT) not in seen.get("PYTHONPATH", "") or str(ROOT) in os.environ.get("PYTHONPATH", "")


async def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tui.verb, "LONGEST_LINE", 1000)
    stand_in(monkeypatch, "sys.stdout.write('x' * 3_000_000 + '\\nnext\\nlast without newline')")
    first, *rest = await lines_of(Verb(tmp_path, "x"))
    assert len(first) < 1000 + tui.verb.CHUNK + 1
    assert rest == ["next", "last without newline"]


async def test_a_child_that_keeps_the_pipe_open_does_not_hold_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tui.verb, "LOOK_S", 0.1)
    stand_in(monkeypatch, "print(subprocess.Popen(['sleep', '30'], start_new_session=True).pid, flush=True)")
    (pid,) = await asyncio.wait_for(lines_of(Verb(tmp_path, "x")), 20)
    psutil.Process(int(pid)).kill()  # a daemon that outlives its parent is nobody's child any more


@pytest.mark.parametrize("deaf", ["", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"])
async def test_leaving_the_block_ends_it_and_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: str
) -> None:
    program = (
        "print(os.getpid(), subprocess.Popen(['sleep', '30'], start_new_session=True).pid, flush=True)\ntime.sleep(30)"
    )
    stand_in(monkeypatch, deaf + program)
    async with Verb(tmp_path, "x", grace_s=0.2) as verb:
        async for line in verb.lines():
            pids = [int(word) for word in line.split()]
            break
    for pid in pids:
        await gone(pid)


async def test_a_screen_that_is_killed_leaves_no_verb_behind(tmp_path: Path) -> None:
    logs = tmp_path / "log.txt"
    os.mkfifo(logs)  # nothing is written into it: the diagnosis waits for ever
    program = f"""
import asyncio
from pathlib import Path
from tui.verb import Verb
async def main():
    async with Verb(Path({str(tmp_path)!r}), "diagnose", {str(logs)!r}) as verb:
        print(verb._process.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    screen = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert screen.stdout is not None
    pid = int(await screen.stdout.readline())
    pipe = await reader_of(logs)
    screen.kill()
    await screen.wait()
    await gone(pid)
    os.close(pipe)


async def reader_of(fifo: Path) -> int:
    """A descriptor for writing into it, once somebody reads it."""
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO: nobody reads
            await asyncio.sleep(0.02)


async def gone(pid: int) -> None:
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        await asyncio.sleep(0.02)


async def test_its_last_words_are_kept_and_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "for i in range(99): print(f'\\x1b[31mwarning {i}', file=sys.stderr)\nsys.exit('the end')")
    verb = Verb(tmp_path, "x")
    assert await lines_of(verb) == []
    assert verb.exit_code == 1
    assert verb.last_words.splitlines()[-2:] == ["warning 98", "the end"]
    assert len(verb.last_words.splitlines()) == tui.verb.LAST_WORDS
