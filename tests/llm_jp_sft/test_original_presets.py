"""Each preset of the original's fine-tuning scripts plans that script's command, argument by argument."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from core.errors import InputError
from core.facts import Facts, Gpu
from core.llm_jp_sft.originals import ORIGINALS
from core.plan import make_plan
from core.preset_source import load_preset, shipped_presets
from core.runs.directory import RunDirectory
from core.stages.base import StagePlan

RUN = RunDirectory(Path("/runs/r"))
CHECKOUT, MODEL, OUTPUT = "/home/u/llm-jp-sft", "/models/gpt_0.125B_global_step1000", "/runs/r/stages/finetune/output"
STRICT = "megatron.strict_original=true"


@dataclass(frozen=True)
class Script:
    """What one script says (seed-pipeline 4). `length` is what it gives as --max_seq_length; "" for nothing."""

    folder: str
    zero: int = 0
    gpus: int = 8
    port: bool = True
    length: str = "LENGTH"
    tag: bool = True

    @property
    def path(self) -> str:
        name = f"launcher-deepspeed_zero-{self.zero}" if self.zero else "launcher-none_zero-none"
        return f"step4_finetune_model/{self.folder}/dataset-openassistant/{name}.sh"

    @property
    def nodes(self) -> int:
        return 2 if self.zero else 1


SCRIPTS = {
    "abci-1x1-sft": Script("abci_node-1_gpu-1", gpus=1),
    "gcp-play-1x2-sft": Script("gcp_play_node-1_gpu-2", gpus=2),
    "gcp-play-1-node-sft": Script("gcp_play_node-1_gpu", gpus=2, length="", tag=False),
    **{
        f"{name}-sft-zero{zero}": replace(script, zero=zero)
        for name, script in {
            "abci-2x8": Script("abci_node-2_gpu-16"),
            "gcp-honban-2x8": Script("gcp_honban_node-2_gpu-16"),
            "gcp-play-2x8": Script("gcp_play_node-2_gpu-16"),
            "gcp-play-2-nodes": Script("gcp_play_node-2_gpu", gpus=4, port=False, length="2048", tag=False),
        }.items()
        for zero in (2, 3)
    },
}


def expected(script: Script, tag: str = "", length: str = "1024") -> list[str]:
    """The script's words from deepspeed's options on, or from train.py; words that differ from start to start in capitals."""
    options = [*(["--master_port", "PORT"] if script.port else []), "--hostfile", "HOSTFILE"] if script.zero else []
    length = script.length.replace("LENGTH", length)
    before = f"""{CHECKOUT}/train.py --num_train_epochs {2 if script.zero else 1} --per_device_train_batch_size 1
        {"--gradient_accumulation_steps 32" if script.zero else ""} --learning_rate 1e-5 --warmup_ratio 0.1
        --lr_scheduler_type cosine --bf16 {f"--max_seq_length {length}" if length else ""}
        {"--gradient_checkpointing --logging_steps 1" if script.zero else ""}
        --data_files {CHECKOUT}/dataset/openassistant_best_replies_train.jsonl --model_name_or_path {MODEL}
        --output_dir {OUTPUT} --use_fast False""".split()
    templates = ["--instruction_template", "### Human:", "--response_template", "### Assistant:"]
    after = f"""{f"--deepspeed DS_CONFIG/ds_config_zero{script.zero}.json" if script.zero else ""}
        --use_wandb --wandb_entity team --wandb_project llm --wandb_group finetune_gpt_0.125B_global_step1000_HOST_TIME
        {f"--wandb_tag {tag}" if tag else ""}""".split()
    return [*options, *before, *templates, *after]


def planned(name: str, *sets: str, launcher: str = "deepspeed") -> StagePlan:
    script = SCRIPTS[name]
    given = [f"finetune.checkout={CHECKOUT}", f"finetune.model={MODEL}", "wandb.entity=team", "wandb.project=llm"]
    given += ["finetune.max_length=1024"] if script.length == "LENGTH" else []
    facts = Facts(
        python="/py/bin/python", host="head", cores=48, memory=1 << 40, disk_free=1 << 50,
        gpus=(Gpu("A100", 40 << 30),) * script.gpus,
    )  # fmt: skip
    if script.nodes > 1:
        facts = replace(facts, nodes=("n1", "n2"), launcher=launcher)
    plan = make_plan(load_preset(name, [*given, *sets]).preset, name, facts, RUN, first="finetune")
    return next(stage for stage in plan.stages if stage.id == "finetune")


def words(stage: StagePlan) -> list[str]:
    """As `expected` has them."""
    stage_folder = RUN.stage("finetune")
    places = {
        "{master_port}": "PORT", "{host}": "HOST", "{started}": "TIME", str(stage_folder / "hostfile"): "HOSTFILE",
        str(stage_folder / "deepspeed_config"): "DS_CONFIG",
    }  # fmt: skip
    argv = stage.argv[3:] if stage.argv[1] == "-m" else stage.argv[1:]
    for place, name in places.items():
        argv = [word.replace(place, name) for word in argv]
    return argv


def by_option(arguments: list[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for word in arguments:
        if word.startswith("--") or word.endswith(".py"):
            assert word not in found
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return {option: " ".join(values) for option, values in found.items()}


def test_there_is_a_preset_for_each_of_the_eleven_scripts() -> None:
    originals = {name: load_preset(name).preset.original for name in shipped_presets()}
    ours = {name: path for name, path in originals.items() if path.startswith("step4_")}
    assert ours == {name: script.path for name, script in SCRIPTS.items()}
    assert {*ours.values()} == {*ORIGINALS}
    assert len(ours) == len(ORIGINALS) == 11


@pytest.mark.parametrize("name", SCRIPTS)
def test_strictly_the_command_is_the_scripts_to_the_letter(name: str) -> None:
    script, stage = SCRIPTS[name], planned(name, STRICT)
    assert words(stage) == expected(script)
    assert (stage.derived["strict_original"], stage.derived["corrections"]) == (True, [])
    assert stage.argv[1:3] == ["-m", "deepspeed.launcher.runner"] if script.zero else stage.argv[1].endswith("train.py")


@pytest.mark.parametrize("name", SCRIPTS)
def test_otherwise_it_differs_where_a_correction_says_so_and_nowhere_else(name: str) -> None:
    script, stage = SCRIPTS[name], planned(name)
    listed = {entry["what"]: entry for entry in stage.derived["corrections"]}
    here, there = by_option(words(stage)), by_option(expected(script))
    differing = {option for option in {*here, *there} if here.get(option) != there.get(option)}
    if script.zero:
        meeting = {
            "--launcher", "--force_multi", "--no_ssh_check", "--master_addr={master_addr}", "--master_port=PORT", "--no_local_rank",
        }  # fmt: skip
        assert meeting < set(here)
        assert "options of deepspeed" in listed
        differing -= {*meeting, "--master_port"}
        assert listed["--master_port"]["original"] == ("not given" if not script.port else _port_of(script))
    assert {what for what in listed if what.startswith("--")} - {"--master_port"} == differing
    assert differing == ({"--max_seq_length"} if not script.length else set())
    assert listed.keys() >= {"log and exit code", "model folder"}
    assert all(entry["why"] and entry["original"] != entry["here"] for entry in listed.values())


def _port_of(script: Script) -> str:
    return f"10000 + {'JOB_ID' if script.folder.startswith('abci') else 'SLURM_JOB_ID'} % 50000"


@pytest.mark.parametrize("zero", [2, 3])
def test_the_deepspeed_configuration_has_no_scheduler_unless_strictly(zero: int) -> None:
    """With one, transformers ignores --lr_scheduler_type cosine."""
    name = f"gcp-honban-2x8-sft-zero{zero}"
    ours, strict = planned(name).derived["ds_config"], planned(name, STRICT).derived["ds_config"]
    auto = dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps"), "auto")
    assert strict == {**ours, "scheduler": {"type": "WarmupLR", "params": auto}}
    assert "scheduler" not in ours
    offload = {"device": "cpu", "pin_memory": True}
    shared = {"stage": zero, "offload_optimizer": offload, "overlap_comm": True, "contiguous_gradients": True}
    own = {
        2: {"allgather_partitions": True, "allgather_bucket_size": 200000000, "reduce_scatter": True, "reduce_bucket_size": 200000000},
        3: {
            "offload_param": offload, "sub_group_size": 1000000000, "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1000000000, "stage3_max_reuse_distance": 1000000000,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
    }  # fmt: skip
    assert ours == {
        "fp16": {
            "enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2,
            "min_loss_scale": 1,
        },
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
        "zero_optimization": shared | own[zero],
        "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "steps_per_print": 10,
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": False,
    }  # fmt: skip
    listed = [entry["what"] for entry in planned(name).derived["corrections"]]
    assert '"scheduler" in the DeepSpeed configuration' in listed
    json.dumps(ours)


def test_the_tag_goes_where_the_script_takes_one() -> None:
    for name, script in SCRIPTS.items():
        if script.tag:
            assert words(planned(name, STRICT, "wandb.tags=[try]")) == expected(script, tag="try")
        else:
            with pytest.raises(InputError, match="--wandb_tag"):
                planned(name, STRICT, "wandb.tags=[try]")
            assert by_option(words(planned(name, "wandb.tags=[try]")))["--wandb_tag"] == "try"


def test_one_process_has_a_copy_on_each_gpu() -> None:
    """As python train.py does it: nn.DataParallel, so the batch grows with the GPUs."""
    stage = planned("gcp-play-1x2-sft")
    assert (stage.derived["processes"], stage.derived["global_batch"]) == (1, 2)
    assert "2 GPUs" in stage.derived["engine"]
    assert planned("gcp-honban-2x8-sft-zero3").derived["global_batch"] == 32 * 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("finetune.steps=5", "has --max_steps"),
        ("finetune.weight_decay=0.1", "has --weight_decay"),
        ("seed=1", "has --seed"),
        ("finetune.device=cpu", "on GPUs, not on a CPU"),
        ("wandb.mode=off", "want W&B"),
        ("wandb.group=mine", "want W&B"),
    ],
)
def test_what_no_script_can_do_is_refused_strictly(change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned("abci-1x1-sft", STRICT, change)


def test_other_launchers_start_the_ranks_by_torchrun() -> None:
    stage = planned("gcp-play-2x8-sft-zero2", launcher="ssh")
    assert stage.argv[:3] == ["/py/bin/python", "-m", "torch.distributed.run"]
    assert "launcher" in {entry["what"] for entry in stage.derived["corrections"]}
    with pytest.raises(InputError, match="by deepspeed, not by ssh"):
        planned("gcp-play-2x8-sft-zero2", STRICT, launcher="ssh")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("finetune.lora=true", "adapters are not driven"),
        ("finetune.valid_share=0.1", "does not validate"),
        ("finetune.precision=fp32", "trains in bf16"),
        ("finetune.zero=1", "0, 2 or 3"),
        ("finetune.nodes=2", "without DeepSpeed train.py is one process"),
        ("finetune.checkout=null", "finetune.checkout is not set"),
    ],
)
def test_what_train_py_cannot_do_is_refused(change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned("abci-1x1-sft", change)
