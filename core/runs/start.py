"""Starting a supervisor in a session of its own, and waiting until it holds the run."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from core.errors import WizardError
from core.runs.directory import RunDirectory
from core.runs.lock import lock_owner

START_TIMEOUT_S = 20.0


def start_supervisor(run: RunDirectory) -> None:
    """Start it from the run's own copy of the code; returns once it holds the lock, or has already ended.

    The terminal may go: the supervisor has its own session, no standard input, and writes to supervisor.log.

    Raises:
        WizardError: it ended before it took the lock; its own words are in the message.
    """
    environment = {**os.environ, "PYTHONPATH": str(run.code), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    with run.supervisor_log.open("ab") as log:
        begins = log.tell()
        process = subprocess.Popen(
            [sys.executable, str(run.code / "supervise.py"), str(run.root)],
            env=environment,
            cwd=run.root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        owner = lock_owner(run)
        if owner is not None and owner.get("pid") == process.pid:
            return
        code = process.poll()
        if code is not None:
            words = run.supervisor_log.read_bytes()[begins:].decode("utf-8", "replace").strip()
            if code < 0 or words:
                raise WizardError(f"the supervisor of {run.name} ended at once (code {code}): {words[-1000:]}")
            return
        time.sleep(0.02)
    raise WizardError(
        f"the supervisor of {run.name} did not start within {START_TIMEOUT_S:.0f} s", f"see {run.supervisor_log}"
    )
