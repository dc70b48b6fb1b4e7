"""Writing a model folder that plain transformers loads, and giving it its name only when it is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from core.files import sync
from core.train.checkpoint import files_of
from core.train.model import CLASSES
from core.train.vocabulary import Vocabulary


def write_folder(
    target: Path,
    config: PretrainedConfig,
    weights: dict[str, Tensor],
    vocabulary: Vocabulary,
    dtype: torch.dtype,
    tokenizer: Path,
) -> None:
    """Write weights without the vocabulary's padding, config, generation config and tokenizer into `target`."""
    config.vocab_size = vocabulary.size
    config.use_cache = True
    config.dtype = dtype
    with torch.device("meta"):
        model: PreTrainedModel = CLASSES[config.model_type](config)
    model.generation_config = GenerationConfig(
        bos_token_id=vocabulary.bos,
        eos_token_id=[vocabulary.eos] + ([vocabulary.eod] if vocabulary.eod is not None else []),
        pad_token_id=vocabulary.pad,
    )
    model.save_pretrained(target, state_dict={name: weight.to(dtype).contiguous() for name, weight in weights.items()})
    for file in sorted(tokenizer.iterdir()):
        if file.is_file():
            shutil.copyfile(file, target / file.name)


def replace_folder(temporary: Path, target: Path) -> None:
    """Let `temporary` take the place of `target`; a reader sees the old folder or the new one, whole."""
    for file in files_of(temporary):
        sync(file)
    sync(temporary)
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old)
    else:
        temporary.rename(target)
    sync(target.parent)
