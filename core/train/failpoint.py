"""Named points in the save at which a test can let the process die, as by `kill -9`."""

from __future__ import annotations

import os
import signal

VARIABLE = "LLM_WIZARD_FAILPOINT"
"""`name` or `name@step`: the process kills itself on reaching that point (of the save of that step)."""


def failpoint(name: str, step: int) -> None:
    """Die here, without any cleaning up, if the environment asks for it."""
    wanted = os.environ.get(VARIABLE)
    if wanted in (name, f"{name}@{step}"):
        os.kill(os.getpid(), signal.SIGKILL)
