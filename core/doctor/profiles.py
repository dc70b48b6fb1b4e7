"""The environments: `modern`, which this tool's own stages need; `original` and `original-abci`, the pipeline's own pins; and
`megatron-modern`, today's torch under the original's Megatron-DeepSpeed checkout, without apex and flash-attn.

Requirements are pip's: "==2.2.0", ">=4.36,<4.48".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

ProfileName = Literal["original", "original-abci", "megatron-modern", "modern"]

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


@dataclass(frozen=True)
class Profile:
    """What an environment must be. `python` is the oldest version, or with `python_exact` the only one."""

    name: ProfileName
    python: tuple[int, int]
    requires: Mapping[str, str]
    python_exact: bool = False
    cuda: str | None = None
    """The CUDA that the toolkit and torch must both have; None where torch's own decides."""
    ops: tuple[str, ...] = ()
    """DeepSpeed ops that a training uses."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Checkouts (folder name) at their tags."""
    conda: bool = False
    """Whether its set-up makes a conda environment; else one that exists is filled."""


MODERN = Profile("modern", (3, 10), {name: f">={version}" for name, version in MINIMUM.items()})

ORIGINAL = Profile(
    "original",
    (3, 9),
    {
        "torch": "==2.2.0",
        "torchvision": "==0.17.0",
        "torchaudio": "==2.2.0",
        "pip": ">=23.1",
        "ninja": "==1.11.1",
        "deepspeed": "==0.12.4",
        "apex": "==0.1",
        "flash-attn": "==2.5.0",
        # The README's requirements.txt gives lower bounds only, and what they resolve to today breaks the pipeline: NumPy 2 under
        # torch 2.2, transformers without megatron_gpt2 (4.48), trl without its collator (0.20). These are the fine-tuning's own pins.
        "numpy": "==1.26.2",
        "protobuf": "<3.21.0",
        "transformers": "==4.36.2",
        "tokenizers": "==0.15.0",
        "trl": "==0.7.4",
        "accelerate": "==0.25.0",
        "peft": "==0.7.1",
        "datasets": "==2.15.0",
        "huggingface-hub": "==0.19.4",
        "bitsandbytes": "==0.41.3.post2",
        "sentencepiece": "==0.1.99",
        "scipy": "==1.11.4",
        "wandb": "==0.16.1",
        "pybind11": ">=2.6",
        "einops": ">=0.6",
        "nltk": ">=3.8",
        # torch 2.2's cpp_extension imports pkg_resources.packaging, which setuptools 70 took away.
        "setuptools": "==69.5.1",
    },
    python_exact=True,
    cuda="11.8",
    conda=True,
    ops=("fused_adam",),
    tags={
        "Megatron-DeepSpeed": "ucllm_nedo_v20240415.1.0",
        "apex": "23.08",
        "llm-jp-sft": "ucllm_nedo_v20240415.1.0",
    },
)


ABCI = replace(
    ORIGINAL,
    name="original-abci",
    python=(3, 11),
    requires={**ORIGINAL.requires, "torch": "==2.0.1", "torchvision": "==0.15.2", "torchaudio": "==2.0.2"},
    conda=False,
)
"""The README for ABCI: Python, CUDA and the compiler come from `module load python/3.11 cuda/11.8 hpcx/2.12`, the rest lies in a venv."""

MEGATRON_MODERN = Profile(
    "megatron-modern",
    (3, 9),
    {
        # 0.12.4 is the original's. 0.19.6 and 0.19.8 were run; from 0.19.7 on a stand-in replaces its compression module.
        "deepspeed": ">=0.12.4,<0.20",
        "torch": ">=2.1",
        "transformers": ">=4.34",
        "sentencepiece": ">=0.1.99",
        "einops": ">=0.6",
        "pybind11": ">=2.6",
    },
    tags={"Megatron-DeepSpeed": ORIGINAL.tags["Megatron-DeepSpeed"]},
)
"""What pretrain_gpt.py needs with core/megatron/shim on PYTHONPATH."""

PROFILES: dict[str, Profile] = {profile.name: profile for profile in (ORIGINAL, ABCI, MEGATRON_MODERN, MODERN)}


def version_of(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.13.0+cpu -> (2, 13, 0). Raises ValueError where it begins with none."""
    match = re.match(r"\d+(\.\d+)*", text)
    if match is None:
        raise ValueError(f"{text!r} is no version")
    return tuple(int(part) for part in match[0].split("."))


def satisfies(version: str, requirement: str) -> bool:
    """Whether a version fits a requirement such as ">=4.36,<4.48". A local part (+cu118) and a pre-release mark are passed over."""
    have = version_of(version)
    for part in requirement.split(","):
        match = re.fullmatch(r"(==|>=|<=|<|>)(\S+)", part.strip())
        if match is None:
            raise ValueError(f"{requirement!r} is no requirement")
        want = version_of(match[2])
        width = max(len(have), len(want))
        one, two = (numbers + (0,) * (width - len(numbers)) for numbers in (have, want))
        fits = {"==": one == two, ">=": one >= two, "<=": one <= two, "<": one < two, ">": one > two}
        if not fits[match[1]]:
            return False
    return True
