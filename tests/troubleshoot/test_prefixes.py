"""Marks of launchers before lines: stripped wherever they come from, and never mistaken for the message."""

from __future__ import annotations

import pytest

from core.troubleshoot.prefixes import Origin, Prefixes

TRACEBACK = ["Traceback (most recent call last):", '  File "/w/a.py", line 3, in f', "    g()", "KeyError: 'x'"]


@pytest.mark.parametrize(
    ("mark", "origin"),
    [
        ("[rank3]: ", Origin(None, "3")),
        ("node-2: ", Origin("node-2", None)),
        ("node-2: [rank3]: ", Origin("node-2", "3")),
        ("10.0.0.7: ", Origin("10.0.0.7", None)),
        ("[1,3]<stderr>:", Origin(None, "3")),
        ("[1,3]<stdout>:node-2: ", Origin("node-2", "3")),
        ("[default3]:", Origin(None, "3")),
        ("[default3]:[rank11]: ", Origin(None, "11")),
        ("3: ", Origin(None, "3")),
        (" 12: ", Origin(None, "12")),
        ("2024-05-11T10:00:00.123Z ", Origin()),
        ("2024-05-11 10:00:00,123 - ", Origin()),
        ("2024-05-11T10:00:00.123456789Z stderr F ", Origin()),
        ("May 11 10:00:00 gpu07 python[991]: ", Origin("gpu07", None)),
        ("(RayWorker pid=991, ip=10.0.0.7) ", Origin("10.0.0.7", None)),
        ("worker-0  | ", Origin("worker-0", None)),
        ("[gpu07][rank 3] ", Origin("gpu07", "3")),
        ("[gpu07:rank3] ", Origin("gpu07", "3")),
        ("[Rank 3] ", Origin(None, "3")),
        ("rank 3: ", Origin(None, "3")),
        ("[pod/trainer-0/main] ", Origin("trainer-0", None)),
        ("[74889.644112] ", Origin()),
        ("master: ", Origin("master", None)),
        ("localhost: ", Origin("localhost", None)),
    ],
)
def test_a_mark_is_stripped_and_says_where_from(mark: str, origin: Origin) -> None:
    lines = [mark + line for line in TRACEBACK]
    prefixes = Prefixes(lines)
    assert [prefixes.split(line) for line in lines] == [(line, origin) for line in TRACEBACK]


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: CUDA out of memory",
        "srun: error: node-2: task 5: Killed",
        "ssh: connect to host gpu01 port 22: Connection refused",
        "bash: /home/u/env/bin/deepspeed: Permission denied",
        "wandb: ERROR api_key not configured (no-tty)",
        "helpers.cpp:25:10: fatal error: pybind11/pybind11.h: No such file or directory",
        "error: the loss is not a number any more",
        " iteration       10/ 1144409 | consumed samples:         2560 |",
        "[2024-03-27 19:15:42,647] [INFO] [logging.py:96:log_dist] [Rank 0] step=10",
        "[E ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective operation timeout",
    ],
)
def test_what_belongs_to_the_message_stays(line: str) -> None:
    assert Prefixes([line] * 5).split(line) == (line, Origin())
