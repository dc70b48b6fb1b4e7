"""What a plan needs of the machine: only what one of its stages needs can fail a check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.doctor.home import user_home
from core.doctor.profiles import MEGATRON_MODERN, MODERN, PROFILES, Profile

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
MEGATRON_STAGES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("torch", "deepspeed", "numpy", "transformers", "sentencepiece", "einops", "regex", "six"), ("data", "pretrain")
    ),
    "pybind11": ("pretrain",),
    "ninja": ("pretrain",),
    "tensorboard": ("pretrain",),
    "nltk": ("data",),
}
"""What the checkout imports (pretrain_gpt.py, and tools/preprocess_data.py for the data), or compiles with, without apex."""
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
    """The original's folder, which holds apex, and Megatron-DeepSpeed and llm-jp-sft where the preset names none."""
    checkout: str = ""
    """The Megatron-DeepSpeed checkout that the preset names."""
    sft_checkout: str = ""
    """The llm-jp-sft checkout that the preset names."""
    flash: bool = True
    """Whether Megatron is asked for flash-attn."""
    fused_kernels: bool = True
    """Whether Megatron is asked for its own CUDA kernels and apex's gradient accumulation."""
    exact: bool = True
    """Whether another version than the pinned one is a failure; a warning in an environment that a preset names."""
    unset: str = ""
    """The preset's key for `python`, where it is not set and the run would therefore start another Python."""

    @property
    def torch(self) -> bool:
        return "torch" in self.packages

    @property
    def original(self) -> bool:
        """Whether the environment is the original pipeline's."""
        return self.profile.name in ("original", "original-abci")

    @property
    def training(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if stage in TRAINING)

    @property
    def uploads(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if stage.startswith("upload-"))

    @property
    def megatron(self) -> str:
        """The Megatron-DeepSpeed checkout; empty where the plan uses none."""
        return self.checkout or (f"{self.root}/Megatron-DeepSpeed" if self.root else "")

    @property
    def llm_jp_sft(self) -> str:
        """The llm-jp-sft checkout."""
        return self.sft_checkout or f"{self.root}/llm-jp-sft"

    @property
    def prefix(self) -> str:
        """The folder of the training environment."""
        return str(Path(self.python).parent.parent)


def needs_of(plan: Mapping[str, Any]) -> Needs:
    """The needs of a plan.json document, with the packages of those stages that run under this tool's own training Python."""
    preset = plan["preset"]
    running = {stage["id"]: stage for stage in plan["stages"] if not stage["skip"]}
    packages: dict[str, list[str]] = {}
    foreign = _foreign_stages(plan)
    for stage_id, stage in running.items():
        if stage_id in foreign and stage_id != "data":  # preprocess_data.py is started by our stage
            continue
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
    """The needs of a plan.json document under the profile asked for; else those of the first environment that its stages run in."""
    if profile is None:
        return environments_of(plan)[0]
    if profile == "modern":
        return needs_of(plan)
    return megatron_needs(plan, PROFILES[profile])


def environments_of(plan: Mapping[str, Any]) -> list[Needs]:
    """The needs of each environment: those of the original's checkouts first, where stages run in them, then this tool's own."""
    own, preset, foreign = needs_of(plan), plan["preset"], _foreign_stages(plan)
    found: list[Needs] = []
    for python in dict.fromkeys(foreign.values()):
        stages = tuple(stage for stage, its_python in foreign.items() if its_python == python)
        modern = "finetune" not in stages and uses_stand_ins(plan)
        original = "original-abci" if "abci_" in str(preset.get("original", "")) else "original"
        profile = MEGATRON_MODERN if modern else PROFILES[original]
        needs = megatron_needs(plan, profile, stages, python)
        found.append(replace(needs, exact=False))
    return [*found, own] if own.packages or not found else found


def uses_stand_ins(plan: Mapping[str, Any]) -> bool:
    """Whether the pretraining has core/megatron/shim on its path: always on a CPU, else where the preset says so."""
    on_cpu = any(stage["id"] == "pretrain" and stage["derived"].get("device") == "cpu" for stage in plan["stages"])
    return on_cpu or bool(plan["preset"]["megatron"]["apex"] == "shim")


def _foreign_stages(plan: Mapping[str, Any]) -> dict[str, str]:
    """The running stages whose program is one of the original's checkouts, with the Python they are started by ("" where unset)."""
    preset = plan["preset"]
    running = {stage["id"] for stage in plan["stages"] if not stage["skip"]}
    megatron = preset["megatron"]["python"] or preset["cluster"]["python"] or ""
    stages = {}
    if "data" in running and preset["data"]["tool"] == "preprocess_data":
        stages["data"] = megatron
    if "pretrain" in running and preset["pretrain"]["backend"] == "megatron":
        stages["pretrain"] = megatron
    if "finetune" in running and preset["finetune"]["backend"] == "llm-jp-sft":
        stages["finetune"] = preset["finetune"]["python"] or preset["cluster"]["python"] or ""
    return stages


def megatron_needs(
    plan: Mapping[str, Any], profile: Profile, stages: tuple[str, ...] | None = None, python: str | None = None
) -> Needs:
    """The needs of the original's checkouts: where the preset says they are, else where the original's README puts things.

    `stages` are those that run in this environment (all of the plan when None), `python` the Python that starts them.
    """
    preset, own, home = plan["preset"], needs_of(plan), str(user_home())
    megatron, finetune = preset["megatron"], preset["finetune"]
    chosen = own.stages if stages is None else stages
    unset = ""
    if python is None:
        python = megatron["python"] or preset["cluster"]["python"]
    if not python and stages is not None:
        unset = "megatron.python" if "pretrain" in chosen or "data" in chosen else "finetune.python"
    if not python and not profile.conda:
        python, unset = own.python, ""  # the run starts it, and a profile without conda can be put into any environment
    needs = original_needs(replace(own, stages=chosen), home, python or None, profile)
    trains = stages is None or "pretrain" in stages or "data" in stages
    checkout = str(megatron["checkout"] or "")
    root = str(Path(checkout).parent) if checkout else f"{home}/ucllm_nedo_dev/train"
    return replace(
        needs,
        stages=own.stages,
        root=root if trains else "",
        checkout=checkout if trains else "",
        sft_checkout=str(finetune["checkout"] or ""),
        flash=bool(megatron["flash_attention"]) and not (stages and needs.gpus == 0),
        fused_kernels=bool(megatron["fused_kernels"]) and not (stages and needs.gpus == 0),
        unset=unset,
    )


def original_needs(needs: Needs, home: str, python: str | None, profile: Profile = PROFILES["original"]) -> Needs:
    """The needs of the original pipeline, where its README puts things, on what the plan says of stages, sizes and nodes.

    `python` is the training Python where it is not the README's.
    """
    if profile.name == "megatron-modern":
        users = MEGATRON_STAGES | ({"wandb": ("pretrain",)} if needs.wandb else {})
    else:
        users = {name: ORIGINAL_STAGES.get(name, TRAINING) for name in profile.requires}
    packages = {name: tuple(stage for stage in stages if stage in needs.stages) for name, stages in users.items()}
    return replace(
        needs,
        profile=profile,
        packages={name: stages for name, stages in packages.items() if stages},
        python=python or f"{home}/miniconda3/envs/.venv_train/bin/python",
        builds_kernels=True,
        open_files=65536 if profile.name != "megatron-modern" else needs.open_files,
        shared_memory=1 << 30 if profile.name != "megatron-modern" else needs.shared_memory,
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
