"""`llm-wizard init` in a real pty: with arrow keys where the terminal can, line by line where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from screen_in_pty import REPOSITORY, ScreenInPty
from scripted_runs import wait_for, wait_for_end

from core.preset_source import load_preset
from core.runs.directory import RunDirectory
from core.runs.lock import lock_owner
from tui.form import STEPS, all_fields
from tui.prompts import QUESTIONS

Open = Callable[..., ScreenInPty]
DOWN = "\x1b[B"


@pytest.fixture
def init(tmp_path: Path) -> Iterator[Open]:
    """`init(*argv, TERM=...)`: the walk in a terminal that cannot move its cursor, unless said otherwise."""
    opened: list[ScreenInPty] = []

    def start(*argv: str, **options: object) -> ScreenInPty:
        # A real terminal answers the question for its cursor position at once; this one cannot, and each would wait a second.
        neutral = {"TERM": "dumb", "PYTHONIOENCODING": None, "PROMPT_TOOLKIT_NO_CPR": "1"}
        screen = ScreenInPty("init", *argv, cwd=tmp_path, **(neutral | options))  # type: ignore[arg-type]
        opened.append(screen)
        return screen

    yield start
    for screen in opened:
        screen.close()


def walk(screen: ScreenInPty, answers: dict[str, str] | None = None, until: str = "", enter: str = "\n") -> None:
    """Answer every question of the quickstart's walk, with the answer that is there where none is given."""
    answers = dict(answers or {})
    screen.wait_for("Begin with which preset?")
    screen.send(enter)
    for key in ASKED:
        screen.wait_for(key)
        if key == until:
            return
        screen.send(answers.pop(key, "") + enter)
    screen.wait_for("Change another key?")
    assert not answers


ASKED = [
    question.key
    for question in QUESTIONS
    if question.key not in ("corpus.text_key", "pretrain.tokens", "upload_pretrained.repo", "upload_finetuned.repo")
    and not question.key.startswith("megatron.")
]
"""What the quickstart's walk asks: its model has dimensions, and its run has steps and our own trainer."""


def leave(screen: ScreenInPty, enter: str = "\n") -> None:
    screen.wait_for("What next?")
    screen.send("3\n" if enter == "\n" else DOWN * 2 + enter)
    assert screen.wait() == 0


def test_every_question_is_a_key_of_the_preset_in_a_step_of_the_walk() -> None:
    keys = [question.key for question in QUESTIONS]
    sections = [section for step in STEPS for section in step.sections]
    assert set(keys) <= set(all_fields())
    assert keys == sorted(keys, key=lambda key: sections.index(key.partition(".")[0])), (
        "asked in the order of the steps"
    )


def test_line_by_line_to_a_preset_file(init: Open, tmp_path: Path) -> None:
    screen = init()
    walk(screen, {"pretrain.steps": "7", "wandb.mode": "offline", "model.heads": "4"})
    screen.send("data.workers\n")
    screen.wait_for("data.workers")
    screen.send("2\n")
    screen.wait_for("Change another key?")
    screen.send("\n")
    screen.wait_for("which file? [mine.yaml]")
    screen.send("\n")
    leave(screen)
    made, shipped = load_preset(str(tmp_path / "mine.yaml")).preset, load_preset("quickstart").preset
    expected = shipped.model_dump()
    expected["pretrain"]["steps"] = 7
    expected["wandb"]["mode"] = "offline"
    expected["model"]["heads"] = 4
    expected["data"]["workers"] = 2
    assert made.model_dump() == expected
    assert b"\x1b" not in screen.output


def test_with_arrow_keys_to_a_preset_file(init: Open, tmp_path: Path) -> None:
    screen = init(TERM="xterm-256color")
    walk(screen, {"wandb.mode": DOWN, "pretrain.steps": "\x15" + "9"}, enter="\r")
    screen.send("\r")
    screen.wait_for("which file?")
    screen.send("\r")
    leave(screen, "\r")
    made = load_preset(str(tmp_path / "mine.yaml")).preset
    assert (made.wandb.mode, made.pretrain.steps) == ("online", 9)


def test_a_wrong_answer_is_refused_with_its_reason_and_asked_again(init: Open) -> None:
    screen = init()
    walk(screen, until="tokenizer.vocab_size")
    screen.send("many\n")
    screen.wait_for("! ")
    screen.wait_for("tokenizer.vocab_size")
    screen.send("4096\n")
    screen.wait_for("model.size")


def test_a_file_that_is_not_there_is_refused(init: Open, tmp_path: Path) -> None:
    screen = init()
    walk(screen, until="corpus.files")
    screen.send("no-such.jsonl\n")
    screen.wait_for(f"there is no file {tmp_path}/no-such.jsonl")
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    screen.send("text.jsonl\n")
    screen.wait_for("corpus.text_key")


def test_answers_that_do_not_fit_each_other_are_asked_again(init: Open) -> None:
    screen = init()
    walk(screen, {"model.heads": "5"}, until="model.sequence_length")
    screen.send("\n")
    screen.wait_for("Change which key?")
    screen.send("model.heads\n")
    screen.wait_for("model.heads")
    screen.send("6\n")
    screen.wait_for("pretrain.steps")


def test_a_dash_empties_an_answer_and_the_alternative_is_asked(init: Open) -> None:
    screen = init()
    walk(screen, until="pretrain.steps")
    screen.send("-\n")
    screen.wait_for("pretrain.tokens")
    screen.send("1000000\n")
    screen.wait_for("pretrain.global_batch")


@pytest.mark.parametrize("term", ["dumb", "xterm-256color"])
@pytest.mark.parametrize("question", ["Begin with", "model.size", "which file?"])
def test_ctrl_c_at_any_question_writes_nothing(init: Open, tmp_path: Path, term: str, question: str) -> None:
    screen = init(TERM=term)
    if question == "Begin with":
        screen.wait_for(question)
    elif question == "model.size":
        walk(screen, until=question, enter="\r")
    else:
        walk(screen, enter="\r")
        screen.send("\r")
        screen.wait_for(question)
    screen.send("\x03")
    screen.wait_for("Nothing was written.")
    assert screen.wait() == 130
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_after_a_yes(init: Open, tmp_path: Path) -> None:
    taken = tmp_path / "taken.yaml"
    taken.write_text("description: mine\n")
    screen = init("--output", "taken.yaml")
    walk(screen)
    screen.send("\n")
    screen.wait_for("taken.yaml exists. Replace it? [2]")
    screen.send("\n")
    screen.wait_for("which file?")
    screen.send("taken.yaml\n")
    screen.wait_for("Replace it?")
    assert taken.read_text() == "description: mine\n"
    screen.send("yes\n")
    leave(screen)
    assert load_preset(str(taken)).preset.pretrain.steps == 300


def test_run_it_now_runs_the_command_that_is_shown(init: Open, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    screen = init()
    walk(screen, {"pretrain.steps": "7"})
    screen.send("\n")
    screen.wait_for("which file?")
    screen.send("\n")
    screen.wait_for("What next?")
    screen.send("\n")
    screen.wait_for("Name of the run [run-2]")
    screen.send("\n")
    screen.wait_for("$ llm-wizard run mine.yaml --name run-2")
    run = RunDirectory(tmp_path / "runs" / "run-2")
    wait_for(lambda: lock_owner(run) is not None)
    screen.wait_for("environment")  # the run is being followed: before, Ctrl-C is not yet a question
    screen.send("\x03")
    screen.wait_for("[s]top")
    screen.send("s\n")
    screen.wait()
    assert wait_for_end(run)["state"] in ("stopped", "failed"), "a check may fail on the machine of the test first"
    assert "steps: 7" in (tmp_path / "mine.yaml").read_text()


def test_a_path_typed_in_eucjp_is_that_path(init: Open, tmp_path: Path) -> None:
    (tmp_path / "日本語.jsonl").write_text('{"text": "a"}\n')
    screen = init("quickstart", TERM="xterm", LANG="ja_JP.eucJP", LC_ALL=None, LC_CTYPE=None)
    screen.wait_for("cluster.python")
    screen.send("\n")
    screen.wait_for("corpus.files")
    os.write(screen.terminal, "日本語.jsonl\n".encode("euc_jp"))
    screen.wait_for("corpus.text_key")
    assert "JSONL レコードのフィールド名".encode("euc_jp") in screen.output
    assert b"\x1b" not in screen.output


def test_answers_come_from_the_terminal_when_stdin_does_not(init: Open, tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("no such preset\n" * 50)
    screen = init(redirected={0: tmp_path / "answers.txt"})
    walk(screen, until="corpus.files")


def test_without_a_terminal_init_is_wrong_usage(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tui.main", "init"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 64
    assert "no terminal to ask on" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
