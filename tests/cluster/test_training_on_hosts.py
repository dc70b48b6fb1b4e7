"""A real pretraining on real hosts, by the scripts that measure it (scripts/cluster_parity.py, cluster_faults.py), at a reduced size."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.hosts import Hosts

from core.files import read_json

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import cluster_faults
import cluster_parity

pytestmark = pytest.mark.slow

HOSTILE = "a $(touch canary); 'b' \"c\" `touch canary` -d"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("training")
    cluster_parity.write_corpus(made / "corpus.jsonl")
    return made


def train(launcher: str, hosts: Hosts, folder: Path, runs: Path) -> list[float]:
    argv = cluster_parity.command(launcher, 2, runs, folder / "corpus.jsonl", hosts)
    evil = 'cluster.env=["EVIL=$(touch canary); \' \\" -x"]'
    done = hosts.run(hosts.head, [*argv, "--set", evil], cluster_parity.KERNELS, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    state = runs / f"{launcher}2" / "state.json"
    deadline = time.monotonic() + 240
    while not state.exists() or read_json(state)["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert read_json(state)["state"] == "done", read_json(state)
    return cluster_parity.losses(runs / f"{launcher}2")


def test_two_hosts_give_the_losses_of_one_and_a_hostile_folder_is_only_a_name(slurm_hosts: Hosts, folder: Path) -> None:
    before, runs = slurm_hosts.dot_ssh(), folder / HOSTILE
    here = train("local", slurm_hosts, folder, folder / "plain")
    assert len(here) == 12
    for launcher in ("ssh", "submit"):
        assert train(launcher, slurm_hosts, folder, runs) == pytest.approx(here, abs=1e-6)
        time.sleep(0.5)  # srun's own end
        for host in slurm_hosts.names:
            assert slurm_hosts.pids(host, runs / f"{launcher}2") == []
    assert slurm_hosts.dot_ssh() == before
    assert not [*folder.rglob("canary"), *slurm_hosts.folder.rglob("canary")]


@pytest.fixture(scope="module")
def training(hosts: Hosts, folder: Path) -> Iterator[cluster_faults.Training]:
    made = cluster_faults.Training(hosts, folder, timeout=200)
    made.random.seed(1)
    made.start()
    assert made.wait_for_step(0) is not None
    yield made
    made.verb("stop", "faults")
    assert made.left() == 0


@pytest.mark.parametrize("kind", ["rank", "node"])
def test_what_breaks_is_named_and_the_run_goes_on_from_its_checkpoint(
    training: cluster_faults.Training, kind: str
) -> None:
    node = training.nodes()[0]
    neighbour = training.hosts.popen(training.nodes()[1], ["sleep", "1000"], {"LLM_WIZARD_RUN": "/other", "RANK": "0"})
    fault = training.break_it(kind, node)
    assert fault.wrong == ""
    assert fault.named is not None
    assert fault.recovered is not None
    assert (node in training.nodes()) == (kind == "rank")
    assert cluster_faults.replayed_differently(training.records()) == []
    assert neighbour.poll() is None
    neighbour.kill()
