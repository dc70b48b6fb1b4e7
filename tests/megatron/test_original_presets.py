"""Each preset of the original's pretraining scripts plans that script's command, argument by argument, for every size of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from core.errors import InputError
from core.facts import Facts, Gpu
from core.plan import Plan, make_plan
from core.plan_text import plan_text
from core.preset_source import load_preset, shipped_presets
from core.runs.directory import RunDirectory
from core.stages.base import StagePlan

RUN = RunDirectory(Path("/runs/r"))
CHECKOUT, OUTPUT, TOKENIZER = "/home/u/Megatron-DeepSpeed", "/out", "/runs/r/outputs/tokenizer/tokenizer.model"

# As seed-pipeline 2.2: what one commented-out block of every script says.
SIZES = {
    # size: (model_size, layers, hidden, heads, gbs, lr, min_lr, init_std)
    "125M": ("0.125", 12, 768, 12, 256, "6.0e-4", "1.0e-6", "0.02"),
    "350M": ("0.35", 24, 1024, 16, 256, "3.0e-4", "1.0e-6", "0.018"),
    "760M": ("0.76", 24, 1536, 16, 256, "2.5e-4", "1.0e-6", "0.015"),
    "1.3B": ("1.3", 24, 2048, 16, 512, "2.0e-4", "1.0e-6", "0.013"),
    "2.7B": ("2.7", 32, 2560, 32, 512, "1.6e-4", "1.0e-6", "0.011"),
    "6.7B": ("6.7", 32, 4096, 32, 1024, "1.2e-4", "1.0e-6", "0.009"),
    "13B": ("13", 40, 5120, 40, 1024, "1.0e-4", "1.0e-6", "0.008"),
    "175B": ("175", 96, 12288, 96, 1536, "0.6e-4", "1.0e-6", "0.005"),
}


@dataclass(frozen=True)
class Script:
    """What one script says (seed-pipeline 2.1); `port` and `tag` came with the newer ones."""

    path: str
    nodes: int
    gpus: int
    zero: int
    pp: int = 1
    tp: int = 1
    mbs: int = 1
    seq: int = 2048
    eval: tuple[int, int] = (100, 10)
    fp16: bool = True
    port: bool = True
    folders: tuple[str, ...] = ()
    size: str = "125M"


ARXIV = "dataset-arxiv_tokenizer-sentencepiece_model-gpt_0.125B"
MC4 = "gcp_play_node-1_gpu-2/dataset-mc4ja_wikija-tokenizer-sentencepiece_gpt_neox_xb_gpt_0.125B"
ABCI = f"abci_node-2_gpu-16/{ARXIV}"
MC4_FOLDERS = tuple(f"/persistentshare/storage/team_dev_YU/tokenized_data/{name}" for name in ("mc4", "wikipedia_ja"))
BOOK_FOLDERS = (
    "/storage8/backup/tokenized_data/redpajama/book/book",
    "/storage8/backup/tokenized_data/wikipedia_ja/wikipedia_ja",
)
ON = "flashattn2-on"
SCRIPTS = {
    "abci-1x1-gpt-125m-zero0": Script(f"abci_node-1_gpu-1/{ARXIV}/zero-0_dp-1_pp-1_tp-1_{ON}.sh", 1, 1, 0),
    "abci-2x8-gpt-125m-zero1-dp16": Script(f"{ABCI}/zero-1_dp-16_pp-1_tp-1_{ON}.sh", 2, 8, 1),
    "abci-2x8-gpt-125m-zero1-dp1-pp4-tp4": Script(f"{ABCI}/zero-1_dp-1_pp-4_tp-4_{ON}.sh", 2, 8, 1, 4, 4, port=False),
    "abci-2x8-gpt-125m-zero1-dp4-pp2-tp2": Script(f"{ABCI}/zero-1_dp-4_pp-2_tp-2_{ON}.sh", 2, 8, 1, 2, 2),
    "abci-2x8-gpt-125m-zero1-dp8-tp2": Script(f"{ABCI}/zero-1_dp-8_pp-1_tp-2_{ON}.sh", 2, 8, 1, 1, 2, port=False),
    "abci-2x8-gpt-125m-zero1-dp8-pp2": Script(f"{ABCI}/zero-1_dp-8_pp-2_tp-1_{ON}.sh", 2, 8, 1, 2, 1),
    "abci-2x8-gpt-1.3b-zero1-dp4-pp2-tp2": Script(
        f"{ABCI.replace('0.125B', '1.3B')}/zero-1_dp-4_pp-2_tp-2_{ON}.sh", 2, 8, 1, 2, 2, port=False, size="1.3B"
    ),
    "gcp-honban-2x8-gpt-1.3b-zero0-dp16": Script(
        "gcp_honban_node-2_gpu-16/dataset-book_wikija_tokenizer-sentencepiece_model-gpt_1.3B/"
        f"zero-0_dp-16_pp-1_tp-1_precision-fp32_{ON}.sh",
        2, 8, 0, seq=4096, eval=(1000, 100), fp16=False, folders=BOOK_FOLDERS, size="1.3B",
    ),
    "gcp-1-node-gpt-125m-zero0": Script(f"gcp_node-1_gpu/{ARXIV}/zero-0_dp-1_pp-1_tp-1_{ON}.sh", 1, 4, 0, port=False),
    "gcp-2-nodes-gpt-125m-zero1": Script(f"gcp_node-2_gpu/{ARXIV}/zero-0_dp-1_pp-1_tp-1_{ON}.sh", 2, 4, 1, port=False),
    "gcp-2x8-gpt-125m-zero1-sbatch": Script(
        f"gcp_node-2_gpu/{ARXIV}/zero-0_dp-1_pp-1_tp-1_{ON}_sbatch.sh", 2, 8, 1, port=False
    ),
    "gcp-play-1x2-gpt-125m-zero0-dp2": Script(f"gcp_play_node-1_gpu-2/{ARXIV}/zero-0_dp-2_pp-1_tp-1_{ON}.sh", 1, 2, 0),
    "gcp-play-1-node-gpt-125m-zero0-mbs8": Script(
        f"{MC4}/train.sh", 1, 2, 0, mbs=8, eval=(1000, 100), folders=MC4_FOLDERS
    ),
    "gcp-play-1x8-gpt-125m-zero0-mbs8-sbatch": Script(
        f"{MC4}/train_sbatch.sh", 1, 8, 0, mbs=8, eval=(1000, 100), folders=MC4_FOLDERS
    ),
    "gcp-play-2x8-gpt-125m-zero1-dp16": Script(
        f"gcp_play_node-2_gpu-16/{ARXIV}/zero-0_dp-16_pp-1_tp-1_{ON}.sh", 2, 8, 1
    ),
    "gcp-play-2x8-gpt-125m-zero1-dp16-sbatch": Script(
        f"gcp_play_node-2_gpu-16/{ARXIV}/zero-0_dp-16_pp-1_tp-1_{ON}_sbatch.sh", 2, 8, 1
    ),
}  # fmt: skip


def token_files(script: Script) -> dict[str, int]:
    """Two pairs in the first folder, one in the others, and a .bin without its .idx, which the scripts pass over."""
    sizes: dict[str, int] = {}
    for number, folder in enumerate(script.folders):
        for name in ("a", "b")[: 2 - number]:
            sizes |= {f"{folder}/{name}_text_document.bin": 1000 + number, f"{folder}/{name}_text_document.idx": 34}
        sizes[f"{folder}/lost_text_document.bin"] = 5
    return sizes


def expected(script: Script, size: str, tag: str = "") -> list[str]:
    """deepspeed's arguments in the script (seed-pipeline 2.3, 2.6, 2.7); words that differ from start to start in capitals."""
    ms, layers, hidden, heads, gbs, lr, min_lr, init_std = SIZES[size]
    job = f"gpt_{ms}B_tok300B_lr{lr}_min{min_lr}_w3000M_d300B_cosine_gbs{gbs}_mbs{script.mbs}_g{script.nodes * script.gpus}"
    job += f"{f'_z{script.zero}' if script.zero else ''}{f'_mp{script.tp}' if script.tp > 1 else ''}_pp{script.pp}_seed1234_rebase"
    data = f"{CHECKOUT}/dataset/arxiv_text_document"
    if script.folders:
        first, second = script.folders
        data = f"1034 {first}/a_text_document 1034 {first}/b_text_document 1035 {second}/a_text_document"
    return f"""{"--master_port PORT" if script.port else ""} {"--hostfile HOSTFILE" if script.nodes > 1 else ""}
        {CHECKOUT}/pretrain_gpt.py --override-opt_param-scheduler --adam-beta1 0.9 --adam-beta2 0.95
        --tensor-model-parallel-size {script.tp} --init-method-std {init_std} --lr-decay-tokens 300000000000
        --lr-warmup-tokens 3000000000 --micro-batch-size {script.mbs} --exit-duration-in-mins 30000000 --global-batch-size {gbs}
        --num-layers {layers} --hidden-size {hidden} --num-attention-heads {heads} --seq-length {script.seq}
        --max-position-embeddings {script.seq} --train-tokens 300000000000 --train-samples {600 * 10**9 // script.seq} --lr {lr}
        --min-lr {min_lr} --lr-decay-style cosine --split 949,50,1 --log-interval 10 --eval-interval {script.eval[0]}
        --eval-iters {script.eval[1]} --save-interval 1000 --weight-decay 0.1 --clip-grad 1.0 --hysteresis 2 --num-workers 0
        {"--fp16" if script.fp16 else ""} --seed 1234 --load {OUTPUT}/checkpoint/{job} --save {OUTPUT}/checkpoint/{job}
        --no-async-tensor-model-parallel-allreduce --use-flash-attn-v2 --tensorboard-queue-size 1 --log-timers-to-tensorboard
        --log-batch-size-to-tensorboard --log-validation-ppl-to-tensorboard --tensorboard-dir {OUTPUT}/tensorboard/{job}_HOST_TIME
        --log-optimizer-states-to-tensorboard --tokenizer-type SentencePieceTokenizer --tokenizer-model {TOKENIZER}
        --data-path {data} --data-impl mmap --deepspeed
        --deepspeed_config {OUTPUT}/deepspeed_config/ds_config_gbs{gbs}_mbs{script.mbs}_log10_zero{script.zero}.json
        --zero-stage {script.zero} --pipeline-model-parallel-size {script.pp} --use_wandb --wandb_entity team --wandb_project llm
        --wandb_group pretrain_gpt_{ms}B_HOST_TIME {f"--wandb_tag {tag}" if tag else ""}""".split()


def planned(name: str, size: str = "", *sets: str, gpus: int = 0, launcher: str = "deepspeed") -> StagePlan:
    plan = plan_of(name, size, *sets, gpus=gpus, launcher=launcher)
    return next(stage for stage in plan.stages if stage.id == "pretrain")


def plan_of(name: str, size: str = "", *sets: str, gpus: int = 0, launcher: str = "deepspeed") -> Plan:
    script = SCRIPTS[name]
    options = [f"megatron.checkout={CHECKOUT}", f"megatron.output={OUTPUT}", "wandb.entity=team", "wandb.project=llm"]
    options += [f"model.size={size}"] if size else []
    options += ["tokenizer.model=/t.model"] if script.folders else []
    facts = Facts(
        python="/py/bin/python", host="head", cores=48, memory=1 << 40, disk_free=1 << 50, sizes=token_files(script),
        gpus=(Gpu("A100", 40 << 30),) * (gpus or script.gpus),
    )  # fmt: skip
    if script.nodes > 1:
        facts = replace(facts, nodes=("n1", "n2"), launcher=launcher)
    return make_plan(load_preset(name, [*options, *sets]).preset, name, facts, RUN)


def words(stage: StagePlan) -> list[str]:
    """deepspeed's arguments; what is filled in at the start in capitals, as in `expected`."""
    assert stage.argv[:3] == ["/py/bin/python", "-m", "deepspeed.launcher.runner"]
    places = {
        "{master_port}": "PORT",
        "{host}": "HOST",
        "{started}": "TIME",
        str(RUN.stage("pretrain") / "hostfile"): "HOSTFILE",
    }
    return [_replaced(word, places) for word in stage.argv[3:]]


def _replaced(word: str, places: dict[str, str]) -> str:
    for place, name in places.items():
        word = word.replace(place, name)
    return word


def by_option(arguments: list[str]) -> dict[str, str]:
    """Each option with its value (nothing for a flag), and the script under its own name."""
    found: dict[str, list[str]] = {}
    for word in arguments:
        if word.startswith("--") or word.endswith(".py"):
            assert word not in found, f"{word} is given twice"
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return {option: " ".join(values) for option, values in found.items()}


def test_there_is_a_preset_for_each_of_the_sixteen_scripts() -> None:
    originals = {name: load_preset(name).preset.original for name in shipped_presets()}
    ours = {name: path for name, path in originals.items() if path.startswith("step2_") and "preprocess" not in path}
    assert ours == {name: f"step2_pretrain_model/{script.path}" for name, script in SCRIPTS.items()}
    assert len(SCRIPTS) == 16


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SCRIPTS)
def test_strictly_the_command_is_the_scripts_to_the_letter(name: str, size: str) -> None:
    stage = planned(name, size, "megatron.strict_original=true")
    assert words(stage) == expected(SCRIPTS[name], size)
    assert stage.derived["strict_original"] is True
    assert stage.derived["corrections"] == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SCRIPTS)
def test_otherwise_it_differs_where_a_correction_says_so_and_nowhere_else(name: str, size: str) -> None:
    stage, script = planned(name, size), SCRIPTS[name]
    listed = {entry["what"]: entry for entry in stage.derived["corrections"]}
    here, there = by_option(words(stage)), by_option(expected(script, size))
    differing = {option for option in {*here, *there} if here.get(option) != there.get(option)}
    if script.nodes > 1:  # one entry for the options that say where the ranks of several nodes meet
        meeting = {
            "--launcher",
            "--force_multi",
            "--no_ssh_check",
            "--master_addr={master_addr}",
            "--master_port=PORT",
            "--no_local_rank",
        }
        assert meeting < set(here)
        assert listed["options of deepspeed"]["here"].split() == [
            "--hostfile", "--launcher", "--force_multi", "--no_ssh_check", "--master_addr", "--no_local_rank",
        ]  # fmt: skip
        differing -= {*meeting, "--master_port"}
    elif not script.port:
        differing.discard("--master_port")
    assert listed.keys() >= {"--master_port", "log and exit code", "pointer to the newest checkpoint"}
    corrected = {what for what in listed if what.startswith("--")} - {"--master_port"}
    assert corrected == differing
    for option in corrected:
        assert listed[option]["original"] == _stated(option, there)
        assert listed[option]["here"] == _stated(option, here)
    assert all(entry["why"] and entry["original"] != entry["here"] for entry in listed.values())


def _stated(option: str, arguments: dict[str, str]) -> str:
    return (arguments[option] or "given") if option in arguments else "not given"


def test_the_samples_are_those_that_the_run_reads() -> None:
    stage = planned("abci-2x8-gpt-125m-zero1-dp16")
    assert by_option(words(stage))["--train-samples"] == str(572205 * 256)
    assert stage.derived["steps"] == 572205
    short = planned("abci-2x8-gpt-125m-zero1-dp16", "", "pretrain.tokens=null", "pretrain.steps=100")
    options = by_option(words(short))
    assert (options["--train-samples"], options["--train-tokens"]) == ("25600", "52428800")
    assert (options["--lr-decay-tokens"], short.derived["job_name"][:19]) == ("52428800", "gpt_0.125B_tok0.052")


def test_the_tag_goes_where_the_script_takes_one() -> None:
    for name, script in SCRIPTS.items():
        if script.port:
            stage = planned(name, "", "megatron.strict_original=true", "wandb.tags=[try]")
            assert words(stage) == expected(script, script.size, tag="try")
        else:
            with pytest.raises(InputError, match="takes no --wandb_tag"):
                planned(name, "", "megatron.strict_original=true", "wandb.tags=[try]")
            assert by_option(words(planned(name, "", "wandb.tags=[try]")))["--wandb_tag"] == "try"


def test_what_the_scripts_names_and_variables_get_wrong_is_said() -> None:
    said = {name: {entry["what"]: entry for entry in planned(name).derived["corrections"]} for name in SCRIPTS}
    assert {name for name in SCRIPTS if "number of nodes" in said[name]} == {
        name for name in SCRIPTS if name.startswith("gcp") and not SCRIPTS[name].folders
    }
    assert {name for name in SCRIPTS if "zero-0" in said[name].get("name", {}).get("original", "")} == {
        name for name, script in SCRIPTS.items() if script.zero and "zero-0" in script.path
    }
    honban = said["gcp-honban-2x8-gpt-1.3b-zero0-dp16"]
    assert (honban["--fp16"]["original"], honban["name"]["original"]) == ("not given", "precision-fp32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.family=llama", "no script of the original has --no-query-key-layer-scaling"),
        ("pretrain.precision=bf16", "no script of the original has --bf16"),
        ("megatron.extra_args=[--tf32]", "has --tf32"),
        ("megatron.start_from=/c", "has --finetune"),
        ("pretrain.device=cpu", "no fp16 on a CPU"),
        ("wandb.mode=off", "want W&B"),
        ("wandb.group=mine", "want W&B"),
        ("original=step2_pretrain_model/other.sh", "no pretraining script step2_pretrain_model/other.sh"),
    ],
)
def test_what_no_script_can_do_is_refused_strictly(change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned("abci-2x8-gpt-125m-zero1-dp16", "", "megatron.strict_original=true", change)


def test_strictly_only_deepspeed_launches() -> None:
    with pytest.raises(InputError, match="by deepspeed, not by ssh"):
        planned("abci-2x8-gpt-125m-zero1-dp16", "", "megatron.strict_original=true", launcher="ssh")
    stage = planned("abci-2x8-gpt-125m-zero1-dp16", launcher="ssh")
    assert stage.argv[:3] == ["/py/bin/python", "-m", "torch.distributed.run"]
    assert {"launcher"} < {entry["what"] for entry in stage.derived["corrections"]}


def test_the_text_of_the_plan_lists_each_correction_or_says_that_there_is_none() -> None:
    name = "gcp-play-2x8-gpt-125m-zero1-dp16"
    text = plan_text(plan_of(name))
    for entry in planned(name).derived["corrections"]:
        assert f"{entry['what']}: " in text
        assert entry["why"] in text
    strict = plan_text(plan_of(name, "", "megatron.strict_original=true"))
    assert "to the letter (megatron.strict_original); nothing is corrected" in strict
    assert "corrected   " not in strict
    assert f"skipped: megatron.strict_original reads {CHECKOUT}/dataset/arxiv_text_document" in strict
