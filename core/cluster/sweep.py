"""Ending what is left of a run on its nodes, and the proof that nothing is."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.cluster.contact import Message, parsed
from core.cluster.reach import Reach, client_environment, piped_program, piped_python

STARTER = Path(__file__).with_name("starter.py")
AT_ONCE = 10
"""Above ten connections that are opened at once, an sshd on the way to all of them refuses some (MaxStartups)."""
ANSWER_S = 30.0
"""For the way there, Python's start, and 10 s in which SIGKILL takes effect; the grace comes on top."""


def sweep(
    reach: Reach, nodes: Sequence[str], mark: str, grace: float, *, python: str, patience: float = ANSWER_S
) -> dict[str, int | None]:
    """End every process on these nodes that carries `mark` as its run, and no other: SIGTERM, `grace` seconds, SIGKILL.

    How many there were on each node; None where that node could not be reached, or something did not end. `python` is the
    training Python, at this path on every node; `patience` how many seconds it may take, the grace apart.
    """
    config = {"sweep": True, "mark": mark, "grace": grace}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(
            zip(nodes, pool.map(lambda node: _sweep(reach, node, config, python, grace + patience), nodes), strict=True)
        )


def _sweep(reach: Reach, node: str, config: dict[str, object], python: str, limit: float) -> int | None:
    try:
        done = subprocess.run(
            reach.argv(node, piped_python(python, "llm-wizard-sweep")),
            input=piped_program(STARTER, config),
            env=client_environment(),
            cwd="/",
            capture_output=True,
            timeout=limit,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    last = parsed(done.stderr.rstrip().rpartition(b"\n")[2])
    if last is None or last["lw"] != "clean":
        return None
    return Message(node, 0.0, "clean", last).number("killed")
