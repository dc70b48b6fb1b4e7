"""What the plan must know of the nodes that will train, asked of them before anything is started."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core.cluster.inventory import inventory_of
from core.cluster.reach import reach_of
from core.cluster.survey import NodeFacts, check_even, check_nodes, survey
from core.errors import InputError
from core.facts import Facts, Gpu
from core.preset import Preset

FRESH_S = 60.0
"""How long answers are taken for the nodes' present state. The screen plans again with every key that is changed."""
UNKNOWN_GPU = Gpu("as the job gives it", 0)

_asked: dict[tuple[object, ...], tuple[float, Mapping[str, NodeFacts]]] = {}


def with_nodes(facts: Facts, preset: Preset, runs_dir: Path, environ: Mapping[str, str] = os.environ) -> Facts:
    """The facts of this machine, with those of the nodes that the preset means: `cores`, `memory` and `gpus` of the weakest.

    Raises:
        InputError: what names the nodes is wrong, or there are none.
        StageError: a node does not answer, or they do not fit together.
    """
    cluster = preset.cluster
    hostfile = Path(cluster.hostfile) if cluster.hostfile else None
    inventory = inventory_of(cluster.nodes, hostfile, cluster.launcher, environ)
    if inventory is None:
        return _of_a_job_to_come(facts, preset) if cluster.launcher == "slurm" else facts
    launcher = cluster.launcher
    if launcher == "auto":
        launcher = "slurm" if environ.get("SLURM_JOB_NODELIST") else "ssh"
    key = (inventory.nodes, launcher, facts.python, runs_dir, cluster.interface, environ.get("SLURM_JOB_ID"))
    known = _asked.get(key)
    if known is None or time.monotonic() - known[0] > FRESH_S:
        answers = survey(inventory.nodes, reach_of(launcher, environ), facts.python, runs_dir, cluster.interface)
        check_nodes(inventory, answers.facts, None, answers.errors)
        known = _asked[key] = (time.monotonic(), answers.facts)
    nodes = known[1]
    on_gpus = preset.pretrain.device == "cuda" or (
        preset.pretrain.device == "auto" and any(one.gpus or one.no_gpus for one in nodes.values())
    )
    if not cluster.processes and (inventory.slots or on_gpus):
        check_even(inventory, nodes)
    weakest = min(nodes.values(), key=lambda one: (len(one.gpus), min((gpu.memory for gpu in one.gpus), default=0)))
    planned = replace(
        facts,
        nodes=inventory.nodes,
        launcher=launcher,
        slots=min(inventory.slots.values(), default=0),
        cores=min(one.cores for one in nodes.values()),
        memory=min(one.memory for one in nodes.values()),
        gpus=weakest.gpus,
    )
    if on_gpus:
        check_nodes(inventory, nodes, cluster.process_count(planned, preset.pretrain.device))
    return planned


def _of_a_job_to_come(facts: Facts, preset: Preset) -> Facts:
    """The nodes of a job that is still to be submitted have no names yet; how many, and their GPUs, is what it asks for."""
    job = preset.slurm
    if not job.nodes:
        raise InputError(
            "cluster.launcher is slurm, but this is no Slurm job, and slurm.nodes does not say how many nodes one would have",
            "--set slurm.nodes=2 (and slurm.gpus_per_node), then `llm-wizard run ... --submit`; or start inside salloc",
        )
    nodes = tuple(f"node {number} of the job" for number in range(1, job.nodes + 1))
    gpus = (UNKNOWN_GPU,) * (job.gpus_per_node or 0)
    cores = job.cpus_per_task or facts.cores
    return replace(facts, nodes=nodes, launcher="slurm", gpus=gpus, cores=cores)
