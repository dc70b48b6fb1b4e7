"""The line of a log that says why a stage failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.runs.evidence import failure_line

TRACEBACK = """start
[rank1]: Traceback (most recent call last):
[rank1]:   File "x.py", line 3, in f
[rank1]: RuntimeError: the cause
[rank0]: Traceback (most recent call last):
[rank0]: torch.distributed.DistBackendError: the cascade
bye
"""
DEEPSPEED = """usage: pretrain_gpt.py [-h]
{why}[2026-11-24 21:03:16,053] [INFO] [launch.py:335:sigkill_handler] Killing subprocess 28083
[2026-11-24 21:03:16,053] [ERROR] [launch.py:341:sigkill_handler] ['python', '-u', 'pretrain_gpt.py'] exits with return code = 2
"""


@pytest.mark.parametrize(
    ("log", "line", "text"),
    [
        ("a\nerror: our own words\nTraceback (most recent call last):\nValueError: x\n", 2, "our own words"),
        (TRACEBACK, 4, "[rank1]: RuntimeError: the cause"),
        ("one\ntwo\n\n", 2, "two"),
        (
            DEEPSPEED.format(why="pretrain_gpt.py: error: unrecognized arguments: --x\n"),
            2,
            "pretrain_gpt.py: error: unrecognized arguments: --x",
        ),
        (DEEPSPEED.format(why=""), 1, "usage: pretrain_gpt.py [-h]"),
        ("\x1b[31merror: in colour\x1b[0m\n", 1, "in colour"),
    ],
)
def test_the_first_cause_is_chosen(tmp_path: Path, log: str, line: int, text: str) -> None:
    path = tmp_path / "log.txt"
    path.write_text(log)
    found = failure_line(path)
    assert found is not None
    assert (found["line"], found["text"]) == (line, text)


def test_lines_of_earlier_attempts_do_not_count_but_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("error: old\n--- attempt 2\nerror: new\n")
    found = failure_line(path, start=len("error: old\n"))
    assert found is not None
    assert (found["line"], found["text"]) == (3, "new")


def test_no_log_and_an_empty_log_say_nothing(tmp_path: Path) -> None:
    assert failure_line(tmp_path / "none") is None
    (tmp_path / "log.txt").touch()
    assert failure_line(tmp_path / "log.txt") is None


def test_the_names_of_nodes_before_lines_are_no_part_of_them_and_the_node_to_blame_comes_first(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(
        "node1: Traceback (most recent call last):\nnode1: RuntimeError: Connection closed by peer\n"
        "node2: error: the loss is not a number\nnode2:   -> lower pretrain.lr\nnode1: done\n"
    )
    found = failure_line(log, 0, ("node1", "node2"))
    assert found is not None
    assert (found["line"], found["text"], found["hint"]) == (3, "the loss is not a number", "lower pretrain.lr")
    blamed = failure_line(log, 0, ("node1", "node2"), "node1")
    assert blamed is not None
    assert blamed["text"] == "RuntimeError: Connection closed by peer"
    silent = failure_line(log, 0, ("node1", "node2", "node3"), "node3")
    assert silent is not None
    assert silent["line"] == 3
