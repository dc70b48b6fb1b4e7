"""Leaving the screen, in any way and at any moment, does nothing to the run."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from screen_in_pty import ScreenInPty
from scripted_runs import Scripted, scripted, wait_for, wait_for_end

from core.files import read_json
from core.runs import requests
from core.runs.directory import RunDirectory
from core.runs.lock import lock_owner

__all__ = ["scripted"]

MOMENTS = int(os.environ.get("LLM_WIZARD_MOMENTS", "8"))
"""The issue's figure is 50: LLM_WIZARD_MOMENTS=50 pytest tests/tui/test_leaving.py. Fewer keep the whole suite short."""

COUNTING = """
def stop(*_):
    (run / 'stopped-at').write_text(str(step)); sys.exit(130)
signal.signal(signal.SIGTERM, stop)
step = 0
with open(run / 'stages' / stage / 'metrics.jsonl', 'a') as metrics:
    while True:
        step += 1
        print('step', step, flush=True)
        metrics.write(json.dumps({'time': time.time(), 'step': step, 'total': 10**6, 'loss': 1 + 1 / step}) + '\\n')
        metrics.flush(); time.sleep(0.02)
"""


def leave(screen: ScreenInPty, way: str) -> None:
    if way == "kill -9":
        os.kill(screen.pid, signal.SIGKILL)
    elif way == "SIGHUP":
        screen.hang_up()
    elif way == "Ctrl-C":
        screen.send("\x03")
    else:
        screen.send("q")
    code = screen.wait()
    expected = {"kill -9": (-signal.SIGKILL,), "SIGHUP": (-signal.SIGHUP, 0, 1, 130), "Ctrl-C": (130,), "q": (0,)}
    assert code in expected[way], way


def steps(run: RunDirectory) -> list[int]:
    lines = run.metrics("pretrain").read_text().splitlines()
    return [int(line.split('"step": ')[1].split(",")[0]) for line in lines]


@pytest.mark.slow
def test_leaving_at_any_moment_changes_nothing(scripted: Scripted, tmp_path: Path) -> None:
    run = scripted(pretrain=COUNTING)
    chance = random.Random(20261124)
    owner = None
    for moment in range(MOMENTS):
        way = ("kill -9", "SIGHUP", "Ctrl-C", "q")[moment % 4]
        screen = ScreenInPty("--runs-dir", str(run.root.parent), cwd=tmp_path)
        try:
            if owner is None:  # the first screen is the one that starts the run: it is its own process's child
                screen.wait_for("Resume")
                screen.wait_for(run.name)
                screen.send("\x1b[Z")  # to the list of runs
                time.sleep(0.2)
                screen.send("r")
                wait_for(lambda: run.metrics("pretrain").is_file())
                owner = lock_owner(run)
            else:
                screen.wait_for("1 Home")
                screen.send("5")
                time.sleep(chance.uniform(0, 0.8))
            time.sleep(chance.uniform(0, 0.3))
            leave(screen, way)
        finally:
            screen.close()
        assert lock_owner(run) == owner, way
        assert read_json(run.state)["stages"]["pretrain"]["attempt"] == 1
    seen = steps(run)
    wait_for(lambda: len(steps(run)) > len(seen) + 5)
    seen = steps(run)
    assert seen == list(range(1, len(seen) + 1)), "a step was lost or done twice"
    assert "stop-requested" not in run.events.read_text()
    requests.ask(run, requests.STOP)
    assert wait_for_end(run)["state"] == "stopped"
