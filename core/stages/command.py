"""The command and the environment under which a stage's process runs."""

from __future__ import annotations

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
