"""The check before anything is published: the folder loads, and the model goes on from a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from core.errors import StageError


@dataclass(frozen=True)
class Sample:
    """What the model was given and what came back, the prompt included."""

    prompt: str
    text: str


def generate(folder: Path, prompt: str, max_new_tokens: int, chat: bool) -> Sample:
    """Greedy text of the model in `folder`, loaded as its users will; with `chat`, `prompt` is asked as a question.

    Raises:
        StageError: the folder does not load, or the text is not longer than the prompt (the original pipeline's check).
    """
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StageError(f"nothing was published: {folder} does not load: {error}") from error
    if chat and tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        prompt = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(device)
    inputs.pop("token_type_ids", None)
    room = model.config.max_position_embeddings - inputs["input_ids"].shape[1]
    if room < 1:
        raise StageError(
            f"nothing was published: test_prompt fills all {model.config.max_position_embeddings} positions"
        )
    with torch.inference_mode():
        model = model.to(device).eval()
        ids = model.generate(**inputs, max_new_tokens=min(max_new_tokens, room), do_sample=False)
    text = str(tokenizer.decode(ids[0], skip_special_tokens=True))
    # Both go through the tokenizer, so that only what the model added can make the text longer.
    again = str(tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True))
    if len(text) <= len(again):
        raise StageError(
            f"nothing was published: the generated text {text!r} is not longer than the prompt {again!r}",
            "train longer, or set another test_prompt",
        )
    return Sample(prompt, text)
