"""What a plan needs of the machine: only what one of its stages needs can fail a check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.doctor.home import user_home
from core.doctor.profiles import MODERN, ORIGINAL, Profile

EVERY_STAGE = ("orjson", "psutil", "pydantic")
OF_STAGE: dict[str, tuple[str, ...]] = {
    "tokenizer": ("sentencepiece", "tokenizers", "transformers"),
    "data": ("sentencepiece", "numpy"),
    "pretrain": ("torch", "transformers"),
    "convert": ("torch", "transformers"),
    "upload-pretrained": ("torch", "transformers", "huggingface_hub"),
    "finetune": ("torch", "transformers", "trl", "peft", "datasets", "accelerate"),
    "upload-finetuned": ("torch", "transformers", "huggingface_hub"),
}
TRAINING = ("pretrain", "finetune")
ORIGINAL_STAGES: dict[str, tuple[str, ...]] = {
    "apex": ("pretrain",),
    "flash-attn": ("pretrain",),
    "pybind11": ("pretrain",),
    "einops": ("pretrain",),
    "nltk": ("data", "pretrain"),
    "sentencepiece": ("tokenizer", "data", "pretrain", "convert"),
    "transformers": ("convert", "upload-pretrained", "finetune", "upload-finetuned"),
    "tokenizers": ("convert", "upload-pretrained", "finetune", "upload-finetuned"),
    "huggingface-hub": ("upload-pretrained", "upload-finetuned"),
    "trl": ("finetune",),
    "peft": ("finetune",),
    "datasets": ("finetune",),
    "accelerate": ("finetune",),
    "bitsandbytes": ("finetune",),
    "scipy": ("finetune",),
}
"""Which stages of the original pipeline use a package; those that train where it is not listed."""
OWN_FILES = 4096
"""Open files that a training process with its libraries, data and logs can come to."""


@dataclass(frozen=True)
class Needs:
    """`packages` maps a package to the stages that import it; sizes are bytes."""

    profile: Profile = MODERN
    stages: tuple[str, ...] = ()
    """The stages that will run."""
    packages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    python: str = "python"
    """The training Python."""
    gpus: int = 0
    """GPUs that training processes of this machine take."""
    bf16: bool = False
    processes: int = 1
    builds_kernels: bool = False
    """Whether a library compiles C++ for this machine at the first step."""
    open_files: int = 1024
    shared_memory: int = 0
    memory: int = 0
    """Main memory for the training processes; 0 where GPUs hold the model."""
    disk: int = 0
    folder: str = "."
    """Where runs are kept."""
    wandb: bool = False
    """Whether training logs to Weights & Biases over the network."""
    hub: bool = False
    """Whether a stage uploads."""
    launcher: str = "local"
    """local, ssh, slurm or deepspeed."""
    nodes: tuple[str, ...] = ()
    """The nodes by name; empty for this machine alone."""
    slots: Mapping[str, int] = field(default_factory=dict)
    """GPUs of each node as the hostfile states them."""
    root: str = ""
    """The original profile's folder, which holds Megatron-DeepSpeed, apex and llm-jp-sft."""

    @property
    def torch(self) -> bool:
        return "torch" in self.packages

    @property
    def original(self) -> bool:
        """Whether the environment is the original pipeline's."""
        return self.profile.name == "original"

    @property
    def training(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if stage in TRAINING)

    @property
    def uploads(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if stage.startswith("upload-"))

    @property
    def megatron(self) -> str:
        """The Megatron-DeepSpeed checkout; empty where the plan uses none."""
        return f"{self.root}/Megatron-DeepSpeed" if self.root else ""

    @property
    def prefix(self) -> str:
        """The folder of the training environment."""
        return str(Path(self.python).parent.parent)


def needs_of(plan: Mapping[str, Any]) -> Needs:
    """The needs of a plan.json document."""
    preset = plan["preset"]
    running = {stage["id"]: stage for stage in plan["stages"] if not stage["skip"]}
    packages: dict[str, list[str]] = {}
    for stage_id, stage in running.items():
        for package in (*EVERY_STAGE, *OF_STAGE.get(stage_id, ()), *_by_choice(stage, preset)):
            packages.setdefault(package, []).append(stage_id)
    training = {stage_id: running[stage_id]["derived"] for stage_id in TRAINING if stage_id in running}
    processes = max((int(derived["processes"]) for derived in training.values()), default=1)
    on_gpu = [derived for derived in training.values() if derived["device"] == "cuda"]
    deepspeed = [derived for derived in training.values() if "DeepSpeed" in derived["engine"]]
    compiles = "pretrain" in training and training["pretrain"] in on_gpu and preset["pretrain"]["compile"] != "off"
    pretrain = training.get("pretrain", {})
    return Needs(
        stages=tuple(stage_id for stage_id in running if stage_id != "environment"),
        packages={name: tuple(stages) for name, stages in packages.items()},
        python=next(stage["derived"]["python"] for stage in plan["stages"] if stage["id"] == "environment"),
        gpus=max((int(derived["processes"]) for derived in on_gpu), default=0),
        bf16=any(derived["precision"] == "bf16" for derived in on_gpu),
        processes=processes,
        builds_kernels=compiles or any(derived not in on_gpu for derived in deepspeed),
        open_files=OWN_FILES if processes > 1 else 1024,
        shared_memory=1 << 30 if processes > 1 else 0,
        memory=0 if on_gpu else int(pretrain.get("memory_total", 0)) * processes,
        disk=int(pretrain.get("disk_needed", 0)),
        wandb=bool(training) and preset["wandb"]["mode"] == "online",
        hub=any(preset[name.replace("-", "_")]["to"] == "hub" for name in running if name.startswith("upload-")),
        launcher=next((str(running[name]["launcher"]) for name in training if "launcher" in running[name]), "local"),
        nodes=_nodes_by_ssh(running.values()),
    )


def _nodes_by_ssh(running: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """All nodes that stages are started on over ssh; those of a Slurm job are known, and reached, only inside of it."""
    named = (node for stage in running if stage.get("launcher") in ("ssh", "deepspeed") for node in stage["nodes"])
    return tuple(dict.fromkeys(named))


def needs_for(plan: Mapping[str, Any], profile: str | None = None) -> Needs:
    """The needs of a plan.json document under a profile: the one asked for, else the original's for its own backend."""
    preset = plan["preset"]
    needs = needs_of(plan)
    if (profile or ("original" if preset["pretrain"]["backend"] == "megatron" else "modern")) == "modern":
        return needs
    return original_needs(needs, str(user_home()), preset["cluster"]["python"])


def original_needs(needs: Needs, home: str, python: str | None) -> Needs:
    """The needs of the original pipeline, where its README puts things, on what the plan says of stages, sizes and nodes.

    `python` is the training Python where it is not the README's.
    """
    users = {name: ORIGINAL_STAGES.get(name, TRAINING) for name in ORIGINAL.requires}
    packages = {name: tuple(stage for stage in stages if stage in needs.stages) for name, stages in users.items()}
    return replace(
        needs,
        profile=ORIGINAL,
        packages={name: stages for name, stages in packages.items() if stages},
        python=python or f"{home}/miniconda3/envs/.venv_train/bin/python",
        builds_kernels=True,
        open_files=65536,
        shared_memory=1 << 30,
        root=f"{home}/ucllm_nedo_dev/train",
    )


def _by_choice(stage: Mapping[str, Any], preset: Mapping[str, Any]) -> Iterable[str]:
    """Packages that a stage imports because of what the preset says."""
    if stage["id"] in TRAINING:
        if preset["wandb"]["mode"] != "off":
            yield "wandb"
        if "DeepSpeed" in stage["derived"]["engine"]:
            yield "deepspeed"
    if stage["id"] in ("tokenizer", "data"):
        files = [name for paths in stage["inputs"].values() for name in paths]
        if any(name.endswith(".zst") for name in files):
            yield "zstandard"
        if any(name.endswith(".parquet") for name in files):
            yield "pyarrow"
