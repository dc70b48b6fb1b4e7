"""What a plan needs of the machine: only what one of its stages needs can fail a check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

PYTHON = (3, 10)
"""The oldest Python that the stages' own code runs under."""

MINIMUM = {
    "accelerate": "1.10",
    "datasets": "4.0",
    "deepspeed": "0.18",
    "huggingface_hub": "1.0",
    "orjson": "3.10",
    "peft": "0.17",
    "psutil": "6.0",
    "pyarrow": "17",
    "pydantic": "2.11",
    "sentencepiece": "0.2.3",
    "torch": "2.6",
    "transformers": "5.0",
    "trl": "1.0",
    "wandb": "0.20",
    "zstandard": "0.23",
}
"""The oldest version that is used of each package: those of pyproject.toml (a test compares the two)."""

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
OWN_FILES = 4096
"""Open files that a training process with its libraries, data and logs can come to."""


@dataclass(frozen=True)
class Needs:
    """`packages` maps a package to the stages that import it; sizes are bytes."""

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

    @property
    def torch(self) -> bool:
        return "torch" in self.packages


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
