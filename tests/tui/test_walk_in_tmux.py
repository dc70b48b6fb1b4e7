"""As a new user would, in a real terminal: from Home to a running quickstart, the terminal killed, joined again, stopped."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import wizard
from core.runs import requests
from core.runs.directory import RunDirectory
from core.runs.lock import lock_owner
from presets import __file__ as presets_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
REPOSITORY = Path(__file__).parent.parent.parent
REDUCED = f"""
description: The quickstart at a reduced size
corpus: {{script: {Path(presets_file).parent / "python_docs.py"}}}
tokenizer: {{vocab_size: 512, input_sentence_size: 2000, held_out_lines: 100}}
model: {{layers: 1, hidden_size: 32, heads: 2, sequence_length: 32}}
pretrain: {{steps: 1000000, global_batch: 4, micro_batch: 4, device: cpu, valid_interval: 100000, save_interval: 100000}}
"""


class Tmux:
    """A tmux server of its own with one pane, in which `llm-wizard` runs."""

    def __init__(self, folder: Path, columns: int = 80, rows: int = 24) -> None:
        self.socket = f"llm-wizard-{uuid.uuid4().hex[:8]}"
        command = shlex.join(
            ["env", f"PYTHONPATH={REPOSITORY}", "LANG=C.UTF-8", "LC_ALL=C.UTF-8", sys.executable, "-m", "tui.main"]
        )
        size = ["-x", str(columns), "-y", str(rows)]
        self("-f", "/dev/null", "new-session", "-d", "-c", str(folder), *size, command)
        self.server = int(self("display-message", "-p", "#{pid}"))
        self.wizard = int(self("display-message", "-p", "#{pane_pid}"))

    def __call__(self, *arguments: str, check: bool = True) -> str:
        argv = ["tmux", "-L", self.socket, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=check, timeout=30).stdout

    def shown(self) -> str:
        return self("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        for key in keys:
            self("send-keys", key)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        wait_until(lambda: text in self.shown(), seconds, self.shown)


def wait_until(condition: Callable[[], Any], seconds: float, explain: Callable[[], Any] = str) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)
    return value


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[[], Tmux]]:
    opened: list[Tmux] = []

    def start() -> Tmux:
        opened.append(Tmux(tmp_path))
        return opened[-1]

    yield start
    for tmux in opened:
        tmux("kill-server", check=False)


def test_walk_launch_lose_the_terminal_join_again_and_stop(terminal: Callable[[], Tmux], tmp_path: Path) -> None:
    (tmp_path / "reduced.yaml").write_text(REDUCED)
    run = RunDirectory(tmp_path / "runs" / "reduced")
    pressed: list[str] = []

    def status() -> dict[str, Any]:
        done = wizard("status", "reduced", "--json", cwd=tmp_path)
        return json.loads(done.stdout) if done.returncode == 0 else {"state": "none", "stage": None, "stages": {}}

    def learnt() -> tuple[int, float] | None:
        metrics = status()["stages"].get("pretrain", {}).get("metrics", {})
        return (metrics["step"], metrics["loss"]) if "loss" in metrics else None

    def press(tmux: Tmux, *keys: str) -> None:
        assert set(keys) <= {"Enter", "Tab", "Up", "Down", "Left", "Right"}
        pressed.extend(keys)
        tmux.press(*keys)

    try:
        tmux = terminal()
        tmux.wait_for("reduced.yaml")
        press(tmux, "Down", "Enter")
        tmux.wait_for("Plan, launch")
        press(tmux, "Up", "Enter")
        tmux.wait_for("Launch reduced")
        press(tmux, "Enter")
        tmux.wait_for("[5 Run]")
        assert len(pressed) <= 12
        assert status()["state"] == "running"

        first = wait_until(learnt, 180, lambda: (status(), tmux.shown()))
        later = wait_until(lambda: (now := learnt()) and now[0] > first[0] and now, 60, status)
        assert later[1] != first[1], "the loss moves"
        tmux.wait_for("pretrain")

        owner = lock_owner(run)
        os.kill(tmux.server, signal.SIGKILL)
        wait_until(lambda: not alive(tmux.wizard), 30)
        assert lock_owner(run) == owner
        wait_until(lambda: (now := learnt()) and now[0] > later[0], 60, status)

        tmux = terminal()
        tmux.wait_for("running  reduced")
        tmux.press("BTab", "Enter")
        tmux.wait_for("[5 Run]")
        tmux.wait_for("loss")
        assert lock_owner(run) == owner
        tmux.press("s")
        tmux.wait_for("Stop run reduced?")
        tmux.press("y")
        wait_until(lambda: status()["state"] == "stopped", 60, status)
        tmux.wait_for("stopped")
        tmux.press("q")
        wait_until(lambda: not alive(tmux.wizard), 30)
    finally:
        if run.requests.is_dir() and lock_owner(run) is not None:
            requests.ask(run, requests.STOP)
            wait_until(lambda: lock_owner(run) is None, 60)
