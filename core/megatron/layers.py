"""Reading a Megatron-DeepSpeed checkpoint folder: its arguments, and its weights with all parallel parts put together.

A `global_stepN` folder comes in two forms. With DeepSpeed's pipeline engine there is one file for each layer and
tensor-parallel rank, `layer_LL-model_TT-model_states.pt`: 01 is the embedding, 02 ... L+1 are the transformer layers,
L+2 is the final norm and, where the head is not tied, L+3 the head; pipeline stages leave no trace in them. Without it,
`mp_rank_TT_model_states.pt` holds the module of that tensor-parallel rank. In both forms mp_rank_00 holds the arguments.

Megatron is not imported. The files are pickles, read by torch.load(weights_only=True), which makes tensors and plain
containers only; the few other classes that real files name are in `ALLOWED`, and all but argparse.Namespace are
replaced by one that keeps nothing.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import StageError

LAYER_FILE = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
STEP_FOLDER = re.compile(r"global_step(\d+)")

COLUMN_PARALLEL = (
    "self_attention.query_key_value.weight",
    "self_attention.query_key_value.bias",
    "mlp.dense_h_to_4h.weight",
    "mlp.dense_h_to_4h.bias",
)
"""Split over tensor-parallel ranks by output, dimension 0."""
ROW_PARALLEL = ("self_attention.dense.weight", "mlp.dense_4h_to_h.weight")
"""Split by input, dimension 1; their biases are whole on every rank."""
VOCABULARY_PARALLEL = ("word_embeddings.weight", "lm_head.weight")
"""Split by rows of the vocabulary, dimension 0."""


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_COUNT, MOST_FILES = 2**31, 10_000
"""Bounds for what a file says of itself: of sizes, and of layers and tensor-parallel ranks, which make lists of names."""
DEEPEST = 4
"""How many dictionaries deep a module's weights may lie; they lie two deep."""
TWO_MODELS = "the folder holds parts of two models; copy the checkpoint into an empty folder"


class Ignored:
    """Stands for a class or function that a checkpoint names and that we need nothing of: it takes and keeps nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,  # the arguments; making one sets attributes and does nothing else
    (Ignored, "megatron.core.enums.ModelType"),
    # The state of numpy's random numbers, under its names in numpy 1 and 2.
    (Ignored, "numpy.core.multiarray._reconstruct"),
    (Ignored, "numpy._core.multiarray._reconstruct"),
    (Ignored, "numpy.ndarray"),
    (Ignored, "numpy.dtype"),
    # What DeepSpeed's optimizers for fp16 and ZeRO leave beside the weights.
    (Ignored, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (Ignored, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (Ignored, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (Ignored, "deepspeed.utils.tensor_fragment.fragment_address"),
]


@dataclass(frozen=True)
class Architecture:
    """A model's shape and variant, as the checkpoint's own arguments state it."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rows: int
    """Rows of the embedding, padding included."""
    positions: int
    """The longest sequence; rows of the position embedding where there is one."""
    eps: float
    normalization: str
    """layernorm or rmsnorm"""
    activation: str
    """gelu_tanh (Megatron's fused bias + gelu), gelu (erf), squared_relu or swiglu"""
    rotary_dim: int
    """Leading part of each head that is rotated; 0 with learned positions."""
    rope_theta: float
    biases: bool
    tied: bool

    @property
    def groups(self) -> int:
        """Query heads to a key/value head."""
        return self.heads // self.kv_heads

    def names(self) -> dict[str, tuple[int, ...]]:
        """Every merged weight and its shape."""
        h, qkv, wide = self.hidden, (self.heads + 2 * self.kv_heads) * self.head_dim, self.ffn
        up = 2 * wide if self.activation == "swiglu" else wide
        norm: dict[str, tuple[int, ...]] = dict.fromkeys(
            ("weight", "bias") if self.normalization == "layernorm" else ("weight",), (h,)
        )
        layer = {
            f"{place}_layernorm.{part}": shape for place in ("input", "post_attention") for part, shape in norm.items()
        }
        linear: dict[str, tuple[int, int]] = {
            "self_attention.query_key_value": (qkv, h),
            "self_attention.dense": (h, self.heads * self.head_dim),
            "mlp.dense_h_to_4h": (up, h),
            "mlp.dense_4h_to_h": (h, wide),
        }
        for name, shape in linear.items():
            layer[f"{name}.weight"] = shape
            if self.biases:
                layer[f"{name}.bias"] = shape[:1]
        names: dict[str, tuple[int, ...]] = {"word_embeddings.weight": (self.rows, h)}
        if not self.rotary_dim:
            names["position_embeddings.weight"] = (self.positions, h)
        for number in range(self.layers):
            names |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
        names |= {f"final_layernorm.{part}": shape for part, shape in norm.items()}
        return names if self.tied else names | {"lm_head.weight": (self.rows, h)}


@dataclass(frozen=True)
class MegatronCheckpoint:
    """One checkpoint, merged.

    Attributes:
        weights: by the names of `Architecture.names`, in the dtype in which they were saved; memory-mapped where a single
            file holds them.
        arguments: Megatron's own, of the process that saved.
        vocab_size: pieces without the padding as Megatron counted them, its additions included; None in older files.
        drift: largest difference between the copies of a weight that all tensor-parallel ranks should have equal.
    """

    folder: Path
    step: int
    architecture: Architecture
    weights: dict[str, Tensor]
    arguments: dict[str, Any]
    vocab_size: int | None
    drift: float


def is_megatron_checkpoint(path: Path) -> bool:
    """Whether this is a folder that Megatron-DeepSpeed saved: a global_stepN, or the one above it."""
    if (path / "latest_checkpointed_iteration.txt").is_file() or STEP_FOLDER.fullmatch(path.name):
        return True
    return path.is_dir() and any(path.glob("mp_rank_*_model_states.pt"))


def step_folder(path: Path) -> Path:
    """The global_stepN folder that `path` is, or that its `latest` names.

    Raises:
        StageError: there is none.
    """
    if any(path.glob("*model_states.pt")):
        return path
    pointer = path / "latest"
    if not path.is_dir() or not pointer.is_file():
        raise StageError(
            f"{path} is no Megatron-DeepSpeed checkpoint: it has no model_states.pt files and no file named latest",
            "name the folder global_stepN, or the folder that holds it",
        )
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    if not STEP_FOLDER.fullmatch(name) or not (path / name).is_dir():
        raise StageError(
            f"{pointer} says {name[:80]!r}, and there is no such checkpoint beside it",
            "name the folder global_stepN that you want",
        )
    return path / name


def read_checkpoint(path: Path) -> MegatronCheckpoint:
    """Read and merge a checkpoint: a global_stepN folder or the one above it.

    Raises:
        StageError: a file is missing or damaged, or it is a kind of model that this does not read; says which file.
    """
    folder = step_folder(path)
    state, file = _rank_state(folder)
    arguments: dict[str, Any] = vars(state["args"])
    architecture = read_architecture(arguments, file)
    tensor_parallel = _whole(arguments, "tensor_model_parallel_size", file, 1, MOST_FILES)
    version, step = state.get("checkpoint_version", 0), state.get("iteration", 0)
    if not isinstance(version, (int, float)) or version < 2:
        raise StageError(
            f"{file} has checkpoint version {version}, which orders queries, keys and values in another way",
            "load and save it once with a Megatron-DeepSpeed of version 2.0 or later",
        )
    if any(LAYER_FILE.fullmatch(found.name) for found in folder.iterdir()):
        parts = _layer_parts(folder, architecture, tensor_parallel)
    else:
        parts = _module_parts(folder, architecture, tensor_parallel)
    weights, drift = _merge(parts, architecture)
    info = state.get("universal_checkpoint_info")
    vocab_size = info.get("original_vocab_size") if isinstance(info, dict) else None
    return MegatronCheckpoint(
        folder,
        step if isinstance(step, int) else 0,
        architecture,
        weights,
        arguments,
        vocab_size if isinstance(vocab_size, int) else None,
        drift,
    )


def _rank_state(folder: Path) -> tuple[dict[str, Any], Path]:
    """What mp_rank_00 holds."""
    file = folder / "mp_rank_00_model_states.pt"
    if not file.is_file():
        if any(folder.glob("zero_pp_rank_*_mp_rank_*_model_states.pt")):
            raise _zero_3(folder)
        raise StageError(
            f"{file} is missing, which holds the model's arguments", "copy the whole checkpoint folder again"
        )
    state = load(file)
    if not isinstance(state.get("args"), argparse.Namespace):
        raise StageError(f"{file} has no arguments (args): it is not of Megatron-DeepSpeed's pretrain_gpt.py")
    config: Any = state.get("ds_config")
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if 3 in (getattr(state["args"], "zero_stage", 0), stage):
        raise _zero_3(folder)
    return state, file


def _zero_3(folder: Path) -> StageError:
    return StageError(
        f"{folder} was saved under ZeRO-3: its model files hold only what each process had of the weights",
        "put it together with the zero_to_fp32.py beside it, or train with ZeRO 0, 1 or 2",
    )


def load(file: Path) -> dict[str, Any]:
    """The dictionary in a file of torch.save; tensors are memory-mapped, and nothing in the file can run.

    Raises:
        StageError: it is cut off, is no such file, or names a class that is not allowed.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            # torch.save packs nothing: such a file could be many times as large in memory as on the disk.
            packed = [part.filename for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise StageError(
                f"{file} was not written by torch.save: it is a compressed zip file",
                "only checkpoints of Megatron-DeepSpeed's pretrain_gpt.py are read",
            )
        with torch.serialization.safe_globals(ALLOWED):
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise StageError(
            f"{file} cannot be read safely: "
            + (f"it names {name[1]}, which is not allowed here" if name else str(error).splitlines()[0]),
            "only checkpoints of Megatron-DeepSpeed's pretrain_gpt.py are read",
        ) from None
    except StageError:
        raise
    except zipfile.BadZipFile:
        raise StageError(
            f"{file} is damaged or cut off ({file.stat().st_size} bytes), or of a PyTorch before 1.6: it is no whole zip file",
            "copy it again, or use an earlier checkpoint",
        ) from None
    except OSError as error:
        raise StageError(f"{file} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # the unpickler calls what is allowed with whatever the file says
        raise StageError(
            f"{file} is damaged ({file.stat().st_size} bytes): {(str(error) or type(error).__name__).splitlines()[0]}",
            "copy it again, or use an earlier checkpoint",
        ) from None
    if not isinstance(state, dict):
        raise StageError(f"{file} holds a {type(state).__name__}, not a dictionary")
    return state


def _whole(
    arguments: dict[str, Any], name: str, file: Path, default: int | None = None, most: int = LARGEST_COUNT
) -> int:
    """An argument that counts something."""
    value = arguments.get(name)
    if value is None:
        value = default
    if value is None:
        raise StageError(f"{file} has no argument {name}: it is not of Megatron-DeepSpeed's pretrain_gpt.py")
    if not isinstance(value, int) or not 0 < value <= most:
        raise StageError(
            f"{file} has the argument {name} = {value!r:.40}, which must be a whole number from 1 to {most}"
        )
    return int(value)


def _real(arguments: dict[str, Any], name: str, file: Path, default: float) -> float:
    """An argument that is a number above 0; Megatron's default where an older version has not got it."""
    value = arguments.get(name)
    if value is None:
        value = default
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise StageError(f"{file} has the argument {name} = {value!r:.40}, which must be a number above 0")
    return float(value)


def read_architecture(arguments: dict[str, Any], file: Path) -> Architecture:
    """The model that these arguments of pretrain_gpt.py build.

    Raises:
        StageError: an argument is missing, or asks for what this does not read.
    """

    def need(name: str, default: int | None = None) -> int:
        return _whole(arguments, name, file, default)

    def flag(name: str) -> bool:
        return bool(arguments.get(name))

    experts = arguments.get("num_experts") or [1]
    refused = {
        "a mixture of experts (--num-experts)": any(
            count != 1 for count in (experts if isinstance(experts, list) else [experts])
        )
        or flag("num_experts_switch"),
        "--apply-layernorm-1p": flag("apply_layernorm_1p"),
        "--apply-residual-connection-post-layernorm": flag("apply_residual_connection_post_layernorm"),
        "--retro-add-retriever": flag("retro_add_retriever"),
    }
    if found := [name for name, asked in refused.items() if asked]:
        raise StageError(f"{file} is of a model with {' and '.join(found)}, which convert does not read")
    normalization = arguments.get("normalization", "layernorm")
    if normalization not in ("layernorm", "rmsnorm"):
        raise StageError(
            f"{file} is of a model with --normalization {normalization!r:.40}, which convert does not read"
        )
    heads, hidden, layers = (
        need("num_attention_heads"),
        need("hidden_size"),
        _whole(arguments, "num_layers", file, most=MOST_FILES),
    )
    kv_heads, head_dim = need("num_key_value_heads", heads), need("kv_channels", max(1, hidden // heads))
    if heads % kv_heads:
        raise StageError(f"{file} says {heads} heads and {kv_heads} key/value heads, which do not divide them")
    rotary = _real(arguments, "rotary_percent", file, 1.0) if flag("use_rotary_position_embeddings") else 0.0
    if flag("openai_gelu"):
        activation = "gelu_tanh"
    elif flag("onnx_safe"):
        activation = "gelu"
    elif flag("swiglu"):
        activation = "swiglu"
    elif flag("squared_relu"):
        activation = "squared_relu"
    else:  # Megatron's fused kernel is the tanh formula; without it, it calls F.gelu, which is the exact one
        activation = "gelu_tanh" if flag("bias_gelu_fusion") else "gelu"
    return Architecture(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=need("ffn_hidden_size", 4 * hidden),
        rows=need("padded_vocab_size"),
        positions=need("max_position_embeddings"),
        eps=_real(arguments, "layernorm_epsilon", file, 1e-5),
        normalization=normalization,
        activation=activation,
        rotary_dim=int(head_dim * min(rotary, 1.0)),
        rope_theta=_real(arguments, "rope_theta", file, 10000.0),
        biases=bool(arguments.get("add_bias_linear", True)),
        tied=not flag("untie_embeddings_and_output_weights"),
    )


Part = tuple[str, list[Tensor], Path]
"""A merged weight's name, its part from every tensor-parallel rank in order, and a file to name in errors."""


def _layer_parts(folder: Path, architecture: Architecture, tensor_parallel: int) -> Iterator[Part]:
    """The parts of every weight from the layer files."""
    last = architecture.layers + (2 if architecture.tied else 3)
    for number in range(1, last + 1):
        files = [folder / f"layer_{number:02d}-model_{rank:02d}-model_states.pt" for rank in range(tensor_parallel)]
        if absent := [file.name for file in files if not file.is_file()]:
            raise StageError(
                f"{folder} lacks {', '.join(absent)}: a model of {architecture.layers} layers and {tensor_parallel} "
                f"tensor-parallel ranks has layer files 01 to {last:02d} of each rank",
                "copy the whole checkpoint folder again, or use an earlier checkpoint",
            )
        states = [load(file) for file in files]
        if number <= 1:
            prefix = ""
        elif number <= architecture.layers + 1:
            prefix = f"layers.{number - 2}."
        else:
            prefix = "final_layernorm." if number == architecture.layers + 2 else ""
        yield from _parts_of(states, prefix, files)
    found = [match for file in folder.iterdir() if (match := LAYER_FILE.fullmatch(file.name))]
    layer, rank = (max(int(match[group]) for match in found) for group in (1, 2))
    if layer > last or rank >= tensor_parallel:
        raise StageError(
            f"{folder} has files of layer {layer}; its arguments say that {last} is the last one"
            if layer > last
            else f"{folder} has files of tensor-parallel rank {rank}; its arguments say that there are {tensor_parallel}",
            TWO_MODELS,
        )


def _module_parts(folder: Path, architecture: Architecture, tensor_parallel: int) -> Iterator[Part]:
    """The parts of every weight from the mp_rank files of a training without the pipeline engine."""
    files = [folder / f"mp_rank_{rank:02d}_model_states.pt" for rank in range(tensor_parallel)]
    if absent := [file.name for file in files if not file.is_file()]:
        raise StageError(
            f"{folder} lacks {', '.join(absent)}: the model was trained on {tensor_parallel} tensor-parallel ranks",
            "copy the whole checkpoint folder again, or use an earlier checkpoint",
        )
    if (count := len(list(folder.glob("mp_rank_*_model_states.pt")))) != tensor_parallel:
        raise StageError(
            f"{folder} has {count} mp_rank files and no layer files; its arguments say {tensor_parallel} tensor-parallel ranks",
            TWO_MODELS,
        )
    states = []
    for file in files:
        module = load(file).get("module")
        if not isinstance(module, dict) or not isinstance(module.get("language_model"), dict):
            raise StageError(
                f"{file} holds no weights, and there are no layer_*-model_*-model_states.pt files beside it",
                "copy the whole checkpoint folder again, or use an earlier checkpoint",
            )
        states.append(_flat(module["language_model"]))
    yield from _parts_of(states, "", files)


def _flat(module: dict[str, Any]) -> dict[str, Tensor]:
    """A language model's nested state under the names of `Architecture.names`."""
    flat: dict[str, Tensor] = {}

    def add(state: dict[str, Any], prefix: str, depth: int = 0) -> None:
        for name, value in state.items():
            if isinstance(value, dict) and depth < DEEPEST:
                add(value, f"{prefix}{name}.", depth + 1)
            else:
                flat[f"{prefix}{name}"] = value

    for name, value in module.items():
        prefix = {"embedding": "", "encoder": "", "output_layer": "lm_head."}.get(name, f"{name}.")
        if isinstance(value, dict):
            add(value, prefix)
        else:
            flat[str(name)] = value
    return flat


def _parts_of(states: list[dict[str, Any]], prefix: str, files: list[Path]) -> Iterator[Part]:
    for state, file in zip(states, files, strict=True):
        if set(state) != set(states[0]):
            other = sorted(map(str, set(state) ^ set(states[0])))
            raise StageError(f"{file} and {files[0].name} do not hold the same weights: {', '.join(other)}")
    for name in states[0]:
        tensors = [state[name] for state in states]
        for tensor, file in zip(tensors, files, strict=True):
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
                raise StageError(f"{file}: {name} is no tensor")
            if tensor.dtype not in DTYPES:
                raise StageError(f"{file}: {name} is of {tensor.dtype}; weights are of fp32, bf16 or fp16")
            if tensor.shape != tensors[0].shape:
                raise StageError(
                    f"{file}: {name} has shape {tuple(tensor.shape)}, in {files[0].name} it has {tuple(tensors[0].shape)}"
                )
        yield f"{prefix}{name}", tensors, files[0]


def _merge(parts: Iterator[Part], architecture: Architecture) -> tuple[dict[str, Tensor], float]:
    """All weights whole, and the largest drift of a replicated one."""
    expected, weights, drift = architecture.names(), {}, 0.0
    for name, tensors, file in parts:
        if name not in expected:
            what = "a mixture of experts" if "moe" in name or "expert" in name else "a variant of the model"
            raise StageError(
                f"{file} holds {name}, which a model with these arguments does not have: {what} that convert does not read"
            )
        same = tensors[0].dim() == len(expected[name])
        merged = merge_ranks(name, tensors, architecture.activation == "swiglu") if same else tensors[0]
        if tuple(merged.shape) != expected[name]:
            raise StageError(
                f"{file}: {name} has shape {tuple(merged.shape)} over {len(tensors)} tensor-parallel ranks; the "
                f"arguments make it {expected[name]}"
            )
        if merged is tensors[0]:
            apart = [(merged.float() - other.float()).abs().max().item() for other in tensors[1:]]
            drift = max([drift, *(math.inf if math.isnan(one) else one for one in apart)])
        weights[name] = merged
    if absent := [name for name in expected if name not in weights]:
        raise StageError(f"the checkpoint lacks {', '.join(absent[:5])}: a model with its arguments has them")
    return weights, drift


def merge_ranks(name: str, tensors: list[Tensor], gated: bool) -> Tensor:
    """One weight from the parts of all tensor-parallel ranks; of a replicated one the first rank's.

    Queries, keys and values need no care: each rank has whole groups of query heads with their key and value head. Where
    the first feed-forward matrix is `gated` (SwiGLU), each rank has its gate rows and then its up rows.
    """
    inner = re.sub(r"^layers\.\d+\.", "", name)
    if len(tensors) == 1:
        return tensors[0]
    if gated and inner.startswith("mlp.dense_h_to_4h"):
        halves = [tensor.chunk(2, dim=0) for tensor in tensors]
        return torch.cat([half[0] for half in halves] + [half[1] for half in halves])
    if inner in COLUMN_PARALLEL or inner in VOCABULARY_PARALLEL:
        return torch.cat(tensors)
    if inner in ROW_PARALLEL:
        return torch.cat(tensors, dim=1)
    return tensors[0]


def split_ranks(name: str, tensor: Tensor, ranks: int, gated: bool) -> list[Tensor]:
    """The part of every tensor-parallel rank: `merge_ranks` the other way round."""
    inner = re.sub(r"^layers\.\d+\.", "", name)
    if ranks == 1:
        return [tensor]
    if gated and inner.startswith("mlp.dense_h_to_4h"):
        gate, up = tensor.chunk(2, dim=0)
        return [torch.cat(pair) for pair in zip(gate.chunk(ranks), up.chunk(ranks), strict=True)]
    if inner in COLUMN_PARALLEL or inner in VOCABULARY_PARALLEL:
        return list(tensor.chunk(ranks))
    if inner in ROW_PARALLEL:
        return list(tensor.chunk(ranks, dim=1))
    return [tensor] * ranks
