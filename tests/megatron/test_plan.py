"""The plan of a Megatron training: what it says, what it reads, and what it refuses with the way out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.cluster.planning import UNKNOWN_GPU
from core.errors import InputError
from core.facts import Facts, Gpu, facts_for
from core.megatron.command import load_own, rate
from core.plan import make_plan
from core.plan_text import plan_text
from core.preflight import check_plan
from core.preset import Preset
from core.runs.directory import RunDirectory
from core.stages.base import StagePlan

CPU = Facts(python="/py/bin/python", host="head", cores=8, memory=64 << 30, disk_free=1 << 40, path="/usr/bin")
EIGHT = replace(CPU, gpus=(Gpu("H100", 80 << 30),) * 8)
RUN = RunDirectory(Path("/runs/r"))


def preset(model: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Preset:
    shape = {"layers": 4, "hidden_size": 64, "heads": 8, "sequence_length": 64} | (model or {})
    return Preset.model_validate(
        {
            "corpus": {"files": ["/a.jsonl"]},
            **sections,
            "model": shape,
            "pretrain": {"backend": "megatron", "steps": 10, "global_batch": 16} | sections.get("pretrain", {}),
            "megatron": {"checkout": "/ck"} | sections.get("megatron", {}),
        }
    )


def stage(checked: Preset, facts: Facts = EIGHT, stage_id: str = "pretrain") -> StagePlan:
    return next(planned for planned in make_plan(checked, "p", facts, RUN).stages if planned.id == stage_id)


def arguments(checked: Preset, facts: Facts = EIGHT) -> str:
    return " ".join(stage(checked, facts).argv)


def test_the_stage_is_the_real_command_and_its_driver_reads_the_log() -> None:
    planned = stage(preset(megatron={"python": "/mega/bin/python"}))
    assert planned.driver == "megatron"
    assert planned.argv[:8] == [
        "/mega/bin/python", "-m", "deepspeed.launcher.runner", "--master_port", "{master_port}", "--num_gpus", "8",
        "/ck/pretrain_gpt.py",
    ]  # fmt: skip
    assert planned.env["PATH"] == "/mega/bin:/usr/bin"
    assert planned.env["PYTHONPATH"] == "/ck"
    assert "PYTHONSAFEPATH" not in planned.env
    assert planned.outputs == {"checkpoints": f"/runs/r/megatron/checkpoint/{planned.derived['job_name']}"}
    assert planned.derived["corrections"] == []  # it stands for no script


def test_a_cpu_gets_neither_flash_attention_nor_kernels_nor_apex() -> None:
    planned = stage(preset(), CPU)
    words = set(planned.argv)
    assert {"--no-masked-softmax-fusion", "--no-gradient-accumulation-fusion"} <= words
    assert not {"--use-flash-attn-v2", "--fp16", "--bf16"} & words
    assert planned.env["PYTHONPATH"] == "/ck:/runs/r/code/core/megatron/shim"
    assert planned.env["DS_ACCELERATOR"] == "cpu"
    assert not {"fp16", "bf16"} & set(planned.derived["ds_config"])


def test_the_deepspeed_configuration_and_the_flag_name_the_same_precision() -> None:
    for precision in ("bf16", "fp16"):
        planned = stage(preset(pretrain={"precision": precision}))
        assert f"--{precision}" in planned.argv
        assert planned.derived["ds_config"][precision]["enabled"] is True
    summed = stage(preset(pretrain={"precision": "bf16"})).derived["ds_config"]["data_types"]
    assert summed == {"grad_accum_dtype": "fp32"}


def test_a_llama_has_its_arguments_and_a_gpt_says_nothing_of_defaults() -> None:
    llama = arguments(preset({"kv_heads": 4, "tied_embeddings": False, "ffn_size": 192}))
    for words in ("--swiglu", "--normalization rmsnorm", "--use-rotary-position-embeddings", "--num-key-value-heads 4",
                  "--ffn-hidden-size 192", "--untie-embeddings-and-output-weights", "--hidden-dropout 0"):  # fmt: skip
        assert words in llama
    gpt = arguments(preset({"family": "gpt2", "dropout": 0.1, "pad_vocab_to": 128}))
    for word in ("dropout", "ffn", "vocab-size", "untie", "layernorm-epsilon", "adam-eps"):
        assert word not in gpt
    assert "--attention-dropout 0.0 --hidden-dropout 0.0" in arguments(preset({"family": "gpt2"}))


@pytest.mark.parametrize(
    ("change", "message", "way"),
    [
        ({"megatron": {"checkout": None}}, "megatron.checkout is not set", "--set megatron.checkout=FOLDER"),
        ({"megatron": {"tensor_parallel": 3}}, "does not divide model.heads 8", "tensor_parallel=2"),
        ({"megatron": {"pipeline_parallel": 3}}, "does not divide the 4 layers", "pipeline_parallel=2"),
        ({"cluster": {"processes": 6}, "megatron": {"tensor_parallel": 4}}, "6 processes cannot be divided", "multiple of 4"),
        ({"pretrain": {"global_batch": 20}}, "not a multiple of micro_batch 1 x 8", "global_batch=16 or 24"),
        ({"pretrain": {"zero": 2}}, "takes ZeRO 0 and 1 only", "megatron.pipeline_engine=false"),
        ({"megatron": {"pipeline_engine": False, "pipeline_parallel": 2}}, "only the pipeline engine", "pipeline_parallel=1"),
        ({"megatron": {"pipeline_engine": False, "tensor_parallel": 2}}, "at its first checkpoint", "pipeline_engine=true"),
        ({"pretrain": {"zero": 0, "precision": "bf16"}}, "in fp32 only with ZeRO", "pretrain.zero=1"),
        ({"pretrain": {"zero": 0, "precision": "fp16"}, "megatron": {"apex": "shim"}}, "which learns less", "pretrain.zero=1"),
        ({"pretrain": {"schedule": "wsd"}}, "no wsd schedule", "schedule=cosine"),
        ({"pretrain": {"precision": "fp32"}}, "fp16 or bf16 only", "flash_attention=false"),
        ({"wandb": {"tags": ["a", "b"]}}, "one W&B tag", "keep one"),
        ({"megatron": {"extra_args": ["--lr", "1"]}}, "has --lr, which the command has already", "set the key"),
        ({"megatron": {"extra_args": ["--data-cache-path", "/c", "--seed=2"]}}, "has --seed, which", "take it out"),
        ({"megatron": {"extra_args": ["--fp16"]}}, "has --fp16, which pretrain.precision decides", "set pretrain.precision"),
        ({"megatron": {"data_files": ["/d/x"]}}, "no tokenizer.model says", "--set tokenizer.model=FILE"),
    ],
)  # fmt: skip
def test_what_megatron_cannot_do_is_refused_with_the_way_out(
    change: dict[str, dict[str, Any]], message: str, way: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        stage(preset(**change))
    assert way in str(refused.value)


def test_further_arguments_come_last_and_may_replace_what_no_key_sets() -> None:
    argv = stage(preset(megatron={"extra_args": ["--tf32", "--num-workers", "2"]})).argv
    assert argv[-3:] == ["--tf32", "--num-workers", "2"]


def test_zero_2_goes_without_the_pipeline_engine() -> None:
    planned = stage(preset(pretrain={"zero": 2}, megatron={"pipeline_engine": False}))
    assert "--no-pipeline-parallel" in planned.argv
    assert "_pp" not in planned.derived["job_name"]


def test_one_process_has_zero_1_where_deepspeed_needs_it() -> None:
    one = replace(EIGHT, gpus=EIGHT.gpus[:1])
    zeros = [
        stage(preset(pretrain={"precision": precision}, megatron={"apex": apex}), one).derived["zero"]
        for precision, apex in (("bf16", "installed"), ("fp16", "shim"), ("fp16", "installed"))
    ]
    assert zeros == [1, 1, 0]


def test_fp16_on_a_cpu_and_without_megatron_is_refused() -> None:
    with pytest.raises(InputError, match="no fp16 on a CPU"):
        stage(preset(pretrain={"precision": "fp16"}), CPU)
    # Said before the arguments that a CPU brings along.
    with pytest.raises(InputError, match="in fp16 on GPUs, not on a CPU"):
        stage(preset(megatron={"strict_original": True}), CPU)
    with pytest.raises(ValueError, match="only the megatron backend has"):
        Preset.model_validate({"pretrain": {"precision": "fp16"}})


def test_folders_are_blended_by_their_bytes_and_the_data_stage_has_nothing_to_make(tmp_path: Path) -> None:
    for name, size in (("b", 30), ("a", 10)):
        (tmp_path / f"{name}_text_document.bin").write_bytes(bytes(size))
        (tmp_path / f"{name}_text_document.idx").write_bytes(bytes(5))
    (tmp_path / "c_text_document.bin").write_bytes(bytes(7))
    checked = preset(megatron={"data_folders": [str(tmp_path)]}, tokenizer={"model": "/t.model"})
    facts = replace(EIGHT, sizes=facts_for(checked, tmp_path, ()).sizes)
    planned = stage(checked, facts)
    at = planned.argv.index("--data-path")
    assert planned.argv[at + 1 : at + 5] == ["15", f"{tmp_path}/a_text_document", "35", f"{tmp_path}/b_text_document"]
    assert planned.inputs["idx"] == [f"{tmp_path}/{name}_text_document.idx" for name in "ab"]
    assert "data_folders" in stage(checked, facts, "data").skip
    with pytest.raises(InputError, match="in /nowhere"):
        stage(preset(megatron={"data_folders": ["/nowhere"]}, tokenizer={"model": "/t.model"}), facts)


def test_one_prefix_alone_has_no_weight() -> None:
    facts = replace(EIGHT, sizes={"/d/x.bin": 3, "/d/x.idx": 4})
    checked = preset(megatron={"data_files": ["/d/x"]}, tokenizer={"model": "/t.model"})
    assert "--data-path /d/x --data-impl" in arguments(checked, facts)
    with pytest.raises(InputError, match=r"there is no file /d/y\.bin"):
        stage(preset(megatron={"data_files": ["/d/x", "/d/y"]}, tokenizer={"model": "/t.model"}), facts)


def test_on_nodes_each_has_its_torchrun_or_deepspeed_has_all() -> None:
    facts = replace(EIGHT, nodes=("a", "b"), launcher="slurm")
    planned = stage(preset(megatron={"tensor_parallel": 2, "pipeline_parallel": 4}), facts)
    assert planned.argv[2:5] == ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=8"]
    assert (planned.derived["processes"], planned.derived["data_parallel"]) == (16, 2)
    assert "--hostfile" in stage(preset(), replace(facts, launcher="deepspeed")).argv


def test_wandb_is_as_the_preset_says() -> None:
    off, offline, online = (stage(preset(wandb={"mode": mode})) for mode in ("off", "offline", "online"))
    assert "--use_wandb" not in off.argv
    assert off.env["WANDB_DISABLED"] == "true"
    assert "--use_wandb" in offline.argv
    assert (offline.env["WANDB_MODE"], "WANDB_DISABLED" in offline.env) == ("offline", False)
    assert "--use_wandb" in online.argv
    assert "WANDB_API_KEY" in online.secrets
    assert "WANDB_MODE" not in online.env
    named = arguments(preset(wandb={"mode": "online", "group": "mine", "tags": ["t"]}))
    assert "--wandb_group mine --wandb_tag t" in named


def test_a_training_with_a_checkpoint_of_its_own_goes_on_from_that() -> None:
    planned = stage(preset(megatron={"start_from": "/other"}))
    assert planned.argv[-1] == "--finetune"
    assert planned.argv[planned.argv.index("--load") + 1] == "/other"
    own = load_own(planned.argv, planned.derived["checkpoint_folder"])
    assert own == stage(preset()).argv
    assert load_own(own, "/x") == own


def test_what_decides_the_weights_is_in_the_settings() -> None:
    settings = stage(preset()).settings
    assert stage(preset(megatron={"tensor_parallel": 2})).settings != settings
    assert stage(preset(pretrain={"lr": 1e-4})).settings != settings
    assert stage(preset(megatron={"python": "/other"})).settings == settings


def test_the_text_of_the_plan_shows_parallelism_job_and_configuration() -> None:
    checked = preset(megatron={"tensor_parallel": 2, "pipeline_parallel": 2})
    text = plan_text(make_plan(checked, "p", EIGHT, RUN))
    assert "2 data x 2 pipeline x 2 tensor = 8 processes" in text
    assert '"zero_optimization": {"stage": 1}' in text
    command = next(part for part in text.split("\n\n") if "Pretraining" in part)
    assert " \\\n" in command
    assert "corrected" not in text


def test_rates_are_written_as_in_the_names_of_the_originals_folders() -> None:
    assert [rate(value) for value in (6e-4, 2.5e-4, 6e-5, 1e-6, 2e-3, 0.0)] == [
        "6.0e-4", "2.5e-4", "0.6e-4", "1.0e-6", "2.0e-3", "0.0",
    ]  # fmt: skip


def test_checkpoints_may_lie_outside_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "pretrain_gpt.py").touch()
    (tmp_path / "a.jsonl").write_text('{"text": "' + "word " * 100 + '"}\n')
    checked = preset(
        corpus={"files": [f"{tmp_path}/a.jsonl"]},
        megatron={"checkout": str(tmp_path), "output": f"{tmp_path}/out"},
        pretrain={"precision": "bf16"},
    )
    run = RunDirectory(tmp_path / "runs" / "r")
    check_plan(make_plan(checked, "p", EIGHT, run), run.root)
    section = checked.megatron.model_copy(update={"python": f"{tmp_path}/none"})
    with pytest.raises(InputError, match=r"megatron\.python: .*none is not a program"):
        check_plan(make_plan(checked.model_copy(update={"megatron": section}), "p", EIGHT, run), run.root)
    (tmp_path / "pretrain_gpt.py").unlink()
    with pytest.raises(InputError, match=r"pretrain: checkout: .*; --set megatron.checkout=FOLDER"):
        check_plan(make_plan(checked, "p", EIGHT, run), run.root)


def test_the_memory_of_gpus_that_nobody_has_seen_is_not_known() -> None:
    """Those of a Slurm job to come, or of a plan for another machine."""
    for backend in ("megatron", "embedded"):
        for facts in (replace(EIGHT, gpus=(UNKNOWN_GPU,) * 8), CPU):
            checked = preset(pretrain={"backend": backend, "device": "cuda", "precision": "bf16"})
            derived = stage(checked, facts).derived
            assert (derived["memory_available"], derived["memory_fits"]) == (None, True)
