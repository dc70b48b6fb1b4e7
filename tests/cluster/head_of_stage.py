"""A head with nothing but one stage. Prints its events, one JSON line each; obeys its stdin.

The first line is {"launcher", "nodes", "folder", "script", "limits": {}, "env": {}}; "term", "kill" and "stacks" do what they say.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from core.cluster.contact import Limits
from core.cluster.nodes_process import NodesProcess, NodeStart
from core.cluster.reach import reach_of

FAKE_TORCHRUN = str(Path(__file__).with_name("fake_torchrun.py"))


def say(kind: str, **values: Any) -> None:
    """Times are of CLOCK_MONOTONIC, which all hosts of a test share."""
    print(json.dumps({"kind": kind, "at": time.monotonic(), **values}), flush=True)


def main(config: dict[str, Any]) -> None:
    folder = Path(config["folder"])
    starts = [
        NodeStart(
            node,
            [sys.executable, FAKE_TORCHRUN, str(folder), str(2 * at), "2", config["script"]],
            config.get("env", {}),
        )
        for at, node in enumerate(config["nodes"])
    ]
    reach = reach_of(config["launcher"], os.environ)
    limits = Limits(**config.get("limits", {}))
    with (folder / "log").open("ab", buffering=0) as log:
        process = NodesProcess(
            reach, starts, str(folder), str(folder), 5, log, say, python=sys.executable, limits=limits
        )
        listening = True
        while (code := process.pump(0.1)) is None:
            if listening and select.select([0], [], [], 0)[0]:
                word = sys.stdin.readline().strip()
                listening = bool(word)
                {
                    "term": process.terminate,
                    "kill": process.kill_all,
                    "stacks": process.ask_for_stacks,
                    "": lambda: None,
                }[word]()
        troubles = [[trouble.kind, trouble.node, trouble.rank, trouble.text] for trouble in process.troubles]
        say("ended", code=code, proof=process.proof, troubles=troubles)


if __name__ == "__main__":
    main(json.loads(sys.stdin.readline()))
