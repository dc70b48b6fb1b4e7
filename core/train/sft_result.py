"""The fine-tuned model as a folder that plain transformers loads: put together beside its place, checked, then renamed."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from core.errors import StageError
from core.files import read_json, write_json


def build_folder(
    source: Path, trained: Path, tokenizer: PreTrainedTokenizerBase, target: Path, lora: bool
) -> PreTrainedModel:
    """Write `target` from what the trainer saved in `trained` (weights, or adapters on `source`'s weights).

    Config, generation config (its end tokens) and precision are those of `source`; a SentencePiece model beside its
    tokenizer goes along.

    Raises:
        StageError: the trainer's weights are incomplete or not finite.
    """
    config = AutoConfig.from_pretrained(source)
    weights = source if lora else trained
    model = AutoModelForCausalLM.from_pretrained(weights, config=config, dtype=torch.float32, local_files_only=True)
    if lora:
        model = PeftModel.from_pretrained(model, trained).merge_and_unload()
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0 or not torch.isfinite(parameter).all():
            raise StageError(f"the fine-tuned weights are unusable: {name} is empty or not finite", "lower finetune.lr")
    if (source / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source)
    model.to(config.dtype or torch.float32).save_pretrained(target)
    tokenizer.save_pretrained(target)
    keep_tokenizer_class(source, target)
    for piece_model in source.glob("*.model"):
        shutil.copyfile(piece_model, target / piece_model.name)
    return model


def keep_tokenizer_class(source: Path, target: Path) -> None:
    """Name the class that `source` names: transformers 5 saves one of its own that transformers 4 does not know."""
    named = read_json(source / "tokenizer_config.json") if (source / "tokenizer_config.json").is_file() else {}
    if "tokenizer_class" in named:
        saved = read_json(target / "tokenizer_config.json")
        write_json(target / "tokenizer_config.json", saved | {"tokenizer_class": named["tokenizer_class"]})


def check_folder(folder: Path, question: str, prompt: str, device: str) -> str:
    """Load the folder as its users will, and let it answer `question`; returns the answer, which may be empty.

    Raises:
        StageError: the folder does not load, its chat template does not give `prompt`, or it cannot generate.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).to(device).eval()
        asked = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        room = model.config.max_position_embeddings - inputs["input_ids"].shape[1]
        if room < 1:
            return ""
        with torch.inference_mode():
            generated = model.generate(**inputs.to(device), max_new_tokens=min(50, room), do_sample=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise StageError(f"the fine-tuned model does not work when loaded: {error}") from error
    if text != prompt:
        raise StageError(f"the chat template gives {text!r}, but the model was trained on {prompt!r}")
    return str(tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
