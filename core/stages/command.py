"""The command and the environment under which a stage's process runs."""

from __future__ import annotations

from collections.abc import Iterable

from core.facts import Facts
from core.runs.directory import RunDirectory

SECRETS_BY_NEED = {
    "wandb": ("WANDB_API_KEY",),
    "hub": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
}
"""Secrets a stage may inherit, by what it needs them for. They stay in the environment: never in a plan or an argv."""

ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of training on a CPU. Waiting threads sleep: spinning ones, OpenMP's default, take the core from the very
thread they wait for as soon as anything else runs (docs/measurements.md)."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_DISABLED": "true"}


def stage_argv(run: RunDirectory, stage_id: str, facts: Facts, processes: int = 1) -> list[str]:
    """The command of one stage; with several processes, one rank each under torchrun on this machine.

    The script lies at the top of the run's copy of the code, so Python itself puts that folder first on the module path,
    whatever the working directory holds.
    """
    entry = [str(run.code / "stage.py"), stage_id, str(run.root)]
    if processes == 1:
        return [facts.python, *entry]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--max-restarts=0"]
    return [facts.python, *launcher, *entry]


NODE_RANK, MASTER_ADDR, MASTER_PORT = "{node_rank}", "{master_addr}", "{master_port}"
"""What stands in a plan for what is known only when the stage starts; `fill_in` puts it there."""
STARTED, HOST = "{started}", "{host}"
"""Likewise, inside a word: when the stage started (STARTED_FORMAT) and the name of the head. A driver fills them in."""
BYTES = "{bytes}"
"""A word of its own before a prefix of token files: their bytes, in proportion to which they are blended."""
STARTED_FORMAT = "%Y.%m.%d_%H.%M.%S"


def training_argv(run: RunDirectory, stage_id: str, facts: Facts, processes: int, nodes: int) -> list[str]:
    """The command of a training stage: on this machine `stage_argv`; else what each of the nodes runs, with places to fill in.

    `processes` are those of one node. Every node has its torchrun, and the first one's is where all meet.
    """
    if nodes == 0:
        return stage_argv(run, stage_id, facts, processes)
    if facts.launcher == "deepspeed":
        from core.cluster.deepspeed_launcher import deepspeed_argv

        return deepspeed_argv(run, stage_id, facts.python)
    meeting = [f"--node-rank={NODE_RANK}", f"--master-addr={MASTER_ADDR}", f"--master-port={MASTER_PORT}"]
    shape = [f"--nnodes={nodes}", f"--nproc-per-node={processes}", "--max-restarts=0"]
    entry = [str(run.code / "stage.py"), stage_id, str(run.root)]
    return [facts.python, "-m", "torch.distributed.run", *shape, *meeting, *entry]


def fill_in(argv: Iterable[str], node_rank: int, master_addr: str, master_port: int) -> list[str]:
    """`training_argv` with its places filled in, as one node runs it."""
    places = {NODE_RANK: str(node_rank), MASTER_ADDR: master_addr, MASTER_PORT: str(master_port)}
    filled = []
    for word in argv:
        option, equals, value = word.partition("=")
        # Only whole values: a folder may be called "{node_rank}".
        if option.startswith("--") and value in places:
            filled.append(f"{option}{equals}{places[value]}")
        else:
            filled.append(places.get(word, word))
    return filled


def stage_env(run: RunDirectory, threads: int | None = None, online: bool = False) -> dict[str, str]:
    """What is set for a stage on top of the supervisor's environment; None leaves the number of threads to the libraries."""
    env = {
        "PYTHONPATH": str(run.code),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",  # a log in Japanese must not depend on the cluster's locale
        "TOKENIZERS_PARALLELISM": "true",
    }
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    if not online:
        env |= OFFLINE
    return env
