"""The preset's `cluster` section: which machines train, how processes get there, and what happens when one fails."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from core.facts import Facts
from core.section import FilePath, Section

VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*=[^\x00\n]*$"
RESTARTS, HANG_MINUTES = 3, 30.0
"""On several nodes, where the preset says nothing: with every node more, something fails more often."""


class ClusterSection(Section):
    """Where the stages run."""

    python: FilePath | None = None
    """The training Python, at the same place on every node; the one llm-wizard itself runs under when empty."""
    processes: Annotated[int, Field(gt=0)] | None = None
    """Training processes on each node; one a GPU, or one on a machine without GPUs, when empty."""
    threads: Annotated[int, Field(gt=0)] | None = None
    """CPU threads of each training process; the machine's cores shared out evenly when empty."""
    nodes: str = ""
    """Nodes that train, such as node[001-016]; this machine, or those of the Slurm allocation, when empty."""
    hostfile: FilePath | None = None
    """A DeepSpeed hostfile (`name slots=8`) that names the nodes instead; its slots are the processes of each node."""
    launcher: Literal["auto", "local", "ssh", "slurm", "deepspeed"] = "auto"
    """How processes get to the nodes. auto: srun inside a Slurm allocation, ssh for other nodes, else this machine; deepspeed is the original's own (pdsh)."""
    spares: str = ""
    """Nodes that take the place of one that is gone."""
    interface: str = ""
    """Network interface that the nodes talk over; the one on the route between them when empty."""
    env: list[Annotated[str, Field(pattern=VARIABLE)]] = []
    """Variables set for the training processes on every node, such as NCCL_DEBUG=INFO. No secrets: a preset is shared."""
    restarts: Annotated[int, Field(ge=0)] | None = None
    """How often a training that fails starts again from its last checkpoint before there is a newer one; 3 on several nodes and 0 on one machine when empty."""
    hang_timeout: Annotated[float, Field(ge=0)] | None = None
    """Minutes without a step after which a training counts as hung: every process's stack is saved and it starts again. 30 on several nodes, else off, when empty; 0 is off."""
    node_wait: Annotated[float, Field(ge=0)] = 10.0
    """Minutes to wait for a node that is gone, where no spare can take its place."""

    @model_validator(mode="after")
    def _one_of_each(self) -> ClusterSection:
        if self.nodes and self.hostfile:
            raise ValueError("give cluster.nodes or cluster.hostfile, not both")
        if self.launcher == "local" and (self.nodes or self.hostfile):
            raise ValueError(
                "cluster.launcher is local, which is this machine; cluster.nodes needs ssh, slurm or deepspeed"
            )
        return self

    def variables(self) -> dict[str, str]:
        """`env` by name."""
        return dict(variable.split("=", 1) for variable in self.env)

    def spare_nodes(self) -> tuple[str, ...]:
        """`spares` by name. Raises InputError."""
        from core.cluster.inventory import expand

        return expand(self.spares) if self.spares else ()

    def process_count(self, facts: Facts, device: str = "auto") -> int:
        """How many ranks train on one node."""
        if self.processes:
            return self.processes
        if facts.slots:
            return facts.slots
        return max(1, len(facts.gpus)) if device != "cpu" else 1

    def thread_count(self, facts: Facts, processes: int) -> int:
        """CPU threads of one rank, where so many share a node."""
        return self.threads or max(1, facts.cores // processes)

    def restart_budget(self, nodes: int) -> int:
        """Restarts without a new checkpoint in between."""
        return self.restarts if self.restarts is not None else RESTARTS if nodes > 1 else 0

    def hang_seconds(self, nodes: int) -> float | None:
        """Silence after which a training is taken as hung; None for never."""
        minutes = self.hang_timeout if self.hang_timeout is not None else HANG_MINUTES if nodes > 1 else 0
        return 60 * minutes or None
