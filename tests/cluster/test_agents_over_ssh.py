"""Agents on real hosts over the real ssh: what happens to one is told, mended, and no agent is left anywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from cluster.hosts import Hosts
from scripted_runs import wait_for

from core.cluster.samples import NodeSamples
from core.runs.directory import RunDirectory

SCRIPT = Path(__file__).with_name("watch_nodes.py")


class Watched:
    """A run's folder, and the process on the head that watches nodes for it."""

    def __init__(self, hosts: Hosts, root: Path, *settings: str) -> None:
        self._hosts = hosts
        self._root = root
        self.nodes = list(hosts.nodes[:3])
        self._samples = NodeSamples(RunDirectory(root))
        self.process = hosts.popen(
            hosts.head, [sys.executable, str(SCRIPT), str(root), ",".join(self.nodes), *settings]
        )

    def sample(self, node: str) -> dict[str, Any]:
        """Its last sample, or nothing where it is not fresh."""
        views = {view.host: view for view in self._samples.look(time.time())}
        return (views[node].sample or {}) if node in views and views[node].age_s < 2.5 else {}

    def events(self) -> list[tuple[str, str]]:
        path = self._root / "events.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [(event["node"], event["state"]) for event in map(orjson.loads, lines) if event["kind"] == "agent"]

    def agents(self, host: str) -> list[str]:
        """The pids of the agents on a host, as it numbers them."""
        return self._hosts.run(
            host, ["sh", "-c", "pgrep -f '^[^ ]*python.* llm-wizard-agen[t]' || true"]
        ).stdout.split()

    def stop(self) -> None:
        (self._root / "stop").touch()
        self.process.wait(30)


Start = Callable[..., Watched]


@pytest.fixture
def start(hosts: Hosts, tmp_path: Path) -> Iterator[Start]:
    """`start(NAME=seconds)`: nodes are watched, each has been heard of."""
    started: list[Watched] = []

    def begin(**settings: float) -> Watched:
        watched = Watched(hosts, tmp_path, *(f"{name}={value}" for name, value in settings.items()))
        started.append(watched)
        wait_for(lambda: all(watched.sample(node) for node in [hosts.head, *watched.nodes]))
        return watched

    yield begin
    for watched in started:
        watched.process.kill()
        watched.process.wait()


def test_samples_come_under_the_names_of_the_inventory_and_stop_leaves_no_agent(hosts: Hosts, start: Start) -> None:
    watched = start()
    everybody = [hosts.head, *watched.nodes]
    assert [len(watched.agents(host)) for host in everybody] == [1, 1, 1, 1]
    assert {watched.sample(node)["host"] for node in watched.nodes} == set(watched.nodes)
    watched.stop()
    wait_for(lambda: not any(watched.agents(host) for host in everybody))
    assert watched.events() == []


def test_an_agent_that_is_killed_is_named_and_started_again(hosts: Hosts, start: Start) -> None:
    watched = start()
    one, *others = watched.nodes
    hosts.run(one, ["kill", "-9", *watched.agents(one)])
    wait_for(lambda: watched.events() == [(one, "agent ended"), (one, "back")])
    assert watched.sample(one)["restarts"] == 1
    assert [watched.sample(node)["restarts"] for node in others] == [0, 0]
    watched.stop()


def test_a_link_that_is_down_is_told_as_such_and_its_agent_goes_on_when_it_is_back(hosts: Hosts, start: Start) -> None:
    watched = start()
    node = watched.nodes[1]
    agent = watched.agents(node)
    hosts.link_down(node)
    try:
        wait_for(lambda: watched.events() == [(node, "no contact")])
    finally:
        hosts.link_up(node)
    wait_for(lambda: watched.events() == [(node, "no contact"), (node, "back")])
    assert watched.agents(node) == agent
    watched.stop()


def test_a_node_that_dies_is_told_and_watched_again_when_it_is_back(hosts: Hosts, start: Start) -> None:
    watched = start(LONGEST_PAUSE_S=1)
    node = watched.nodes[2]
    hosts.kill_node(node)
    try:
        wait_for(lambda: watched.events() == [(node, "no contact")])
    finally:
        hosts.revive(node)
    wait_for(lambda: (node, "back") in watched.events())
    watched.stop()


def test_no_agent_is_left_when_the_watching_process_is_killed(hosts: Hosts, start: Start) -> None:
    watched = start()
    watched.process.kill()
    wait_for(lambda: not any(watched.agents(host) for host in [hosts.head, *watched.nodes]))


def test_no_agent_is_left_behind_a_link_that_was_cut_before(hosts: Hosts, start: Start) -> None:
    watched = start(UNHEARD_S=4, WORD_S=1)
    node = watched.nodes[0]
    hosts.drop_packets(node)
    try:
        assert watched.agents(node)
        watched.process.kill()
        wait_for(lambda: not watched.agents(node))
    finally:
        hosts.accept_packets(node)
