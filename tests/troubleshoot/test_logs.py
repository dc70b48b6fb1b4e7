"""What a user names becomes the logs to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import InputError
from core.troubleshoot.logs import find_logs, origin_of
from core.troubleshoot.prefixes import Origin


def test_a_folder_gives_its_logs_and_nothing_else(tmp_path: Path) -> None:
    logs = [
        "train.log",
        "slurm-8812.out",
        "a/stdout",
        "attempt_0/3/stderr.log",
        "old/train.log.1",
        "n.gz",
        "job.o8812",
        "log.txt",
    ]
    others = [
        "model.bin",
        "config.yaml",
        "metrics.jsonl",
        "code/x.log",
        "checkpoints/step-1/a.log",
        ".cache/b.log",
        "requirements.txt",
    ]
    for name in logs + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert {str(path.relative_to(tmp_path)) for path in find_logs([str(tmp_path)])} == set(logs)


def test_a_name_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no log, folder or run"):
        find_logs([str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("logs/attempt_0/3/stderr.log", Origin(None, "3")),
        ("logs/rank_12.log", Origin(None, "12")),
        ("logs/node-2/rank3.log", Origin("node-2", "3")),
        ("logs/worker-7.out", Origin("worker-7", None)),
        ("logs/train.log", Origin()),
        ("logs/crank.log", Origin()),
    ],
)
def test_a_file_s_name_says_where_its_lines_come_from(name: str, origin: Origin) -> None:
    assert origin_of(Path(name)) == origin
