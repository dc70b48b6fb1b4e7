"""The guards over a running stage: each says its trouble once, and says nothing of what is normal."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from core.troubleshoot.watch import (
    DiskFilling,
    MetricsTail,
    NotFinite,
    OverflowLoop,
    SlowRank,
    Spike,
    Stalled,
    Watch,
    compiler_runs,
    newest_checkpoint_size,
)


def never() -> bool:
    return False


@pytest.mark.parametrize("record", [{"loss": None}, {"loss": math.nan}, {"grad_norm": math.inf}, {"val_loss": None}])
def test_what_is_not_finite_is_told(record: dict[str, float | None]) -> None:
    guard = NotFinite()
    guard.feed({"step": 1, "loss": 4.0, "mfu": None})
    assert guard.trouble is None
    guard.feed({"step": 2, **record})
    assert guard.trouble is not None
    assert (guard.trouble.verdict, "step 2" in guard.trouble.text) == ("loss-nan", True)


def test_a_falling_noisy_loss_is_no_spike_and_one_odd_batch_neither() -> None:
    guard, chance = Spike(), random.Random(1)
    for step in range(2000):
        guard.feed({"step": step, "loss": 9 * math.exp(-step / 300) + 2 + chance.gauss(0, 0.1)})
        assert guard.trouble is None
    guard.feed({"step": 2000, "loss": 30.0})
    guard.feed({"step": 2001, "loss": 2.0})
    assert guard.trouble is None


def test_a_loss_that_jumps_and_stays_is_a_spike_until_it_is_back() -> None:
    guard = Spike()
    for step in range(60):
        guard.feed({"step": step, "loss": 2.0 + 0.01 * (step % 5)})
    for step in range(60, 63):
        assert guard.trouble is None
        guard.feed({"step": step, "loss": 6.0})
    assert guard.trouble is not None
    assert guard.trouble.verdict == "loss-spike"
    guard.feed({"step": 63, "loss": 2.1})
    assert guard.trouble is None


def test_overflows_in_a_row_are_a_loop_and_single_ones_are_not() -> None:
    guard = OverflowLoop()
    for step, skipped in enumerate([0, 1, 1, 2, 2, 3, 4, 5, 6]):
        guard.feed({"step": step, "skipped_steps": skipped})
        assert guard.trouble is None
    guard.feed({"step": 9, "skipped_steps": 7})
    assert guard.trouble is not None
    assert guard.trouble.verdict == "fp16-overflow-skip"
    guard.feed({"step": 10, "skipped_steps": 7})
    assert guard.trouble is None


def test_a_rank_that_keeps_being_slower_than_the_others_is_named_and_one_slow_step_is_not() -> None:
    guard = SlowRank()
    for step in range(60):
        own = [10.0, 11.0, 10.5, 40.0 if step == 30 else 10.2]  # one garbage collection
        guard.feed({"step": step, "forward_ms": own})
        assert guard.trouble is None
    for step in range(60, 80):
        guard.feed({"step": step, "forward_ms": [10.0, 11.0, 17.5, 10.2]})
    assert guard.trouble is not None
    assert guard.trouble.verdict == "slow-rank"
    assert "rank 2 takes 17.5 ms" in guard.trouble.text
    for step in range(80, 110):
        guard.feed({"step": step, "forward_ms": [10.0, 11.0, 10.5, 10.2]})
    assert guard.trouble is None


def test_of_two_ranks_the_slower_is_named_and_records_without_ranks_are_passed_over() -> None:
    guard = SlowRank()
    for step in range(20):
        guard.feed({"step": step, "loss": 1.0})
        guard.feed({"step": step, "forward_ms": [20.0, 10.0]})
    assert guard.trouble is not None
    assert "rank 0 takes" in guard.trouble.text


def test_silence_is_a_stall_by_the_run_s_own_step_time_and_not_while_a_compiler_works() -> None:
    guard = Stalled()
    guard.look(1700, started=0, compiles=never)
    assert guard.trouble is None
    for step in range(10):
        guard.feed(1700 + 30 * step)
    guard.look(1970 + 299, 0, never)
    assert guard.trouble is None
    guard.look(1970 + 301, 0, lambda: True)
    assert guard.trouble is None
    guard.look(1970 + 302, 0, never)
    assert guard.trouble is not None
    assert guard.trouble.verdict == "stalled"
    guard.feed(2400)
    assert guard.trouble is None


def test_before_the_first_steps_loading_may_take_half_an_hour() -> None:
    guard = Stalled()
    guard.look(1801, started=0, compiles=never)
    assert guard.trouble is not None


def test_the_disk_must_hold_the_next_checkpoint() -> None:
    guard = DiskFilling()
    guard.look(free=13 << 30, checkpoint=10 << 30)
    assert guard.trouble is None
    guard.look(free=11 << 30, checkpoint=10 << 30)
    assert guard.trouble is not None
    assert "11.0 GiB free" in guard.trouble.text
    guard.look(free=13 << 30, checkpoint=10 << 30)
    assert guard.trouble is None


def test_only_new_whole_records_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    tail = MetricsTail(path)
    assert tail.read() == []
    with path.open("a") as file:
        file.write('{"step": 2}\nrubbish\n[1]\n{"step": ')
    assert tail.read() == [{"step": 2}]
    with path.open("a") as file:
        file.write("3}\n")
    assert tail.read() == [{"step": 3}]


def test_the_watch_tells_each_trouble_once_and_shows_it_as_long_as_it_lasts(tmp_path: Path) -> None:
    metrics, checkpoints = tmp_path / "metrics.jsonl", tmp_path / "checkpoints"
    checkpoints.mkdir()
    watch = Watch(metrics, checkpoints, now=0.0)
    metrics.write_text(json.dumps({"step": 1, "loss": 4.0}) + "\n" + json.dumps({"step": 2, "loss": None}) + "\n")
    assert watch.look(1.0, os.getpid()) == []
    assert [trouble.verdict for trouble in watch.look(2.0, os.getpid())] == ["loss-nan"]
    assert watch.look(4.0, os.getpid()) == []
    assert [trouble.verdict for trouble in watch.troubles] == ["loss-nan"]


def test_a_compiler_below_the_stage_is_seen(tmp_path: Path) -> None:
    assert not compiler_runs(os.getpid())
    copy = tmp_path / "nvcc"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", copy)
    process = subprocess.Popen([str(copy), "30"])
    try:
        assert compiler_runs(os.getpid())
    finally:
        process.kill()
        process.wait()
    assert not compiler_runs(process.pid)


def test_the_size_of_the_newest_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint_size(tmp_path) == 0
    for name, size in (("step-1", 10), ("step-2", 30), ("step-3.tmp-1", 99)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"x" * size)
        os.utime(tmp_path / name, (size, size))
    assert newest_checkpoint_size(tmp_path) == 30
