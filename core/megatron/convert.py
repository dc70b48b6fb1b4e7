"""A Megatron-DeepSpeed checkpoint as a source of the convert stage: GPT-2 or Llama weights for transformers, and the gate's numbers.

Megatron trains with the vocabulary padded: the softmax of its loss runs over the padding rows too. The folder has none. So
the folder's logits are compared without them, and for the comparison with the number in the training log the removed rows
are put back beside the folder's own output.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig, PreTrainedModel

from core.errors import InputError, StageError
from core.files import read_json
from core.megatron.checkpoint_files import layout_of, newest_complete
from core.megatron.layers import Architecture, MegatronCheckpoint, is_megatron_checkpoint, read_checkpoint
from core.megatron.log_lines import Validation, facts_in
from core.megatron.reference import logits
from core.megatron.samples import validation_samples
from core.model import ModelSection
from core.stages.base import StageContext
from core.stages.tokenizer import tokenizer_file
from core.tokenizer.model_file import parse_model
from core.train.gate import LOSS_TOLERANCE, VALIDATION_FLOPS
from core.train.model import decoder, model_config
from core.train.sequences import open_sequences
from core.train.vocabulary import Vocabulary

FP32_TOLERANCE = 1e-4
"""Relative difference allowed between validation losses where Megatron computed in fp32 too."""
STANDARD_ERRORS = 5.0
"""How far a loss over a part of the validation may be from the mean over all of it, beyond the tolerance."""
ADDED_AT_MOST = 7
"""Pieces that Megatron adds to a SentencePiece model that lacks them: <CLS> <SEP> <EOD> <MASK> <PAD> <BOS> <EOS>."""
ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "squared_relu": "relu2"}
"""transformers' names."""


def megatron_folder(context: StageContext) -> Path | None:
    """The checkpoint folder to convert, if it is one of Megatron-DeepSpeed: the named one, or the run's newest complete one.

    Raises:
        StageError: the run trained with Megatron-DeepSpeed and left no complete checkpoint.
    """
    named = context.preset.convert.checkpoint
    if named:
        return Path(named) if is_megatron_checkpoint(Path(named)) else None
    if context.preset.pretrain.backend != "megatron":
        return None
    stage = _pretrain_stage(context)
    folder = Path(stage["outputs"]["checkpoints"])
    step = newest_complete(folder, layout_of(stage["argv"], int(stage["derived"]["processes"])))
    if step is None:
        raise StageError(
            f"there is no complete checkpoint in {folder}",
            "run the pretrain stage first, or name a checkpoint with --set convert.checkpoint=...",
        )
    return folder / f"global_step{step}"


def _pretrain_stage(context: StageContext) -> dict[str, Any]:
    stages: list[dict[str, Any]] = read_json(context.run.plan)["stages"]
    return next(stage for stage in stages if stage["id"] == "pretrain")


class MegatronSource:
    """A checkpoint of Megatron-DeepSpeed, merged."""

    def __init__(self, context: StageContext, folder: Path, vocabulary: Vocabulary) -> None:
        self._context, self._vocabulary = context, vocabulary
        self._checkpoint = read_checkpoint(folder)
        self.path, self.step = self._checkpoint.folder, self._checkpoint.step
        check_vocabulary(self._checkpoint, vocabulary, Path(tokenizer_file(context.preset, context.run)))
        if self._checkpoint.drift > 0:
            context.warn(
                f"the tensor-parallel ranks of {self.path} differ by up to {self._checkpoint.drift:.1g} in weights that all should "
                "have equal (Megatron-DeepSpeed on a CPU draws different dropout on each; files of two steps differ too); the first rank's are used"
            )
        self._validation = self._find_validation()
        self.tokens = torch.from_numpy(self._one_sequence())[None]

    def logits(self, dtype: torch.dtype) -> Tensor:
        return logits(self._checkpoint, self.tokens, dtype)[..., : self._vocabulary.size].clone()

    def model(self) -> tuple[PretrainedConfig, dict[str, Tensor]]:
        return to_transformers(self._checkpoint, self._vocabulary)

    def check_loss(self, model: PreTrainedModel) -> tuple[float, dict[str, Any]]:
        removed = self._removed_rows()
        if self._validation is None:
            samples = self._own_validation()
            loss = float(sequence_losses(model, samples, removed)[:, 0].mean())
            print(f"validation loss {loss:.4f}; {len(samples)} sequences of this run's data", flush=True)
            return loss, {"val_sequences": len(samples)}
        expected, samples = self._validation
        return check_validation_loss(model, samples, removed, expected, self._tolerance())

    def _removed_rows(self) -> Tensor:
        """The head's padding rows [P, h], rounded as the folder's are."""
        head = "word_embeddings.weight" if self._checkpoint.architecture.tied else "lm_head.weight"
        dtype = getattr(torch, self._context.preset.convert.dtype)
        return self._checkpoint.weights[head][self._vocabulary.size :].to(dtype).float()

    def _tolerance(self) -> float:
        arguments = self._checkpoint.arguments
        rounded = any(arguments.get(name) for name in ("fp16", "bf16", "tf32")) or self._checkpoint.drift > 0
        rounded = rounded or self._context.preset.convert.dtype != "float32"
        return LOSS_TOLERANCE if rounded else FP32_TOLERANCE

    def _find_validation(self) -> tuple[float, NDArray[np.int64]] | None:
        """Megatron's own validation of this checkpoint: the loss in its log and the samples; None, with a warning, where that is not known."""
        try:
            final, first, count = validation_at(self._checkpoint)
            losses = logged_losses(self._logs(), self.step)
            if final not in losses:
                raise InputError(f"no log of its training has the validation loss of step {self.step}")
            return losses[final], validation_samples(self._checkpoint.arguments, first, count)
        except InputError as error:
            self._context.warn(f"there is no validation loss of the training to compare with: {error.message}")
            return None

    def _logs(self) -> list[Path]:
        """Where the training may have logged: this run's, or beside a checkpoint as the original's scripts lay it out."""
        run, folder = self._context.run, self.path.parent
        if self._context.preset.pretrain.backend == "megatron":
            checkpoints = Path(_pretrain_stage(self._context)["outputs"]["checkpoints"])
            if checkpoints.resolve() == folder.resolve():
                return [run.log("pretrain")]
        logs = folder.parent.parent / "log"
        return sorted(
            (path for path in logs.glob("*.log") if path.name.startswith(f"{folder.name}_")),
            key=lambda path: path.stat().st_mtime,
        )

    def _one_sequence(self) -> NDArray[np.int64]:
        if self._validation is not None:
            return self._validation[1][0, :-1]
        return self._own_validation(1)[0, :-1]

    def _own_validation(self, most: int = 64) -> NDArray[np.int64]:
        """Validation sequences of the run's own token files, spread evenly."""
        length = int(self._checkpoint.arguments.get("seq_length") or self._checkpoint.architecture.positions)
        split = self._context.preset.data.split
        _, valid = open_sequences(self._context.run.data_prefix, split, length, self._vocabulary.size)
        count = min(most, len(valid))
        return valid.read(np.arange(count, dtype=np.int64) * len(valid) // count)


def check_vocabulary(checkpoint: MegatronCheckpoint, vocabulary: Vocabulary, model_file: Path) -> None:
    """Raises StageError if the checkpoint was trained with another tokenizer than this run's."""
    arguments, rows = checkpoint.arguments, checkpoint.architecture.rows
    added = ADDED_AT_MOST + int(arguments.get("vocab_extra_ids") or 0)
    if checkpoint.vocab_size is not None:
        fits = vocabulary.size <= checkpoint.vocab_size <= min(rows, vocabulary.size + added)
        found = f"{checkpoint.vocab_size} pieces, Megatron's additions included"
    else:
        multiple = int(arguments.get("make_vocab_size_divisible_by", 128)) * int(
            arguments.get("tensor_model_parallel_size", 1)
        )
        fits = (
            -(-vocabulary.size // multiple) * multiple <= rows <= -(-(vocabulary.size + added) // multiple) * multiple
        )
        found = f"a vocabulary that is padded to {rows} rows"
    hint = "convert in a run with the tokenizer that it was trained with: --set tokenizer.model=..."
    if not fits:
        raise StageError(
            f"{checkpoint.folder} was trained with {found}; this run's tokenizer has {vocabulary.size} pieces", hint
        )
    trained_with = Path(str(arguments.get("tokenizer_model") or ""))
    if trained_with.suffix == ".model" and trained_with.is_file() and model_file.is_file():
        pieces = [parse_model(path.read_bytes(), str(path)).texts for path in (trained_with, model_file)]
        if pieces[0] != pieces[1]:
            raise StageError(
                f"{checkpoint.folder} was trained with {trained_with}, which has other pieces than {model_file}", hint
            )


def to_transformers(
    checkpoint: MegatronCheckpoint, vocabulary: Vocabulary
) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """transformers' config and weights for GPT-2 or Llama, in the checkpoint's dtype, without the vocabulary's padding.

    Raises:
        StageError: the model is neither: transformers' code for the two cannot compute it.
    """
    architecture = checkpoint.architecture
    family = family_of(architecture, checkpoint.folder)
    section = ModelSection(
        family=family,
        layers=architecture.layers,
        hidden_size=architecture.hidden,
        heads=architecture.heads,
        kv_heads=architecture.kv_heads,
        ffn_size=architecture.ffn,
        sequence_length=architecture.positions,
        tied_embeddings=architecture.tied,
        rope_theta=architecture.rope_theta,
        dropout=float(checkpoint.arguments.get("hidden_dropout", 0.1)) if family == "gpt2" else 0.0,
        init_std=float(checkpoint.arguments.get("init_method_std", 0.02)),
        norm_eps=architecture.eps,
    )
    config = model_config(section, vocabulary, vocabulary.size)
    if family == "gpt2":
        config.activation_function = ACTIVATIONS[architecture.activation]
        config.attn_pdrop = float(checkpoint.arguments.get("attention_dropout", 0.1))
    else:
        config.head_dim = architecture.head_dim
        config.attention_bias = config.mlp_bias = architecture.biases
    weights: dict[str, Tensor] = {}
    for name, weight in checkpoint.weights.items():
        if name in ("word_embeddings.weight", "lm_head.weight"):
            weight = weight[: vocabulary.size]
        weights |= WEIGHTS[family](name, weight, architecture)
    return config, weights


def family_of(architecture: Architecture, folder: Path) -> Literal["gpt2", "llama"]:
    """gpt2 or llama. Raises StageError naming what is of neither."""
    is_llama = architecture.normalization == "rmsnorm"
    checks: list[tuple[str, bool]]
    if is_llama:
        checks = [
            ("an activation other than SwiGLU", architecture.activation != "swiglu"),
            ("positions that are not rotary over whole heads", architecture.rotary_dim != architecture.head_dim),
        ]
    else:
        checks = [
            ("SwiGLU", architecture.activation == "swiglu"),
            ("rotary positions", architecture.rotary_dim > 0),
            ("no biases", not architecture.biases),
            ("fewer key/value heads than heads", architecture.groups > 1),
            (
                "heads that are not hidden size / heads wide",
                architecture.head_dim * architecture.heads != architecture.hidden,
            ),
        ]
    if other := [what for what, found in checks if found]:
        norm, family = ("RMSNorm", "Llama") if is_llama else ("LayerNorm", "GPT-2")
        raise StageError(
            f"{folder} is a model with {norm} and {', '.join(other)}: transformers' {family} cannot compute it",
            "convert makes GPT-2 (LayerNorm, learned positions, biases) and Llama (RMSNorm, SwiGLU, rotary positions)",
        )
    return "llama" if is_llama else "gpt2"


GPT2_NAMES = {
    "input_layernorm": "ln_1",
    "self_attention.query_key_value": "attn.c_attn",
    "self_attention.dense": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "mlp.dense_h_to_4h": "mlp.c_fc",
    "mlp.dense_4h_to_h": "mlp.c_proj",
}
GPT2_ENDS = {
    "word_embeddings.weight": "transformer.wte.weight",
    "position_embeddings.weight": "transformer.wpe.weight",
    "final_layernorm.weight": "transformer.ln_f.weight",
    "final_layernorm.bias": "transformer.ln_f.bias",
    "lm_head.weight": "lm_head.weight",
}
LLAMA_NAMES = {
    "input_layernorm": "input_layernorm",
    "self_attention.dense": "self_attn.o_proj",
    "post_attention_layernorm": "post_attention_layernorm",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}
LLAMA_ENDS = {
    "word_embeddings.weight": "model.embed_tokens.weight",
    "final_layernorm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_IN_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")


def gpt2_weights(name: str, weight: Tensor, architecture: Architecture) -> dict[str, Tensor]:
    """One merged weight under GPT-2's names. Its matrices are [in, out], its queries, keys and values apart."""
    match = _IN_LAYER.fullmatch(name)
    if match is None:
        return {GPT2_ENDS[name]: weight}
    number, inner, part = match.groups()
    if inner == "self_attention.query_key_value":
        by_head = weight.view(architecture.heads, 3, architecture.head_dim, *weight.shape[1:])
        weight = by_head.transpose(0, 1).reshape(weight.shape)
    if part == "weight" and weight.dim() == 2:
        weight = weight.T
    return {f"transformer.h.{number}.{GPT2_NAMES[inner]}.{part}": weight}


def llama_weights(name: str, weight: Tensor, architecture: Architecture) -> dict[str, Tensor]:
    """One merged weight under Llama's names."""
    match = _IN_LAYER.fullmatch(name)
    if match is None:
        return {LLAMA_ENDS[name]: weight}
    number, inner, part = match.groups()
    layer = f"model.layers.{number}"
    if inner == "self_attention.query_key_value":
        grouped = weight.view(architecture.kv_heads, architecture.groups + 2, architecture.head_dim, *weight.shape[1:])
        parts = {"q_proj": grouped[:, :-2], "k_proj": grouped[:, -2], "v_proj": grouped[:, -1]}
        return {
            f"{layer}.self_attn.{place}.{part}": found.reshape(-1, *weight.shape[1:]) for place, found in parts.items()
        }
    if inner == "mlp.dense_h_to_4h":
        gate, up = weight.chunk(2)
        return {f"{layer}.mlp.gate_proj.{part}": gate, f"{layer}.mlp.up_proj.{part}": up}
    return {f"{layer}.{LLAMA_NAMES[inner]}.{part}": weight}


WEIGHTS: dict[str, Callable[[str, Tensor, Architecture], dict[str, Tensor]]] = {
    "gpt2": gpt2_weights,
    "llama": llama_weights,
}


def validation_at(checkpoint: MegatronCheckpoint) -> tuple[bool, int, int]:
    """Which validation Megatron made of these weights: whether it is the one after the training, its first sample and their number.

    Raises:
        InputError: the arguments do not say.
    """
    arguments = checkpoint.arguments
    names = ("eval_iters", "eval_interval", "global_batch_size", "train_iters", "consumed_valid_samples")
    if absent := [name for name in names if not isinstance(arguments.get(name), int)]:
        raise InputError(f"its arguments have no {', '.join(absent)}")
    count = arguments["eval_iters"] * arguments["global_batch_size"]
    consumed = arguments["consumed_valid_samples"]
    if count < 1 or arguments["eval_interval"] < 1:
        raise InputError("it was trained without validation")
    if checkpoint.step % arguments["eval_interval"] == 0 and consumed >= count:
        return False, consumed - count, count
    return True, consumed, count


def logged_losses(logs: list[Path], step: int) -> dict[bool, float]:
    """The validation losses of a step in logs of Megatron, the latest of each kind, by whether they are from after the training."""
    found = {}
    for log in logs:
        try:
            with log.open("rb") as file:
                for line in file:
                    if b"validation loss at " in line:
                        for fact in facts_in(line):
                            if isinstance(fact, Validation) and fact.step == step and fact.over == "validation":
                                found[fact.final] = fact.loss
        except OSError:
            continue
    return found


def check_validation_loss(
    model: PreTrainedModel, samples: NDArray[np.int64], removed: Tensor, expected: float, tolerance: float
) -> tuple[float, dict[str, Any]]:
    """The folder's validation loss on Megatron's own validation samples, and the numbers of the comparison.

    Where all samples would take too long a part of them is used, spread evenly, and its sampling error allowed for.

    Args:
        removed: the padding rows [P, h] that the folder lacks; Megatron's loss counts them.
        expected: the loss in Megatron's log.

    Raises:
        StageError: they differ by more than `tolerance`, relative.
    """
    size = sum(weight.numel() for weight in model.parameters())
    affordable = max(1, int(VALIDATION_FLOPS / (2 * size * samples.shape[1])))
    total = len(samples)
    if affordable < total:
        samples = samples[np.arange(affordable) * total // affordable]
        print(f"validation loss: on {affordable} of {total} samples; all of them would take too long here", flush=True)
    started = time.perf_counter()
    losses = sequence_losses(model, samples, removed)
    own, padded = (float(loss) for loss in losses.mean(axis=0))
    allowed = tolerance * expected
    if len(samples) < total:
        allowed += (
            STANDARD_ERRORS * (float(losses[:, 1].std()) if len(samples) > 1 else expected) / math.sqrt(len(samples))
        )
    difference = abs(padded - expected) / expected
    print(
        f"validation loss {padded:.6f} with the vocabulary's padding, Megatron's {expected:.6f} (relative difference "
        f"{difference:.1e}); without padding {own:.6f}; {len(samples)} samples, {time.perf_counter() - started:.1f} s",
        flush=True,
    )
    if not abs(padded - expected) <= allowed:
        raise StageError(
            f"the converted folder has validation loss {padded:.6f} on Megatron's own samples, its log says {expected:.6f}: "
            f"more than {allowed / expected:.1g} apart",
            "nothing was written; this is a defect of the conversion, or the validation data changed since",
        )
    return own, {
        "val_sequences": len(samples),
        "padded_val_loss": padded,
        "trainer_val_loss": expected,
        "val_loss_difference": difference,
    }


@torch.no_grad()
def sequence_losses(model: PreTrainedModel, samples: NDArray[np.int64], removed: Tensor) -> NDArray[np.float64]:
    """Mean losses in nats per token [n, 2] of every sample [T + 1]: of the folder, and with the padding rows `removed` put back."""
    losses = np.zeros((len(samples), 2))
    head: Any = model.get_output_embeddings()
    for row, sample in enumerate(samples):
        tokens = torch.from_numpy(sample)
        hidden = decoder(model)(input_ids=tokens[None, :-1], use_cache=False).last_hidden_state[0]
        own = head(hidden).float()
        padded = torch.cat([own, hidden.float() @ removed.T], dim=-1)
        losses[row] = [cross_entropy(found, tokens[1:]).item() for found in (own, padded)]
    return losses
