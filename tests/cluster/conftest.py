"""Real agents under the real collector; where there is no GPU, a fake NVML library in C stands below the agent's own calls."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cluster.hosts import Hosts, hosts_or_skip
from scripted_runs import scripted, wait_for

from core.cluster.agent_stream import Interruption, Node
from core.cluster.collector import Collector, local_node

__all__ = ["scripted"]

HEALTHY = "".join(f"{90 + i} {60000 + i} 81920 {55 + i} 480 700 1980 0 0 0 0\n" for i in range(8))
"""Eight GPUs at work, in the words of fake_nvml.c."""


@dataclass
class Recorded:
    """A sink that keeps everything."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, int, bool]] = field(default_factory=list)
    """Of each interruption its words, the restarts and whether it is news."""
    kinds: list[str] = field(default_factory=list)
    backs: list[str] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def sample(self, host: str, sample: Mapping[str, Any]) -> None:
        self.samples.append(dict(sample))

    def interruption(self, what: Interruption) -> None:
        self.failures.append((what.words, what.restarts, what.is_news))
        self.kinds.append(what.kind)

    def back(self, host: str, away_s: float) -> None:
        self.backs.append(host)

    def close(self) -> None:
        self.closed.set()

    def wait(self, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The first sample from now on that is as wanted."""
        begin = len(self.samples)
        wait_for(lambda: any(condition(sample) for sample in self.samples[begin:]))
        return next(sample for sample in self.samples[begin:] if condition(sample))


Watch = Callable[..., Recorded]


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """`watch(run, period=0.1, env={})`: this machine's agent, or `nodes=[...]`, until the test ends."""
    collectors = []

    def start(run: Any = None, period: float = 0.1, nodes: list[Node] | None = None, **env: str) -> Recorded:
        sink = Recorded()
        node = local_node(run, tmp_path, period)
        collector = Collector(nodes or [replace(node, env={**node.env, **env})], sink)
        collectors.append(collector)
        collector.start()
        return sink

    yield start
    for collector in collectors:
        collector.stop()


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the fake libnvidia-ml.so.1."""
    return build_nvml(tmp_path_factory.mktemp("nvml"))


def build_nvml(folder: Path, *options: str) -> Path:
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run(["cc", "-shared", "-fPIC", *options, "-o", folder / "libnvidia-ml.so.1", source], check=True)
    return folder


@dataclass
class FakeGpus:
    """The node's GPUs; `set` changes them while an agent looks at them."""

    folder: Path
    file: Path

    @property
    def env(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": str(self.folder), "FAKE_NVML_FILE": str(self.file)}

    def set(self, lines: str) -> None:
        beside = self.file.with_suffix(".new")
        beside.write_text(lines)
        beside.replace(self.file)


@pytest.fixture
def gpus(nvml_folder: Path, tmp_path: Path) -> FakeGpus:
    fake = FakeGpus(nvml_folder, tmp_path / "gpus")
    fake.set(HEALTHY)
    return fake


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """A head and four nodes, reached by the real ssh."""
    yield from hosts_or_skip()


@pytest.fixture(scope="module")
def slurm_hosts() -> Iterator[Hosts]:
    """The same, with Slurm on them."""
    yield from hosts_or_skip(slurm=True)


@pytest.fixture
def slurm(slurm_hosts: Hosts) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`slurm(argv, env={})`: a command on the head, where jobs are submitted."""

    def call(argv: list[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return slurm_hosts.run(slurm_hosts.head, argv, env)

    return call
