"""Run on a test's head: watches nodes over ssh as a supervisor does, until the file `stop` lies in the run's folder.

    watch_nodes.py RUN NODE,NODE [NAME=SECONDS...]      # sets constants of core.cluster.agent_stream

Events go to RUN/events.jsonl.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from core.cluster import agent_stream
from core.cluster.reach import SshReach
from core.runs.directory import RunDirectory
from core.stages.base import append_event


def main(root: str, names: str, *settings: str) -> None:
    for setting in settings:
        name, _, value = setting.partition("=")
        setattr(agent_stream, name, float(value))
    from core.cluster.collector import collector_of  # takes the constants in

    run = RunDirectory(Path(root))

    def event(kind: str, **values: Any) -> None:
        append_event(run, kind, **values)

    watching = collector_of(run, event, names.split(","), SshReach(), sys.executable)
    watching.start()
    while not (run.root / "stop").exists():
        time.sleep(0.05)
    watching.stop()
    event("stopped")


if __name__ == "__main__":
    main(*sys.argv[1:])
