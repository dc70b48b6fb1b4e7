"""A stage's own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from scripted_runs import wait_for

ROOT = Path(__file__).parents[2]
STUCK = """
import sys, threading
from pathlib import Path
from core.stages.entry import write_stacks_when_asked
write_stacks_when_asked(Path(sys.argv[1]) / 'stacks', 3)
def loads(): threading.Event().wait()
threading.Thread(target=loads, daemon=True).start()
lock = threading.Lock()
def waits_in_a_collective():
    print('here', flush=True)
    lock.acquire(); lock.acquire()
waits_in_a_collective()
"""


def test_a_rank_that_hangs_says_what_all_its_threads_do_and_lives_on(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", STUCK, str(tmp_path)]
    file = tmp_path / "stacks/rank-3.txt"
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as rank:
        try:
            assert rank.stdout is not None
            assert rank.stdout.readline() == b"here\n"
            assert file.stat().st_size == 0
            assert file.stat().st_mode & 0o777 == 0o600
            for times in (1, 2):
                rank.send_signal(signal.SIGUSR1)
                wait_for(lambda times=times: file.read_text().count("in waits_in_a_collective") == times)  # type: ignore[misc]
            assert file.read_text().count("in loads") == 2
            assert rank.poll() is None
        finally:
            rank.kill()


def test_a_folder_that_cannot_be_made_does_not_keep_a_rank_from_starting(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("")
    script = STUCK.split("def loads")[0] + "print('goes on')"
    argv = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.stdout, done.stderr) == ("goes on\n", "")
