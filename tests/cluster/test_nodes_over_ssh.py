"""A stage on real hosts, over the real ssh and under a real Slurm: the same claims as in test_nodes_process, where a network can fail."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.hosts import Hosts
from scripted_runs import wait_for

HEAD_OF_STAGE = Path(__file__).with_name("head_of_stage.py")
WAIT = "time.sleep(60)"
DEAF = "signal.signal(15, signal.SIG_IGN); " + WAIT
SHORT = {
    "beat": 0.25, "silent": 1.2, "back_within": 4.0, "silence": 4.5, "lost_grace": 0.5, "safe_again": 7.0,
    "settle": 0.5, "fail_grace": 1.0, "sweep": 1.5,
}  # fmt: skip
"""TCP's own times, and with them the link's, are as they are."""


class HeadOfStage:
    """head_of_stage.py on the head, with a stage of two ranks on each node under way."""

    def __init__(self, hosts: Hosts, folder: Path, script: str, launcher: str = "ssh", **config: Any) -> None:
        self.hosts, self.folder = hosts, folder
        self.nodes = hosts.nodes[: config.pop("count", 2)]
        env = config.pop("environ", {})
        document = {"launcher": launcher, "nodes": self.nodes, "folder": str(folder), "script": script, **config}
        argv = [sys.executable, HEAD_OF_STAGE]
        if launcher == "slurm":
            argv = ["salloc", "--quiet", "--nodelist", ",".join(self.nodes), *argv]
        self.process = hosts.popen(hosts.head, argv, env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.events: list[dict[str, Any]] = []
        self.say(json.dumps(document))

    def ranks_are_there(self) -> None:
        wait_for(lambda: all((self.folder / f"rank-{rank}.pid").exists() for rank in range(2 * len(self.nodes))))
        time.sleep(0.8)  # until a look has found them

    def rank_pid(self, rank: int) -> int:
        return self.hosts.rank_pids(self.nodes[rank // 2], self.folder)[rank]

    def say(self, word: str) -> None:
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def hear(self, kind: str) -> dict[str, Any]:
        """The next event of a kind."""
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            self.events.append(event)
            if event["kind"] == kind:
                return event
        raise AssertionError(f"no {kind!r} in {self.events}; {(self.folder / 'log').read_text()}")

    def left(self) -> dict[str, int]:
        """How many processes of the stage are alive, where there are any."""
        alive = {host: len(self.hosts.pids(host, self.folder)) for host in self.hosts.names}
        return {host: count for host, count in alive.items() if count}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


Begin = Callable[..., HeadOfStage]


def beginner(hosts: Hosts, folder: Path) -> Iterator[Begin]:
    before = hosts.dot_ssh()
    made = []

    def begin(script: str, **config: Any) -> HeadOfStage:
        head = HeadOfStage(hosts, folder, script, **config)
        made.append(head)
        return head

    yield begin
    for head in made:
        head.close()
    for head in made:
        wait_for(lambda head=head: head.left() == {})  # type: ignore[misc]
    assert hosts.dot_ssh() == before


@pytest.fixture
def begin(hosts: Hosts, tmp_path: Path) -> Iterator[Begin]:
    """`begin(script, count=2, limits={}, env={})`: a stage over ssh; nothing of it may be left, and ~/.ssh as it was."""
    tmp_path.chmod(0o755)
    yield from beginner(hosts, tmp_path)


@pytest.fixture
def begin_in_job(slurm_hosts: Hosts, tmp_path: Path) -> Iterator[Begin]:
    """The same in a Slurm job, over srun."""
    for begin in beginner(slurm_hosts, tmp_path):
        yield functools.partial(begin, launcher="slurm")


def test_a_stage_on_four_nodes_ends_well(begin: Begin) -> None:
    stage = begin("print('hi from', os.uname().nodename, flush=True); time.sleep(0.5)", count=4)
    end = stage.hear("ended")
    assert end["code"] == 0
    assert end["proof"] == dict.fromkeys(stage.nodes, 0)
    lines = sorted((stage.folder / "log").read_text().splitlines())
    assert lines == sorted(f"{node}: hi from {node}" for node in stage.nodes for _ in range(2))
    assert [event["kind"] for event in stage.events] == ["ended"]


def test_hostile_text_runs_nothing_and_secrets_stand_in_no_command_line(
    begin: Begin, hosts: Hosts, tmp_path: Path
) -> None:
    folder = tmp_path / "-$(touch X);'\"\n`touch X`"
    folder.mkdir()
    evil, secret = f"$(touch {tmp_path}/X); touch {tmp_path}/X\n'\"`touch {tmp_path}/X`", "correct-horse-battery"
    stage = HeadOfStage(
        hosts,
        folder,
        f"assert os.environ['EVIL'] == {evil!r}\nassert os.getcwd() == {str(folder)!r}\n{WAIT}",
        env={"EVIL": evil, "HF_TOKEN": secret},
        environ={"WANDB_API_KEY": secret},
    )
    try:
        stage.ranks_are_there()
        seen = [process for host in hosts.names for process in hosts.processes(host)]
        connections = [one for one in seen if re.search(r"^(ssh|sshd)\b|llm-wizard", " ".join(one.argv))]
        assert len(connections) >= 6
        assert not any(secret in word for one in seen for word in one.argv)
        assert not any(str(tmp_path) in word for one in connections for word in one.argv)
        assert not any(secret in one.env.values() for one in connections)
        stage.say("term")
        assert stage.hear("ended")["proof"] == dict.fromkeys(stage.nodes, 0)
    finally:
        stage.close()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert not any(Path(place, "X").exists() for place in (folder, hosts.home(hosts.head), hosts.home(stage.nodes[0])))


def test_a_killed_rank_is_named(begin: Begin) -> None:
    stage = begin(DEAF, limits=SHORT)
    stage.ranks_are_there()
    os.kill(stage.rank_pid(3), signal.SIGKILL)
    end = stage.hear("ended")
    assert (end["code"], end["troubles"][0][:3]) == (-9, ["rank", stage.nodes[1], 3])
    assert stage.left() == {}


def test_a_dead_node_is_named_and_another_run_on_the_hosts_lives_on(begin: Begin, hosts: Hosts) -> None:
    neighbours = [
        hosts.popen(node, ["sleep", "100"], {"LLM_WIZARD_RUN": mark})
        for node in hosts.nodes[:1]
        for mark in ("/other/run", f"{hosts.folder}", "")
    ]
    stage = begin(DEAF, limits=SHORT)
    stage.ranks_are_there()
    hosts.kill_node(stage.nodes[1])
    try:
        trouble = stage.hear("trouble")
        assert (trouble["trouble"], trouble["node"]) == ("node", stage.nodes[1])
        assert "closed by remote host" in trouble["text"]
        assert stage.hear("ended")["proof"] == {stage.nodes[0]: 0, stage.nodes[1]: None}
        assert stage.left() == {}
        assert [neighbour.poll() for neighbour in neighbours] == [None] * 3
    finally:
        hosts.revive(stage.nodes[1])
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def test_a_node_that_refuses_is_named_in_sshs_words_and_nothing_starts(begin: Begin, hosts: Hosts) -> None:
    hosts.kill_node(hosts.nodes[1])
    try:
        stage = begin(WAIT)
        (trouble,) = stage.hear("ended")["troubles"]
    finally:
        hosts.revive(hosts.nodes[1])
    assert trouble[:2] == ["node", stage.nodes[1]]
    assert "Connection refused" in trouble[3]
    assert not (stage.folder / "rank-0.pid").exists()


def test_a_link_that_is_away_for_a_moment_does_not_end_a_stage(begin: Begin, hosts: Hosts) -> None:
    stage = begin("time.sleep(6)", limits={**SHORT, "back_within": 8.0, "silence": 9.0})
    stage.ranks_are_there()
    hosts.drop_packets(stage.nodes[1])
    trouble = stage.hear("trouble")
    hosts.accept_packets(stage.nodes[1])
    assert (trouble["trouble"], trouble["node"]) == ("link", stage.nodes[1])
    assert "no contact" in trouble["text"]
    assert stage.hear("link-back")["node"] == stage.nodes[1]
    assert stage.hear("ended")["code"] == 0


def test_a_link_that_stays_away_ends_the_stage_at_both_ends(begin: Begin, hosts: Hosts) -> None:
    stage = begin(DEAF, limits=SHORT)
    stage.ranks_are_there()
    hosts.link_down(stage.nodes[1])
    try:
        end = stage.hear("ended")
        assert end["troubles"][0][:2] == ["link", stage.nodes[1]]
        assert end["proof"] == {stage.nodes[0]: 0, stage.nodes[1]: None}
        # Without any connection.
        wait_for(lambda: stage.left() == {}, SHORT["safe_again"])
    finally:
        hosts.link_up(stage.nodes[1])


def test_a_head_that_is_killed_leaves_nothing_anywhere_and_the_ranks_save(begin: Begin) -> None:
    stage = begin(WAIT)
    stage.ranks_are_there()
    stage.process.kill()
    wait_for(lambda: stage.left() == {})
    assert all((stage.folder / f"saved-{rank}").exists() for rank in range(4))


def test_a_head_machine_that_vanishes_leaves_nothing_on_the_nodes(begin: Begin, hosts: Hosts) -> None:
    stage = begin(DEAF, limits=SHORT)
    stage.ranks_are_there()
    hosts.link_down(hosts.head)
    try:
        wait_for(lambda: set(stage.left()) <= {hosts.head}, SHORT["safe_again"])
    finally:
        hosts.link_up(hosts.head)


def test_under_slurm_a_stage_ends_well_and_gets_none_of_the_heads_secrets(begin_in_job: Begin) -> None:
    script = "print(sorted(n for n in os.environ if 'TOKEN' in n), os.environ['HOME'], flush=True); time.sleep(0.5)"
    stage = begin_in_job(script, environ={"SOME_TOKEN": "correct-horse"}, env={"EVIL": "$(touch X)"})
    end = stage.hear("ended")
    assert (end["code"], end["proof"]) == (0, dict.fromkeys(stage.nodes, 0))
    assert set((stage.folder / "log").read_text().splitlines()) == {
        f"{n}: [] {stage.hosts.folder}/home" for n in stage.nodes
    }


def test_under_slurm_a_killed_rank_is_named(begin_in_job: Begin) -> None:
    stage = begin_in_job(DEAF, limits=SHORT)
    stage.ranks_are_there()
    os.kill(stage.rank_pid(2), signal.SIGKILL)
    end = stage.hear("ended")
    assert (end["code"], end["troubles"][0][:3]) == (-9, ["rank", stage.nodes[1], 2])
    assert stage.left() == {}


def test_under_slurm_a_dead_node_is_named(begin_in_job: Begin, slurm_hosts: Hosts) -> None:
    stage = begin_in_job(DEAF, limits=SHORT)
    stage.ranks_are_there()
    slurm_hosts.kill_node(stage.nodes[1])
    try:
        end = stage.hear("ended")
        assert end["troubles"][0][:2] == ["node", stage.nodes[1]]
        assert "slurmd is gone" in end["troubles"][0][3]
        assert stage.left() == {}
    finally:
        slurm_hosts.revive(stage.nodes[1])


def test_under_slurm_an_srun_that_was_killed_leaves_nothing(begin_in_job: Begin, slurm_hosts: Hosts) -> None:
    stage = begin_in_job(DEAF, limits=SHORT)
    stage.ranks_are_there()
    sruns = [p for p in slurm_hosts.processes(slurm_hosts.head) if f"--nodelist={stage.nodes[1]}" in p.argv]
    os.kill(sruns[0].machine_pid, signal.SIGKILL)
    end = stage.hear("ended")
    assert end["troubles"][0][:2] == ["link", stage.nodes[1]]
    assert end["proof"][stage.nodes[1]] is not None
    assert stage.left() == {}


def test_under_slurm_a_head_that_is_killed_leaves_nothing(begin_in_job: Begin, slurm_hosts: Hosts) -> None:
    stage = begin_in_job(WAIT, limits=SHORT)
    stage.ranks_are_there()
    (head,) = [
        p for p in slurm_hosts.processes(slurm_hosts.head) if str(HEAD_OF_STAGE) in p.argv and "salloc" not in p.argv
    ]
    os.kill(head.machine_pid, signal.SIGKILL)
    wait_for(lambda: stage.left() == {})
