"""A model folder by hand: a two-layer Llama or GPT-2 and a byte-fallback BPE tokenizer, as the pipeline would leave them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<EOD>"]
TEXT = (
    "### Human: What does the function do?\n### Assistant: It returns the sum of two numbers.\n"
    "Once upon a time, there was a small model that learnt to answer questions about Python.\n"
)
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}### Human: {{ m['content'] }}\n### Assistant:"
    "{% else %} {{ m['content'] }}</s>\n{% endif %}{% endfor %}"
)


def make_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer with the shape of ours: <s> </s> <pad> <EOD>, a space before the text, bytes for unknown characters."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*SPECIAL, *pieces], show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    if chat_template:
        fast.chat_template = chat_template
    return fast


def make_model_folder(folder: Path, family: str = "llama", positions: int = 128, seed: int = 0) -> Path:
    """Config, safetensors weights, generation config with two end tokens, and the tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    if family == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=positions, **ids)
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=positions,
                tie_word_embeddings=True,
                **ids,
            )
        )
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 4], pad_token_id=3)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
