"""Reading Megatron's checkpoints: every layout gives the same model, nothing in a file can run, damage is named by its file."""

from __future__ import annotations

import argparse
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.megatron_writer import arguments_of, forward, make_model, write_checkpoint

from core.errors import StageError
from core.megatron.layers import is_megatron_checkpoint, merge_ranks, read_checkpoint, split_ranks
from core.megatron.reference import logits

TOKENS = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pipeline_engine", [True, False], ids=["layer-files", "mp-rank-files"])
@pytest.mark.parametrize("tensor_parallel", [1, 2, 4])
@pytest.mark.parametrize("llama", [True, False], ids=["llama", "gpt"])
def test_the_merged_model_computes_what_the_ranks_computed(
    llama: bool, tensor_parallel: int, pipeline_engine: bool, tmp_path: Path
) -> None:
    model = make_model(llama, tensor_parallel)
    folder = write_checkpoint(model, tmp_path / "job", pipeline_parallel=2, pipeline_engine=pipeline_engine)
    checkpoint = read_checkpoint(folder)
    expected = forward(model, TOKENS)
    assert (logits(checkpoint, TOKENS) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (checkpoint.step, checkpoint.vocab_size, checkpoint.drift) == (4, 303, 0.0)


@pytest.mark.parametrize(
    ("llama", "changes"),
    [
        (True, {"tied": True}),
        (True, {"biases": True}),
        (True, {"kv_heads": 8}),
        (False, {"tied": False}),
    ],
    ids=["llama-tied", "llama-biases", "llama-all-heads", "gpt-untied"],
)
def test_variants(llama: bool, changes: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(llama, 2, **changes)
    checkpoint = read_checkpoint(write_checkpoint(model, tmp_path))
    expected = forward(model, TOKENS)
    assert (logits(checkpoint, TOKENS) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("arguments", "gelu"),
    [
        ({"bias_gelu_fusion": False}, "none"),
        ({"onnx_safe": True}, "none"),
        ({"bias_gelu_fusion": False, "openai_gelu": True}, "tanh"),
    ],
)
def test_gelu_is_the_exact_one_without_the_fused_kernel(arguments: dict[str, Any], gelu: str, tmp_path: Path) -> None:
    model = make_model(False)
    checkpoint = read_checkpoint(write_checkpoint(model, tmp_path, **arguments))
    same, other = (forward(model, TOKENS, gelu=name) for name in (gelu, "none" if gelu == "tanh" else "tanh"))
    found = logits(checkpoint, TOKENS)
    assert (found - same).abs().max() <= 1e-5 * same.abs().max() < (found - other).abs().max()


def test_the_folder_above_is_read_through_its_pointer(tmp_path: Path) -> None:
    write_checkpoint(make_model(False), tmp_path / "job", step=4)
    write_checkpoint(make_model(False, seed=1), tmp_path / "job", step=8)
    assert read_checkpoint(tmp_path / "job").step == 8
    assert is_megatron_checkpoint(tmp_path / "job")
    assert is_megatron_checkpoint(tmp_path / "job" / "global_step4")
    assert not is_megatron_checkpoint(tmp_path)
    (tmp_path / "job" / "latest").write_text("../../elsewhere")
    with pytest.raises(StageError, match="no such checkpoint beside it"):
        read_checkpoint(tmp_path / "job")


def test_ranks_that_drifted_apart_are_noticed(tmp_path: Path) -> None:
    model = make_model(False, 2)
    model.ranks[1][1, "self_attention.dense.bias"] = model.ranks[0][1, "self_attention.dense.bias"] + 0.01
    assert read_checkpoint(write_checkpoint(model, tmp_path)).drift == pytest.approx(0.01, rel=1e-4)


class Evil:
    """A pickle that would make a folder when it is read."""

    def __init__(self, path: Path, function: Any) -> None:
        self.path, self.function = path, function

    def __reduce__(self) -> Any:
        return self.function, (f"import os; os.mkdir({str(self.path)!r})" if self.function is exec else str(self.path),)


@pytest.mark.parametrize("function", [os.mkdir, os.makedirs, exec], ids=["mkdir", "makedirs", "exec"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(function: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(make_model(False), tmp_path / "job")
    for name in ("layer_03-model_00-model_states.pt", "mp_rank_00_model_states.pt"):
        torch.save({"args": argparse.Namespace(), "weight": Evil(tmp_path / "ran", function)}, folder / name)
        with pytest.raises(StageError, match=rf"{name} cannot be read safely: it names [\w.]*{function.__name__}"):
            read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


class Called:
    """A pickle that calls what is allowed, in a way that fails."""

    def __reduce__(self) -> Any:
        return argparse.Namespace, (1, 2)


def packed(file: Path) -> None:
    """A zip file that is far larger unpacked, as torch.save does not write one."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00." + bytes(10_000_000))
        archive.writestr("archive/version", "3")


def cut(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


def change(folder: Path, name: str, **weights: torch.Tensor) -> None:
    torch.save(torch.load(folder / name, weights_only=True) | weights, folder / name)


LAYER = "layer_03-model_01-model_states.pt"
DENSE = "self_attention.dense"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / LAYER).unlink(), rf"lacks {LAYER}"),
        (lambda folder: (folder / "mp_rank_00_model_states.pt").unlink(), "mp_rank_00_model_states.pt is missing"),
        (lambda folder: cut(folder, LAYER), rf"{LAYER} is damaged or cut off"),
        (lambda folder: (folder / LAYER).write_bytes(b""), rf"{LAYER} is damaged or cut off"),
        (lambda folder: cut(folder, "mp_rank_00_model_states.pt"), "mp_rank_00_model_states.pt is damaged or cut off"),
        (lambda folder: change(folder, LAYER, more=torch.zeros(1)), rf"{LAYER} and .* do not hold the same weights: more"),
        (lambda folder: torch.save([1], folder / LAYER), rf"{LAYER} holds a list"),
        (lambda folder: torch.save({}, folder / LAYER, _use_new_zipfile_serialization=False), "PyTorch before 1.6"),
        (lambda folder: torch.save({"a": Called()}, folder / LAYER), rf"{LAYER} is damaged"),
        (lambda folder: packed(folder / LAYER), rf"{LAYER} was not written by torch.save"),
        (lambda folder: change(folder, LAYER, **{f"{DENSE}.weight": torch.zeros(3, 4)}), rf"{LAYER}: {DENSE}.weight has shape \(3, 4\)"),
        (lambda folder: change(folder, LAYER, **{f"{DENSE}.bias": torch.zeros(7)}), rf"{LAYER}: {DENSE}.bias has shape \(7,\)"),
        (lambda folder: change(folder, LAYER, **{f"{DENSE}.bias": torch.zeros(32, dtype=torch.int64)}), "is of torch.int64"),
        (lambda folder: change(folder, LAYER, **{f"{DENSE}.bias": torch.zeros(32).to_sparse()}), rf"{LAYER}: {DENSE}.bias is no tensor"),
        (
            lambda folder: torch.save({}, folder / "layer_01-model_02-model_states.pt"),
            "has files of tensor-parallel rank 2; its arguments say that there are 2",
        ),
        (
            lambda folder: torch.save({}, folder / "layer_09-model_00-model_states.pt"),
            "has files of layer 9; its arguments say that 4 is the last",
        ),
    ],
    ids=[
        "layer", "rank", "cut-layer", "empty-layer", "cut-rank", "more", "list", "old", "call", "packed", "shape", "bias", "integers", "sparse",
        "another-split's", "another-model's",
    ],
)  # fmt: skip
def test_damage_is_named_by_its_file(damage: Any, said: str, tmp_path: Path) -> None:
    folder = write_checkpoint(make_model(False, 2), tmp_path)
    damage(folder)
    with pytest.raises(StageError, match=said):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"zero_stage": 3}, "was saved under ZeRO-3"),
        ({"num_experts": [4]}, "a mixture of experts"),
        ({"apply_layernorm_1p": True}, "--apply-layernorm-1p"),
        ({"apply_residual_connection_post_layernorm": True}, "--apply-residual-connection-post-layernorm"),
        ({"retro_add_retriever": True}, "--retro-add-retriever"),
        ({"hidden_size": 64}, r"embeddings.weight has shape \(\d+, 32\) .* arguments make it \(\d+, 64\)"),
        ({"num_layers": None}, "has no argument num_layers"),
        ({"num_layers": 10**12}, "num_layers = 1000000000000, which must be a whole number from 1 to 10000"),
        ({"tensor_model_parallel_size": 0}, "tensor_model_parallel_size = 0, which must be"),
        ({"num_key_value_heads": "all"}, "num_key_value_heads = 'all', which must be"),
        ({"num_key_value_heads": 3}, "8 heads and 3 key/value heads"),
        ({"layernorm_epsilon": "small"}, "layernorm_epsilon = 'small', which must be"),
        ({"normalization": "scalenorm"}, "--normalization 'scalenorm'"),
    ],
)
def test_other_kinds_are_refused(arguments: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = write_checkpoint(make_model(False), tmp_path, **arguments)
    with pytest.raises(StageError, match=said):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("ds_config", "x"), ("ds_config", {"zero_optimization": 3}), ("universal_checkpoint_info", [1])]
)
def test_what_is_not_needed_may_be_anything(key: str, value: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(make_model(False), tmp_path)
    file = folder / "mp_rank_00_model_states.pt"
    arguments = argparse.Namespace(**arguments_of(make_model(False), model_type=None))
    torch.save({"args": arguments, "checkpoint_version": 3.0, "iteration": 4, key: value}, file)
    assert read_checkpoint(folder).vocab_size is None


@pytest.mark.parametrize("version", [0, 1.0, None, "3"])
def test_an_older_order_of_queries_keys_and_values_is_refused(version: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(make_model(False), tmp_path)
    arguments = argparse.Namespace(**arguments_of(make_model(False), model_type=None))
    torch.save({"args": arguments, "checkpoint_version": version}, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(StageError, match=r"checkpoint version .* orders queries, keys and values in another way"):
        read_checkpoint(folder)


@pytest.mark.parametrize("module", [{"language_model": {"embedding": 3}}, "itself", None])
def test_a_module_that_is_none_is_refused(module: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(make_model(False), tmp_path, pipeline_engine=False)
    if module == "itself":
        module = {"language_model": {"encoder": {}}}
        module["language_model"]["encoder"]["deeper"] = module["language_model"]["encoder"]
    arguments = argparse.Namespace(**arguments_of(make_model(False), model_type=None))
    state = {"args": arguments, "checkpoint_version": 3.0, "module": module}
    torch.save(state, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(StageError, match=r"is no tensor|holds no weights"):
        read_checkpoint(folder)


def test_rank_files_of_another_division_are_noticed(tmp_path: Path) -> None:
    folder = write_checkpoint(make_model(False), tmp_path, pipeline_engine=False)
    shutil.copy(folder / "mp_rank_00_model_states.pt", folder / "mp_rank_01_model_states.pt")
    with pytest.raises(StageError, match="has 2 mp_rank files and no layer files; its arguments say 1"):
        read_checkpoint(folder)


def test_an_unknown_weight_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(make_model(False), tmp_path)
    change(folder, "layer_02-model_00-model_states.pt", **{"mlp.deepspeed_moe.gate.wg.weight": torch.zeros(4, 32)})
    with pytest.raises(StageError, match=r"layer_02-model_00-model_states.pt holds .*a mixture of experts"):
        read_checkpoint(folder)


def test_zero_3s_own_files_are_named_as_such(tmp_path: Path) -> None:
    folder = tmp_path / "global_step2"
    folder.mkdir()
    torch.save({}, folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(StageError, match="was saved under ZeRO-3"):
        read_checkpoint(folder)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(
    "name", ["mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight", "lm_head.weight", "mlp.dense_h_to_4h.bias"]
)
def test_splitting_undoes_merging(name: str, ranks: int) -> None:
    weight = torch.randn(16) if name.endswith("bias") else torch.randn(16, 8)
    name = name if name == "lm_head.weight" else f"layers.1.{name}"
    parts = split_ranks(name, weight, ranks, gated=True)
    assert len({part.shape for part in parts}) == 1
    assert torch.equal(merge_ranks(name, parts, gated=True), weight)
