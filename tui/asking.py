"""Two ways to put a question: by questionary where the terminal can move its cursor, else a line out and a line in.

questionary cannot do the second: under TERM=dumb it sends escape sequences all the same, and it reads typed text as UTF-8
whatever the locale says (measured with questionary 2.1 on prompt_toolkit 3.0).

Both speak to the terminal itself, so that a redirected stdin, stdout or stderr does not matter. Ctrl-C raises
KeyboardInterrupt, Ctrl-D on an empty line EOFError.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

from core.errors import InputError
from core.language import tr
from core.text.plain import plain
from tui.terminal import Terminal, this_terminal

Check = Callable[[str], str]
"""Says what is wrong with an answer; "" where it is right."""

EMPTY_ANSWER = "-"
"""Typed for "no value" where a bare Enter means the value in brackets."""


class Asker(Protocol):
    """Everything that the walk needs of a terminal."""

    def say(self, text: str = "") -> None:
        """One line, or several."""

    def text(self, question: str, default: str, check: Check) -> str:
        """A line of text that `check` takes."""

    def choice(self, question: str, choices: Sequence[tuple[str, str]], default: str) -> str:
        """One of the values of (value, label)."""


@contextmanager
def asker() -> Iterator[Asker]:
    """The way to ask that this terminal allows. Raises InputError where there is no terminal at all."""
    terminal = this_terminal(os.environ)
    if not terminal.can_ask:
        raise InputError(
            "llm-wizard init asks questions and there is no terminal to ask on",
            "copy a preset instead: llm-wizard presets show quickstart > mine.yaml",
        )
    with _conversation(terminal) as (reader, writer):
        yield QuestionaryAsker(reader, writer) if terminal.moves_the_cursor else LineAsker(reader, writer)


@contextmanager
def _conversation(terminal: Terminal) -> Iterator[tuple[TextIO, TextIO]]:
    """The terminal's two directions: standard streams where they are the terminal, else the terminal opened again."""
    opened: list[TextIO] = []

    def again(mode: str) -> TextIO:
        stream = next(one for one in (sys.stdin, sys.stdout, sys.stderr) if one.isatty())
        errors = "surrogateescape" if mode == "r" else "replace"
        file: TextIO = Path(os.ttyname(stream.fileno())).open(  # noqa: SIM115 (closed below)
            mode, encoding=stream.encoding, errors=errors
        )
        opened.append(file)
        return file

    reader = sys.stdin if terminal.stdin_is_tty else again("r")
    writer = sys.stdout if terminal.stdout_is_tty else sys.stderr if terminal.stderr_is_tty else again("w")
    try:
        yield reader, writer
    finally:
        for file in opened:
            file.close()


class LineAsker:
    """For every terminal: no escape sequence, and nothing but the terminal's own line editing."""

    def __init__(self, reader: TextIO, writer: TextIO) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, text: str = "") -> None:
        self._writer.write(f"{text}\n")
        self._writer.flush()

    def text(self, question: str, default: str, check: Check) -> str:
        while True:
            answer = self._line(f"{question} [{plain(default)}] ")
            value = "" if answer == EMPTY_ANSWER else answer or default
            wrong = check(value)
            if not wrong:
                return value
            self.say(f"  ! {plain(wrong)}")

    def choice(self, question: str, choices: Sequence[tuple[str, str]], default: str) -> str:
        values = [value for value, _ in choices]
        # Where the values are numbers themselves (ZeRO stages), a number for the line would be taken for one of them.
        numbered = not any(value.isdecimal() for value in values)
        for number, (_, label) in enumerate(choices, 1):
            self.say(f"  {number}) {plain(label)}" if numbered else f"  {plain(label)}")
        shown = str(values.index(default) + 1) if numbered else default
        while True:
            answer = self._line(f"{question} [{shown}] ") or shown
            if answer in values:
                return answer
            if numbered and answer.isdecimal() and 1 <= int(answer) <= len(values):
                return values[int(answer) - 1]
            self.say(
                "  ! " + (tr("a number from 1 to {last}", last=len(values)) if numbered else tr("one of the above"))
            )

    def _line(self, prompt: str) -> str:
        self._writer.write(prompt)
        self._writer.flush()
        line = self._reader.readline()
        if not line:
            raise EOFError
        return line.strip()


class QuestionaryAsker:
    """Arrow keys and an editable answer."""

    def __init__(self, reader: TextIO, writer: TextIO) -> None:
        from prompt_toolkit.input import create_input
        from prompt_toolkit.output import create_output

        self._writer = writer
        self._terminal = {"input": create_input(reader), "output": create_output(writer)}

    def say(self, text: str = "") -> None:
        self._writer.write(f"{text}\n")
        self._writer.flush()

    def text(self, question: str, default: str, check: Check) -> str:
        from questionary import text

        asked = text(
            question,
            default=plain(default),
            validate=lambda answer: check(answer.strip()) or True,
            validate_while_typing=False,
            **self._terminal,
        )
        answer: str = asked.unsafe_ask()
        return answer.strip()

    def choice(self, question: str, choices: Sequence[tuple[str, str]], default: str) -> str:
        from questionary import Choice, select

        asked = select(
            question,
            choices=[Choice(plain(label), value=value) for value, label in choices],
            default=default,
            instruction=tr("(arrow keys, Enter)"),
            **self._terminal,
        )
        answer: str = asked.unsafe_ask()
        return answer
