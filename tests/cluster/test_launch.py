"""Starting a stage on its nodes: what is certain before a spare takes a lost node's place."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar

import pytest

from conftest import MakeRun
from core.cluster import launch
from core.cluster.launch import LaunchError, NodeLauncher
from core.cluster.section import ClusterSection
from core.runs.directory import RunDirectory


@dataclass(frozen=True)
class HereOrGone:
    """This machine by any name but "gone", which refuses like an ssh without a host."""

    kind: ClassVar[str] = "ssh"

    def argv(self, node: str, command: Sequence[str]) -> list[str]:
        return ["sh", "-c", "exit 255"] if node == "gone" else list(command)


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr(launch, "reach_of", lambda *_: HereOrGone())
    return make_run({"corpus": {"script": str(tmp_path / "none.py")}}, "r")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FileIO]:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        yield file


def stage(run: RunDirectory, *nodes: str) -> dict[str, Any]:
    return {
        "id": "pretrain", "launcher": "ssh", "nodes": list(nodes), "env": {}, "secrets": [], "cwd": str(run.root),
        "argv": [sys.executable, "-c", "import time; time.sleep(100)"],
        "derived": {"processes": len(nodes), "processes_on_node": 1, "device": "cpu"},
    }  # fmt: skip


def test_a_lost_node_is_dangerous_from_when_it_was_last_heard_and_not_from_when_that_was_noticed(
    run: RunDirectory, log: FileIO
) -> None:
    launcher = NodeLauncher(run, ClusterSection(), sys.executable, lambda *_, **__: None, lambda: False)
    process = launcher.start(stage(run, "a"), {}, 1.0, log)
    while process.pid is None and "a" not in process.last_contact:  # type: ignore[attr-defined]
        process.pump(0.1)
    process.kill_all()
    while process.pump(0.1) is None:
        pass
    heard = process.last_contact["a"]  # type: ignore[attr-defined]
    time.sleep(0.1)
    launcher.lost("a")
    assert launcher._lost["a"] == heard


def test_a_stop_ends_the_wait_for_a_node_and_no_spare_is_started(run: RunDirectory, log: FileIO) -> None:
    cluster = ClusterSection(nodes="gone", spares="spare")
    events: list[str] = []
    asked = False

    def event(kind: str, **_: Any) -> None:
        nonlocal asked
        events.append(kind)
        asked = True  # once the node is known to be gone

    launcher = NodeLauncher(run, cluster, sys.executable, event, lambda: asked)
    launcher.lost("gone")
    with pytest.raises(LaunchError, match="no answer from gone"):
        launcher.start(stage(run, "gone"), {}, 1.0, log)
    assert launcher.replaced == {}
    assert events == ["trouble"]


def test_a_spare_takes_the_place_of_a_node_that_never_ran_anything(run: RunDirectory, log: FileIO) -> None:
    cluster = ClusterSection(nodes="gone", spares="spare")
    events: list[str] = []
    launcher = NodeLauncher(run, cluster, sys.executable, lambda kind, **_: events.append(kind), lambda: False)
    process = launcher.start(stage(run, "gone"), {}, 1.0, log)
    process.kill_all()
    while process.pump(0.1) is None:
        pass
    assert launcher.replaced == {"gone": "spare"}
    assert launcher.nodes == ("spare",)
    assert events[:3] == ["trouble", "node-replaced", "launched"]
