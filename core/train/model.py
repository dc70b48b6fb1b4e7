"""The model: transformers' own Llama and GPT-2 code, built from the preset's shape, with seeded initial weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

from core.model import ModelSection
from core.train import attention
from core.train.vocabulary import Vocabulary

CLASSES: dict[str, Any] = {"llama": LlamaForCausalLM, "gpt2": GPT2LMHeadModel}


def model_config(section: ModelSection, vocabulary: Vocabulary, rows: int) -> PretrainedConfig:
    """transformers' config of the shape; `rows` is the height of the embedding, padding included."""
    shape = section.shape()
    common = {
        "vocab_size": rows,
        "initializer_range": shape.init_std,
        "tie_word_embeddings": shape.tied_embeddings,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.pad,
        "use_cache": False,
    }
    if shape.family == "gpt2":
        return GPT2Config(
            n_positions=shape.sequence_length,
            n_embd=shape.hidden_size,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_inner=shape.ffn_size,
            activation_function="gelu_new",
            resid_pdrop=section.dropout,
            embd_pdrop=section.dropout,
            attn_pdrop=section.dropout,
            layer_norm_epsilon=section.norm_eps,
            **common,
        )
    return LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.sequence_length,
        rms_norm_eps=section.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": section.rope_theta},
        **common,
    )


Gathered = Callable[[torch.nn.Parameter], AbstractContextManager[bool]]
"""Makes a weight whole for a while; gives whether this rank is to write it."""


def build_model(
    config: PretrainedConfig, seed: int, gathered: Gathered = lambda _: nullcontext(True)
) -> PreTrainedModel:
    """A model with fp32 weights on the CPU, the same for the same seed on any number of ranks and any device.

    Under DeepSpeed ZeRO-3 the caller keeps an HfDeepSpeedConfig alive, so that transformers partitions the weights as it
    makes them, and `gathered` brings one together at a time.
    """
    torch.manual_seed(seed)
    model: PreTrainedModel = CLASSES[config.model_type]._from_config(
        config, attn_implementation=attention.NAME, dtype=torch.float32
    )
    draw_matrices(model, seed, gathered)
    return model.train()


@torch.no_grad()
def draw_matrices(model: PreTrainedModel, seed: int, gathered: Gathered) -> None:
    """Draw every matrix anew by transformers' own rule, each from a generator of its own name.

    The rule is normal with `initializer_range`; GPT-2's projections into the residual stream are smaller by
    sqrt(2 x layers) (Radford et al. 2019, section 2.3), and the input row of the padding token is zero where it has one.
    transformers draws in an order that depends on how the model is made, and under ZeRO-3 from another state of the random
    generator: without this, equal seeds would start different models.
    """
    embedding = model.get_input_embeddings()
    for name, weight in model.named_parameters():
        shape = getattr(weight, "ds_shape", weight.shape)
        if len(shape) < 2:
            continue
        std = model.config.initializer_range
        if model.config.model_type == "gpt2" and name.endswith("c_proj.weight"):
            std /= math.sqrt(2 * model.config.n_layer)
        key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
        drawn = torch.empty(shape).normal_(
            0.0, std, generator=torch.Generator().manual_seed(int.from_bytes(key, "little"))
        )
        if weight is embedding.weight and embedding.padding_idx is not None:
            drawn[embedding.padding_idx] = 0.0
        with gathered(weight) as mine:
            if mine:
                weight.copy_(drawn)


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep only the inputs of each layer and compute its activations again in the backward pass."""
    if hasattr(model, "activation_checkpointing_enable"):  # its name from transformers 5.23 on
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def load_model(config: PretrainedConfig, file: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The training model with the weights of a checkpoint's model.safetensors rounded to `dtype`, kept in fp32; in eval mode."""
    model = build_model(config, seed=0)
    stored = load_file(file)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(stored.pop(name).to(dtype))
    return model.eval()


def decoder(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its output projection: token ids to hidden states."""
    inner: torch.nn.Module = model.base_model
    return inner


def layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The transformer layers, in order."""
    inner = decoder(model)
    found = inner.h if model.config.model_type == "gpt2" else inner.layers
    assert isinstance(found, torch.nn.ModuleList)
    return found
