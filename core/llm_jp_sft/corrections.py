"""What a plan does otherwise than the original's fine-tuning script that the preset stands for, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from core.facts import Facts
from core.llm_jp_sft.command import FineTuning
from core.llm_jp_sft.originals import OriginalScript
from core.stages.command import MASTER_PORT

if TYPE_CHECKING:
    from core.preset import Preset

NOT_GIVEN = "not given"


def corrections(preset: Preset, original: OriginalScript, t: FineTuning, facts: Facts) -> list[dict[str, str]]:
    """One entry for each difference: `what` (an option of the command, or words), `original`, `here`, `why`."""
    found: list[dict[str, str]] = []

    def differs(what: str, there: str, here: str, why: str) -> None:
        found.append({"what": what, "original": there, "here": here, "why": why})

    if t.ds_config_file:
        differs(
            '"scheduler" in the DeepSpeed configuration',
            "WarmupLR",
            NOT_GIVEN,
            f"it overrides --lr_scheduler_type {t.schedule}: after the warm-up the learning rate stayed at its peak",
        )
        differs(
            "--master_port",
            f"10000 + {original.job_variable} % 50000" if original.job_variable else NOT_GIVEN,
            MASTER_PORT,
            "a port that is free when the run starts; "
            + (
                "that of the job's number may be taken" if original.job_variable else "DeepSpeed's 29500 is everybody's"
            ),
        )
        _launcher(facts, differs)
    if not original.length:
        differs("--max_seq_length", "not given, which is 2048", str(t.max_length), "the length is said, and can be set")
    elif original.length == "2048" and t.max_length != 2048:
        differs("--max_seq_length", "2048", str(t.max_length), "finetune.max_length")
    if t.on_cpu:
        differs(
            "--use_cpu", NOT_GIVEN, "given", "there is no GPU, and transformers refuses --bf16 without one otherwise"
        )
    if not t.wandb:
        differs("--use_wandb", "given", NOT_GIVEN, "wandb.mode is off; the original always reports to W&B")
    differs(
        "log and exit code",
        "2>&1 | tee LOG",
        "the stage's log.txt",
        "the exit code of the pipeline is tee's: a fine-tuning that failed counted as done",
    )
    differs(
        "model folder",
        "--output_dir itself, among the checkpoints, whole or not",
        "what --output_dir holds at the end, once it is whole",
        "a save that broke off left a folder that loads with some weights missing",
    )
    return found


def _launcher(facts: Facts, differs: Callable[[str, str, str, str], None]) -> None:
    if not facts.nodes:
        count = "as many processes as the plan counts with"
        differs("--num_gpus", NOT_GIVEN, "given", count)
    elif facts.launcher == "deepspeed":
        differs(
            "options of deepspeed",
            "--hostfile",
            "--hostfile --launcher --force_multi --no_ssh_check --master_addr --no_local_rank",
            "the nodes meet where the run says, and one node in a hostfile is not taken for this machine",
        )
    else:
        differs(
            "launcher",
            "deepspeed",
            f"torch.distributed.run by {facts.launcher}",
            "cluster.launcher; the ranks get the same",
        )
