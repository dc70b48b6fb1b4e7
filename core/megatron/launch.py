"""How the original's programs, pretrain_gpt.py and llm-jp-sft's train.py, get to the GPUs: by deepspeed as in the original, or by the launchers that our own training uses."""

from __future__ import annotations

from collections.abc import Sequence

from core.facts import Facts
from core.runs.directory import RunDirectory
from core.stages.command import MASTER_ADDR, MASTER_PORT, NODE_RANK

STAGE_ID = "pretrain"
RUNNER = ("-m", "deepspeed.launcher.runner")
"""What the program `deepspeed` is."""


def launch_argv(
    run: RunDirectory, facts: Facts, python: str, processes: int, script: Sequence[str], stage_id: str = STAGE_ID
) -> list[str]:
    """The command that starts `script` (a file and its arguments) as so many processes on each node."""
    if not facts.nodes:
        options = ["--master_port", MASTER_PORT, "--num_gpus", str(processes)]
        return [python, *RUNNER, *options, *script]
    if facts.launcher == "deepspeed":
        from core.cluster.deepspeed_launcher import deepspeed_argv

        return deepspeed_argv(run, stage_id, python, script)
    shape = [f"--nnodes={len(facts.nodes)}", f"--nproc-per-node={processes}", "--max-restarts=0"]
    meeting = [f"--node-rank={NODE_RANK}", f"--master-addr={MASTER_ADDR}", f"--master-port={MASTER_PORT}"]
    return [python, "-m", "torch.distributed.run", *shape, *meeting, *script]


def original_argv(
    run: RunDirectory, facts: Facts, python: str, port: bool, script: Sequence[str], stage_id: str = STAGE_ID
) -> list[str]:
    """The original's own command, where every option but the port and the nodes is DeepSpeed's default."""
    options = ["--master_port", MASTER_PORT] if port else []
    if facts.nodes:
        options += ["--hostfile", str(run.stage(stage_id) / "hostfile")]
    return [python, *RUNNER, *options, *script]
