"""Starting a training stage on its nodes: they are asked first, a lost one is replaced or waited for, and what is left there is ended.

Everything that is known only now is filled in here: the port where the ranks meet, the interface of each node, its rank.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import FileIO
from typing import Any

from core.cluster.deepspeed_launcher import DeepSpeedProcess
from core.cluster.inventory import Inventory, nodes_given
from core.cluster.nodes_process import SAFE_AGAIN_S, NodesProcess, NodeStart, sweep
from core.cluster.reach import Reach, reach_of
from core.cluster.section import ClusterSection
from core.cluster.survey import NodeFacts, check_nodes, interface_variables, survey
from core.errors import StageError
from core.runs.directory import RunDirectory
from core.runs.process import Processes, Trouble
from core.stages.command import fill_in

PASSED_PREFIXES = (
    "NCCL_", "GLOO_", "UCX_", "FI_", "IB_", "TORCH", "PYTORCH_", "CUDA_", "TRITON_", "DS_", "OMP_", "MKL_", "KMP_",
    "HF_", "TRANSFORMERS_", "WANDB_",
)  # fmt: skip
PASSED = (
    "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "XDG_CACHE_HOME",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip
NOT_PASSED = ("CUDA_VISIBLE_DEVICES",)
"""Of this machine alone; Slurm gives each node its own."""
LOOK_AGAIN_S = 5.0

Event = Callable[..., None]


class LaunchError(StageError):
    """The stage could not be started on its nodes; `trouble` names the one that is to blame."""

    def __init__(self, message: str, hint: str = "", trouble: Trouble | None = None) -> None:
        super().__init__(message, hint)
        self.trouble = trouble


@dataclass
class NodeLauncher:
    """Starts the stages of one run on its nodes. `replaced` maps a node of the plan to the spare in its place; it is kept in the run's state."""

    run: RunDirectory
    cluster: ClusterSection
    python: str
    event: Event
    stop_asked: Callable[[], bool]
    replaced: dict[str, str] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    """Those that the last start was for."""
    _lost: dict[str, float] = field(default_factory=dict)
    _process: NodesProcess | DeepSpeedProcess | None = None

    def lost(self, node: str) -> None:
        """A node is gone; until SAFE_AGAIN_S after it was last heard, processes of the run may still be at work there."""
        heard = self._process.last_contact if self._process else {}
        self._lost[node] = heard.get(node, time.monotonic())

    def start(self, stage: Mapping[str, Any], environment: Mapping[str, str], grace: float, log: FileIO) -> Processes:
        """Start the stage on all its nodes; `environment` is the supervisor's own without secrets that are not the stage's.

        Raises:
            LaunchError: a node is gone and neither it nor a spare came within cluster.node_wait; or nodes do not fit together.
        """
        reach = reach_of(stage["launcher"], os.environ)
        planned = nodes_given(stage["launcher"], stage["nodes"], os.environ)
        facts = self._gather(planned, reach)
        nodes = [self.replaced.get(node, node) for node in planned]
        self.nodes = tuple(nodes)
        self._check(stage, nodes, facts)
        self._sweep(reach, nodes, grace)
        first, shared = facts[nodes[0]], self._shared(stage, environment)
        starts = [
            NodeStart(node, fill_in(stage["argv"], rank, first.address, first.port), shared | self._own(facts[node]))
            for rank, node in enumerate(nodes)
        ]
        self.event(
            "launched",
            stage=stage["id"],
            launcher=stage["launcher"],
            nodes=nodes,
            meeting=f"{first.address}:{first.port}",
            interfaces={node: facts[node].interface for node in nodes},
            argv=starts[0].argv,
        )
        if stage["launcher"] == "deepspeed":
            self._process = DeepSpeedProcess.start(
                stage, shared, self.run, facts, nodes, reach, grace, log, self.event, python=self.python
            )
        else:
            self._process = NodesProcess(
                reach, starts, stage["cwd"], str(self.run.root), grace, log, self.event, python=self.python
            )
        return self._process

    def _gather(self, planned: list[str], reach: Reach) -> dict[str, NodeFacts]:
        """What all nodes say; those that do not answer are replaced by spares that do, or waited for."""
        deadline = time.monotonic() + 60 * self.cluster.node_wait
        said = False
        while True:
            nodes = [self.replaced.get(node, node) for node in planned]
            # A planned node that was replaced and has come back is as good as a spare.
            spares = [node for node in dict.fromkeys((*self.cluster.spare_nodes(), *planned)) if node not in nodes]
            answers = survey(nodes, reach, self.python, self.run.root, interface=self.cluster.interface)
            gone = [node for node in nodes if node in answers.errors]
            if not gone:
                return answers.facts
            if not said:
                said = True
                for node in gone:
                    self.event(
                        "trouble", trouble="node", node=node, text=f"{node} does not answer: {answers.errors[node]}"
                    )
            if spares and self._replace(planned, gone, spares, reach):
                continue
            if self.stop_asked() or time.monotonic() >= deadline:
                words = "; ".join(f"{node}: {answers.errors[node]}" for node in gone)
                raise LaunchError(
                    f"no answer from {words}",
                    "llm-wizard doctor --nodes ... says more; name a spare with cluster.spares, or resume without the node: "
                    "--set cluster.nodes=...",
                    Trouble("node", gone[0], f"{gone[0]} does not answer"),
                )
            self._pause(LOOK_AGAIN_S)

    def _replace(self, planned: list[str], gone: list[str], spares: list[str], reach: Reach) -> bool:
        """Put spares that answer in the place of nodes that are gone; whether there was one. A stop that is asked for comes first."""
        answers = survey(spares, reach, self.python, self.run.root, interface=self.cluster.interface)
        healthy = [node for node in spares if node in answers.facts]
        changed = False
        for lost, spare in zip(gone, healthy, strict=False):
            # What still runs on the lost one could write into the run: it ends by itself once it has not heard of us for so long.
            self._pause(self._lost.get(lost, -SAFE_AGAIN_S) + SAFE_AGAIN_S - time.monotonic())
            if self.stop_asked():
                return False
            place = next(node for node in planned if self.replaced.get(node, node) == lost)
            self.replaced[place] = spare
            self.event("node-replaced", node=lost, by=spare)
            changed = True
        return changed

    def _check(self, stage: Mapping[str, Any], nodes: list[str], facts: Mapping[str, NodeFacts]) -> None:
        on_node = int(stage["derived"]["processes_on_node"])
        needs_gpus = stage["derived"]["device"] == "cuda"
        try:
            check_nodes(Inventory(tuple(nodes)), facts, on_node if needs_gpus else None)
        except StageError as error:
            raise LaunchError(error.message, error.hint) from None
        world = on_node * len(nodes)
        if world != int(stage["derived"]["processes"]):
            raise LaunchError(
                f"{len(nodes)} nodes with {on_node} processes are {world}; the plan says {stage['derived']['processes']}"
            )

    def _sweep(self, reach: Reach, nodes: list[str], grace: float) -> None:
        for node, killed in sweep(reach, nodes, str(self.run.root), grace, python=self.python).items():
            if killed is None:
                raise LaunchError(
                    f"{node}: it cannot be seen whether processes of this run are left there",
                    trouble=Trouble("node", node, f"{node} does not answer"),
                )
            if killed:
                self.event("warning", text=f"{node}: {killed} processes of an earlier attempt were ended first")

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.stop_asked():
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))

    def _shared(self, stage: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
        """What every rank gets: the plan's variables, the stage's secrets, and of this machine's what concerns training."""
        passed = {
            name: value
            for name, value in environment.items()
            if (name.startswith(PASSED_PREFIXES) or name in PASSED or name in stage["secrets"])
            and name not in NOT_PASSED
        }
        return {**passed, **stage["env"], "LLM_WIZARD_HEAD": os.uname().nodename}

    def _own(self, facts: NodeFacts) -> dict[str, str]:
        """The interface of a node, unless the preset sets it otherwise."""
        chosen = self.cluster.variables()
        return {name: value for name, value in interface_variables(facts.interface).items() if name not in chosen}
