"""A bare `llm-wizard` in terminals of every kind, each a real pty: what comes out of it decides."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from screen_in_pty import REPOSITORY, ScreenInPty

from tui.ascii_lines import _TO_ASCII
from tui.terminal import OVER_SSH

ALTERNATE_SCREEN = b"\x1b[?1049h"
Open = Callable[..., ScreenInPty]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Open]:
    """`terminal(*argv, TERM=...)`: llm-wizard in a pty, without what the developer's own session sets."""
    opened: list[ScreenInPty] = []

    def start(*argv: str, **options: object) -> ScreenInPty:
        neutral = dict.fromkeys(("NO_COLOR", "COLORTERM", "SSH_CONNECTION", "LLM_WIZARD_ASCII", "PYTHONIOENCODING"))
        screen = ScreenInPty(*argv, cwd=tmp_path, **(neutral | options))  # type: ignore[arg-type]
        opened.append(screen)
        return screen

    yield start
    for screen in opened:
        screen.close()


def drawn(screen: ScreenInPty) -> bytes:
    """Every byte of a first frame, from the start to the way out by `q`."""
    before = b""
    while "quickstart" not in screen.text:
        assert screen.read(20), screen.text
    screen.read(0.3)
    before = screen.output
    screen.send("q")
    assert screen.wait() == 0
    return before


def colours(output: bytes) -> set[str]:
    """The colour parameters that were sent: `31`, `95`, `38;5`, `48;2`, ..."""
    found = set()
    for sequence in re.findall(rb"\x1b\[([0-9;]*)m", output):
        numbers = sequence.decode().split(";")
        while numbers:
            number = numbers.pop(0)
            if number in ("38", "48"):
                kind = numbers.pop(0)
                del numbers[: 1 if kind == "5" else 3]
                found.add(f"{number};{kind}")
            elif re.fullmatch(r"[349][0-7]|10[0-7]", number):
                found.add(number)
    return found


def test_a_capable_terminal_shows_the_screen(terminal: Open) -> None:
    output = drawn(terminal(TERM="xterm-256color"))
    assert ALTERNATE_SCREEN in output
    assert "38;5" in colours(output)
    assert b"\x1b[?1000h" in output, "the mouse"


def test_ctrl_z_and_fg_draw_the_whole_screen_again(terminal: Open) -> None:
    screen = terminal()
    screen.wait_for("Start a new run from a preset")
    screen.send("\x1a")
    pid, status = os.waitpid(screen.pid, os.WUNTRACED)
    assert (pid, os.WIFSTOPPED(status)) == (screen.pid, True)
    os.kill(screen.pid, signal.SIGCONT)
    screen.output = b""
    screen.wait_for("Start a new run from a preset")


def test_no_mouse_leaves_the_mouse_to_the_terminal(terminal: Open) -> None:
    output = drawn(terminal("--no-mouse"))
    assert ALTERNATE_SCREEN in output
    assert not re.search(rb"\x1b\[\?(?:100[0-36]|1015)h", output)


def test_no_color_sends_no_colour(terminal: Open) -> None:
    assert colours(drawn(terminal(NO_COLOR="1"))) == set()


def test_an_empty_no_color_is_none(terminal: Open) -> None:
    assert "38;5" in colours(drawn(terminal(NO_COLOR="")))


@pytest.mark.parametrize("term", ["linux", "vt220", "screen"])
def test_a_terminal_of_sixteen_colours_gets_its_own_colours(terminal: Open, term: str) -> None:
    seen = colours(drawn(terminal(TERM=term)))
    assert seen
    assert not {"38;5", "38;2", "48;5", "48;2"} & seen


def test_a_theme_of_the_users_stays(terminal: Open) -> None:
    ansi = drawn(terminal(TERM="linux"))
    assert drawn(terminal(TERM="linux", TEXTUAL_THEME="textual-light")) != ansi


@pytest.mark.parametrize("way", ["--ascii", "LLM_WIZARD_ASCII"])
def test_ascii_draws_nothing_else(terminal: Open, way: str) -> None:
    screen = terminal("--ascii") if way == "--ascii" else terminal(LLM_WIZARD_ASCII="1")
    assert drawn(screen).isascii()


def test_what_ascii_replaces_keeps_its_width() -> None:
    assert all(cell_len(chr(code)) == 1 and text.isascii() and len(text) == 1 for code, text in _TO_ASCII.items())


def test_japanese_is_shown_in_japanese(terminal: Open) -> None:
    screen = terminal(LANG="ja_JP.UTF-8", LC_ALL=None)
    output = drawn(screen).decode()
    assert "ホーム" in output
    assert "プリセットから新しいランを始める" in output


def test_an_ssh_session_gets_calm_repaints() -> None:
    """Read where Textual reads it: when it is imported."""
    asked = (
        "import os\nfrom tui.terminal import prepare\nprepare(os.environ, False)\nfrom textual import constants\n"
        "print(constants.TEXTUAL_ANIMATIONS, constants.MAX_FPS, constants.SMOOTH_SCROLL)"
    )

    def settings(**environment: str) -> str:
        base = {name: value for name, value in os.environ.items() if not name.startswith(("TEXTUAL", "SSH_"))}
        base |= {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", **environment}
        return subprocess.run(
            [sys.executable, "-c", asked], env=base, capture_output=True, text=True, check=True
        ).stdout

    ssh = {"SSH_CONNECTION": "192.0.2.1 40000 192.0.2.2 22"}
    assert settings() == "full 60 True\n"
    assert settings(**ssh) == "none 15 False\n"
    assert settings(**ssh, TEXTUAL_FPS="30") == "none 30 False\n", "what the user set stays"
    assert set(OVER_SSH) == {"TEXTUAL_ANIMATIONS", "TEXTUAL_FPS", "TEXTUAL_SMOOTH_SCROLL"}


def asks_without_a_screen(screen: ScreenInPty, reason: str) -> bytes:
    """The reason and the first question have come, and no escape sequence where none would be understood."""
    while "[" not in screen.text.partition(reason)[2]:
        assert screen.read(20), screen.text
    assert ALTERNATE_SCREEN not in screen.output
    return screen.output


@pytest.mark.parametrize(
    ("term", "reason"), [("dumb", "TERM is dumb"), ("unknown", "TERM is unknown"), (None, "TERM is not set")]
)
def test_a_terminal_that_cannot_move_its_cursor_is_asked_line_by_line(
    terminal: Open, term: str | None, reason: str
) -> None:
    assert b"\x1b" not in asks_without_a_screen(terminal(TERM=term), reason)


def test_an_encoding_that_is_not_utf8_is_asked_line_by_line(terminal: Open) -> None:
    output = asks_without_a_screen(terminal(PYTHONIOENCODING="latin-1"), "uses iso8859-1")
    assert b"\x1b" not in output


def test_the_c_locale_is_read_as_utf8(terminal: Open) -> None:
    assert ALTERNATE_SCREEN in drawn(terminal(LC_ALL="C", LANG=None))


def test_a_japanese_terminal_in_eucjp_is_asked_in_its_own_encoding(terminal: Open, tmp_path: Path) -> None:
    screen = terminal(LANG="ja_JP.eucJP", LC_ALL=None, LC_CTYPE=None)
    while "画面表示には UTF-8 の端末が必要".encode("euc_jp") not in screen.output:
        assert screen.read(20), screen.output
    screen.read(0.5)
    screen.output.decode("euc_jp")
    assert b"\x1b" not in screen.output


def test_redirected_stderr_is_never_drawn_on(terminal: Open, tmp_path: Path) -> None:
    errors = tmp_path / "errors.txt"
    screen = terminal(redirected={2: errors})
    while "preset" not in screen.text:
        assert screen.read(20), screen.text
    assert "stderr is none" in errors.read_text()
    assert "\x1b" not in errors.read_text()
    assert ALTERNATE_SCREEN not in screen.output


def test_without_any_terminal_the_help_and_64(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tui.main"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 64
    assert ended.stdout.startswith("usage: llm-wizard")
    assert "stdin is none" in ended.stderr
    assert list(tmp_path.iterdir()) == []
