"""The way back: a Hugging Face folder of GPT-2 or Llama as a checkpoint that Megatron-DeepSpeed loads with --load and --finetune.

    python -m core.megatron.to_layers MODEL_FOLDER TARGET [--tensor-parallel N] [--pipeline-parallel N] ...

Megatron starts a new training from these weights: the optimizer, the schedule and the position in the data begin anew.
The vocabulary is padded again; the new rows are copies of <pad>'s. That piece is never a target in a text, so a trained
model gives it next to no probability anywhere, and the softmax over the padding changes next to nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from core.errors import InputError, WizardError
from core.exit_codes import ExitCode
from core.files import read_json
from core.megatron.checkpoint_files import POINTER, TRACKER
from core.megatron.convert import ACTIVATIONS, GPT2_ENDS, GPT2_NAMES, LLAMA_ENDS, LLAMA_NAMES
from core.megatron.layers import DTYPES, Architecture, split_ranks
from core.tokenizer.megatron_ids import megatron_ids
from core.tokenizer.model_file import parse_model
from core.train.vocabulary import Vocabulary, read_vocabulary

ADDED_PIECES = 3
"""<PAD>, <BOS> and <EOS>, which Megatron adds to a SentencePiece model that has its own as user-defined symbols."""
MULTIPLE = 128
"""Megatron's --make-vocab-size-divisible-by."""
STEP = 0
BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")
"""Ends of the names of what older versions of transformers saved beside the weights."""


def write_megatron(
    source: Path,
    target: Path,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    pipeline_engine: bool = True,
    rows: int | None = None,
) -> Architecture:
    """Write `target`/global_step0 and the pointers to it; `target` must not exist, and is only there when it is whole.

    Args:
        source: a Hugging Face folder with config.json, safetensors and tokenizer.json.
        pipeline_engine: whether the training uses it: it decides the form of the files.
        rows: of the embedding in Megatron, padding included; what Megatron makes of the tokenizer when None.

    Raises:
        InputError: the folder is no GPT-2 or Llama that Megatron can compute, or cannot be split like this.
    """
    if target.exists():
        raise InputError(f"{target} exists already", "name another folder, or move it away")
    if tensor_parallel < 1 or pipeline_parallel < 1:
        raise InputError("there is at least one tensor-parallel process and one pipeline stage")
    for name in ("config.json", "tokenizer.json"):
        if not (source / name).is_file():
            raise InputError(f"{source} is no Hugging Face model folder with a fast tokenizer: it has no {name}")
    vocabulary = read_vocabulary(source)
    padded = rows or _padded(vocabulary.size + ADDED_PIECES, tensor_parallel)
    architecture, weights = from_transformers(source, vocabulary, padded)
    check_split(architecture, tensor_parallel, pipeline_parallel, pipeline_engine)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(temporary, architecture, weights, vocabulary, tensor_parallel, pipeline_parallel, pipeline_engine)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return architecture


def _write(
    temporary: Path,
    architecture: Architecture,
    weights: dict[str, Tensor],
    vocabulary: Vocabulary,
    tensor_parallel: int,
    pipeline_parallel: int,
    pipeline_engine: bool,
) -> None:
    folder = temporary / f"global_step{STEP}"
    folder.mkdir(parents=True)
    parts = {
        name: split_ranks(name, weight, tensor_parallel, architecture.activation == "swiglu")
        for name, weight in weights.items()
    }
    ranks = tensor_parallel * (pipeline_parallel if pipeline_engine else 1)
    state = _rank_state(architecture, vocabulary, tensor_parallel, pipeline_parallel, pipeline_engine, ranks)
    if pipeline_engine:
        for name, layer in layer_files(architecture).items():
            for rank in range(tensor_parallel):
                part = {inner: _own(parts[merged][rank]) for inner, merged in layer.items()}
                torch.save(part, folder / f"{name}-model_{rank:02d}-model_states.pt")
    for rank in range(ranks):
        module = None if pipeline_engine else {"language_model": _module(architecture, parts, rank)}
        torch.save({"module": module, **state}, folder / f"mp_rank_{rank:02d}_model_states.pt")
    (temporary / POINTER).write_text(folder.name)
    (temporary / TRACKER).write_text(str(STEP))


def from_transformers(source: Path, vocabulary: Vocabulary, rows: int) -> tuple[Architecture, dict[str, Tensor]]:
    """The architecture of a Hugging Face folder and its weights under Megatron's names, merged and padded to `rows`.

    Raises:
        InputError: it is no GPT-2 or Llama that Megatron can compute.
    """
    file = source / "config.json"
    try:
        config: dict[str, Any] = read_json(file)
        architecture = (_gpt2 if config.get("model_type") == "gpt2" else _llama)(config, source, rows)
        if not vocabulary.size <= int(config["vocab_size"]) <= rows:
            raise InputError(
                f"{source} has {config['vocab_size']} rows for a tokenizer of {vocabulary.size} pieces; Megatron would have {rows}",
                "use the tokenizer that the model was trained with",
            )
    except KeyError as error:
        raise InputError(f"{file} has no {error.args[0]}") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"{file} is damaged: {error}") from None
    found = _load(source)
    weights = {}
    for name in architecture.names():
        weight = (_from_gpt2 if config["model_type"] == "gpt2" else _from_llama)(name, found, architecture, source)
        if name in ("word_embeddings.weight", "lm_head.weight"):
            padding = weight[vocabulary.pad].expand(rows - len(weight), -1)
            weight = torch.cat([weight, padding])
        if weight.dtype not in DTYPES:
            raise InputError(
                f"{source}: the weight for {name} is of {weight.dtype}: the model is quantised, which Megatron has not"
            )
        if tuple(weight.shape) != architecture.names()[name]:
            raise InputError(
                f"{source}: the weight for {name} has shape {tuple(weight.shape)}; its config makes it {architecture.names()[name]}"
            )
        weights[name] = weight
    if architecture.tied and "lm_head.weight" in found:
        head = found.pop("lm_head.weight")
        if not torch.equal(head, weights["word_embeddings.weight"][: len(head)]):
            raise InputError(
                f"{source} has a head of its own, and its config.json says that it is tied to the embedding"
            )
    if left := [name for name in found if not name.endswith(BUFFERS)]:
        raise InputError(
            f"{source} has weights that a model with its config.json has not, such as {left[0]}: Megatron would compute another model"
        )
    return architecture, weights


def _load(source: Path) -> dict[str, Tensor]:
    """All weights of the folder: of model.safetensors, or of the files that its index names, as transformers finds them."""
    index = source / "model.safetensors.index.json"
    try:
        names = ["model.safetensors"]
        if not (source / names[0]).is_file():
            if not index.is_file():
                raise InputError(f"{source} has no model.safetensors and no {index.name}")
            names = sorted(set(read_json(index)["weight_map"].values()))
        found: dict[str, Tensor] = {}
        for name in names:
            found |= load_file(source / name)
    except FileNotFoundError:
        raise InputError(
            f"{source} has no {name}, which its {index.name} names", "copy the whole folder again"
        ) from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the weights in {source} are damaged or cut off: {error}", "copy them again") from None
    return found


def _gpt2(config: dict[str, Any], source: Path, rows: int) -> Architecture:
    names = {"gelu_pytorch_tanh": "gelu_tanh"} | {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    activation = names.get(str(config.get("activation_function", "gelu_new")))
    if activation is None or config.get("scale_attn_by_inverse_layer_idx") or config.get("scale_attn_weights") is False:
        raise InputError(
            f"{source} is a GPT-2 with activation {config.get('activation_function')} or scaled attention, which Megatron has not"
        )
    heads, hidden = int(config["n_head"]), int(config["n_embd"])
    return Architecture(
        layers=int(config["n_layer"]),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn=int(config.get("n_inner") or 4 * hidden),
        rows=rows,
        positions=int(config["n_positions"]),
        eps=float(config["layer_norm_epsilon"]),
        normalization="layernorm",
        activation=activation,
        rotary_dim=0,
        rope_theta=10000.0,
        biases=True,
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def _llama(config: dict[str, Any], source: Path, rows: int) -> Architecture:
    if config.get("model_type") != "llama":
        raise InputError(
            f"{source} is a {config.get('model_type')} model; Megatron gets GPT-2 and Llama models",
            "megatron.start_from takes a folder that the convert stage made, or one of the same kind",
        )
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    theta, kind = float(rope.get("rope_theta", 10000.0)), rope.get("rope_type", "default")
    if theta != 10000.0 or kind != "default" or config.get("rope_scaling"):
        raise InputError(
            f"{source} has rotary positions of type {kind} with base {theta:g}; Megatron-DeepSpeed has only the plain ones "
            "with base 10000",
            "pretrain it with the embedded backend",
        )
    biases = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    if biases[0] != biases[1] or config.get("hidden_act", "silu") != "silu":
        raise InputError(f"{source} has biases in a part of its matrices, or no SwiGLU, which Megatron has not")
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    return Architecture(
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        ffn=int(config["intermediate_size"]),
        rows=rows,
        positions=int(config["max_position_embeddings"]),
        eps=float(config["rms_norm_eps"]),
        normalization="rmsnorm",
        activation="swiglu",
        rotary_dim=head_dim,
        rope_theta=10000.0,
        biases=biases[0],
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _take(name: str, found: dict[str, Tensor], source: Path) -> Tensor:
    if name not in found:
        raise InputError(f"{source} has no weight {name}")
    return found.pop(name)


def _from_gpt2(name: str, found: dict[str, Tensor], architecture: Architecture, source: Path) -> Tensor:
    if not name.startswith("layers."):
        return _take(GPT2_ENDS[name], found, source)
    _, number, *inner, part = name.split(".")
    weight = _take(f"transformer.h.{number}.{GPT2_NAMES['.'.join(inner)]}.{part}", found, source)
    if part == "weight" and weight.dim() == 2:
        weight = weight.T
    if inner[-1] == "query_key_value":
        apart = weight.reshape(3, architecture.heads, architecture.head_dim, *weight.shape[1:])
        weight = apart.transpose(0, 1).reshape(weight.shape)
    return weight


def _from_llama(name: str, found: dict[str, Tensor], architecture: Architecture, source: Path) -> Tensor:
    if not name.startswith("layers."):
        return _take(LLAMA_ENDS[name], found, source)
    _, number, *inner, part = name.split(".")
    layer = f"model.layers.{number}"
    if inner[-1] == "query_key_value":
        query, key, value = (_take(f"{layer}.self_attn.{place}_proj.{part}", found, source) for place in "qkv")
        sizes = [len(weight) // architecture.head_dim for weight in (query, key, value)]
        if sizes != [architecture.heads, architecture.kv_heads, architecture.kv_heads]:
            raise InputError(
                f"{source}: layer {number} has {sizes[0]} query, {sizes[1]} key and {sizes[2]} value heads; its config says "
                f"{architecture.heads} heads and {architecture.kv_heads} key/value heads"
            )
        shape = (architecture.kv_heads, -1, architecture.head_dim, *query.shape[1:])
        return torch.cat([weight.reshape(shape) for weight in (query, key, value)], dim=1).reshape(-1, *query.shape[1:])
    if inner[-1] == "dense_h_to_4h":
        return torch.cat([_take(f"{layer}.mlp.{place}_proj.{part}", found, source) for place in ("gate", "up")])
    return _take(f"{layer}.{LLAMA_NAMES['.'.join(inner)]}.{part}", found, source)


def check_split(
    architecture: Architecture, tensor_parallel: int, pipeline_parallel: int, pipeline_engine: bool
) -> None:
    """Raises InputError if the model cannot be divided like this."""
    for what, count in (
        ("heads", architecture.heads),
        ("key/value heads", architecture.kv_heads),
        ("feed-forward width", architecture.ffn),
        ("rows of the embedding", architecture.rows),
    ):
        if count % tensor_parallel:
            raise InputError(f"{count} {what} cannot be divided over {tensor_parallel} tensor-parallel processes")
    if pipeline_parallel > 1 and not pipeline_engine:
        raise InputError(f"{pipeline_parallel} pipeline stages need the pipeline engine")
    if architecture.layers % pipeline_parallel:
        raise InputError(f"{architecture.layers} layers cannot be divided over {pipeline_parallel} pipeline stages")


def check_pieces(source: Path, tokenizer_model: Path) -> None:
    """Raises InputError if the folder's tokenizer has other pieces than Megatron's SentencePiece model."""
    theirs = parse_model(tokenizer_model.read_bytes(), str(tokenizer_model)).texts
    size = read_vocabulary(source).size
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    if [tokenizer.id_to_token(number) for number in range(size)] != theirs:
        raise InputError(
            f"{source} was trained with another tokenizer ({size} pieces) than {tokenizer_model} ({len(theirs)} pieces)",
            "train on with its own: --set tokenizer.model=FOLDER/tokenizer.model",
        )


def layer_files(architecture: Architecture) -> dict[str, dict[str, str]]:
    """For every layer file's beginning the names in it and the merged names of the same weights."""
    files: dict[str, dict[str, str]] = {}
    for name in architecture.names():
        if name.startswith("layers."):
            _, number, inner = name.split(".", 2)
            index = int(number) + 2
        elif name.startswith("final_layernorm."):
            inner, index = name.removeprefix("final_layernorm."), architecture.layers + 2
        else:
            inner, index = name, architecture.layers + 3 if name == "lm_head.weight" else 1
        files.setdefault(f"layer_{index:02d}", {})[inner] = name
    return files


def _module(architecture: Architecture, parts: dict[str, list[Tensor]], rank: int) -> dict[str, Any]:
    """A language model's state as it is saved without the pipeline engine."""
    own = {name: _own(tensors[rank]) for name, tensors in parts.items()}
    module: dict[str, Any] = {
        "embedding": {
            name.removesuffix(".weight"): {"weight": own.pop(name)}
            for name in ("word_embeddings.weight", "position_embeddings.weight")
            if name in own
        }
    }
    if not architecture.tied:
        module["output_layer"] = {"weight": own.pop("lm_head.weight")}
    return {**module, "encoder": own}


def _own(tensor: Tensor) -> Tensor:
    """Without the rest of the tensor that it is a view of: torch.save would write all of that."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _rank_state(
    architecture: Architecture,
    vocabulary: Vocabulary,
    tensor_parallel: int,
    pipeline_parallel: int,
    pipeline_engine: bool,
    ranks: int,
) -> dict[str, Any]:
    """What DeepSpeed and Megatron read in an mp_rank file beside the module, and the arguments that we read."""
    arguments = argparse.Namespace(
        num_layers=architecture.layers,
        hidden_size=architecture.hidden,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        kv_channels=architecture.head_dim,
        ffn_hidden_size=architecture.ffn,
        padded_vocab_size=architecture.rows,
        max_position_embeddings=architecture.positions,
        seq_length=architecture.positions,
        layernorm_epsilon=architecture.eps,
        normalization=architecture.normalization,
        swiglu=architecture.activation == "swiglu",
        bias_gelu_fusion=architecture.activation == "gelu_tanh",
        squared_relu=architecture.activation == "squared_relu",
        use_rotary_position_embeddings=architecture.rotary_dim > 0,
        rotary_percent=1.0,
        add_bias_linear=architecture.biases,
        untie_embeddings_and_output_weights=not architecture.tied,
        tensor_model_parallel_size=tensor_parallel,
        pipeline_model_parallel_size=pipeline_parallel,
        no_pipeline_parallel=not pipeline_engine,
        zero_stage=0,
    )
    return {
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": None,
        "frozen_param_shapes": None,
        "shared_params": None,
        "frozen_param_fragments": None,
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": STEP,
        "global_samples": 0,
        "dp_world_size": 1,
        "mp_world_size": ranks,
        "ds_config": {},
        "ds_version": "",
        "universal_checkpoint_info": {
            "original_vocab_size": vocabulary.size + ADDED_PIECES,
            "padded_vocab_size": architecture.rows,
        },
        "args": arguments,
        "checkpoint_version": 3.0,
        "iteration": STEP,
        "tokens": 0,
    }


def megatron_options(architecture: Architecture) -> list[str]:
    """The options of pretrain_gpt.py that build this model."""
    words = [
        *("--num-layers", architecture.layers, "--hidden-size", architecture.hidden),
        *("--num-attention-heads", architecture.heads, "--ffn-hidden-size", architecture.ffn),
        *("--max-position-embeddings", architecture.positions, "--layernorm-epsilon", f"{architecture.eps:g}"),
    ]
    if architecture.normalization == "rmsnorm":
        words += ["--normalization", "rmsnorm", "--swiglu", "--use-rotary-position-embeddings"]
        words += ["--num-key-value-heads", architecture.kv_heads, "--kv-channels", architecture.head_dim]
    words += {"gelu": ["--no-bias-gelu-fusion"], "squared_relu": ["--squared-relu"]}.get(architecture.activation, [])
    words += [] if architecture.biases else ["--disable-bias-linear"]
    words += [] if architecture.tied else ["--untie-embeddings-and-output-weights"]
    return [str(word) for word in words]


def _padded(pieces: int, tensor_parallel: int) -> int:
    multiple = MULTIPLE * tensor_parallel
    return -(-pieces // multiple) * multiple


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m core.megatron.to_layers", description=str(__doc__).splitlines()[0])
    parser.add_argument("source", type=Path, help="Hugging Face folder of a GPT-2 or Llama model, with its tokenizer")
    parser.add_argument("target", type=Path, help="folder to write, for --load of pretrain_gpt.py with --finetune")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--pipeline-parallel", type=int, default=1)
    parser.add_argument("--no-pipeline-engine", action="store_true", help="for --no-pipeline-parallel")
    parser.add_argument(
        "--tokenizer-model", type=Path, help="Megatron's: the model must have been trained with its pieces"
    )
    parser.add_argument("--rows", type=int, help="rows of the embedding in Megatron, padding included")
    given = parser.parse_args()
    rows = given.rows
    try:
        if given.tokenizer_model:
            check_pieces(given.source, given.tokenizer_model)
            rows = rows or _padded(megatron_ids(given.tokenizer_model.read_bytes()).size, max(1, given.tensor_parallel))
        architecture = write_megatron(
            given.source,
            given.target,
            given.tensor_parallel,
            given.pipeline_parallel,
            not given.no_pipeline_engine,
            rows,
        )
    except WizardError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(ExitCode.FAILED)
    print(f"wrote {given.target}: {architecture.layers} layers, {architecture.rows} rows of the embedding")
    print(f"pretrain_gpt.py --load {given.target} --finetune {' '.join(megatron_options(architecture))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
