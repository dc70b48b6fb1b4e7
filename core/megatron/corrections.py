"""What a plan does otherwise than the original's script that the preset stands for, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.facts import Facts
from core.megatron.command import Training
from core.megatron.data import arxiv_prefix
from core.megatron.originals import OriginalScript
from core.stages.command import MASTER_PORT

if TYPE_CHECKING:
    from core.preset import Preset

NOT_GIVEN = "not given"
"""In place of an argument's value."""


def original_samples(sequence_length: int) -> int:
    """--train-samples as every script has it, whatever the number of tokens."""
    return 300 * 10**9 * 2 // sequence_length


def corrections(preset: Preset, original: OriginalScript, t: Training, facts: Facts) -> list[dict[str, str]]:
    """One entry for each difference: `what` (an option of the command, or words), `original`, `here`, `why`."""
    found: list[dict[str, str]] = []

    def differs(what: str, there: str, here: str, why: str) -> None:
        if there != here:
            found.append({"what": what, "original": there, "here": here, "why": why})

    differs(
        "--train-samples",
        str(original_samples(t.sequence_length)),
        str(t.samples),
        "the sequences that the run reads. The original writes 2 x 300 billion tokens: rank 0 then indexes twice what is "
        "read, for minutes and gigabytes, and the log shows twice the iterations that are done",
    )
    if t.fp16:
        differs(
            "--fp16",
            "given" if original.fp16_flag else NOT_GIVEN,
            "given",
            "DeepSpeed's configuration turns fp16 on in any case; without the flag Megatron counts on fp32, which flash-attn refuses",
        )
    differs(
        "--exit-signal-handler",
        NOT_GIVEN,
        "given",
        "a stop saves first; the original is killed and loses what came after its last checkpoint",
    )
    if original.arxiv:
        differs(
            "--data-path",
            arxiv_prefix(preset.megatron),
            " ".join(t.data),
            "token files made with this run's tokenizer. The original uses files that are there again whichever tokenizer made "
            "them, and its preprocess_data.py leaves the end of each document out of the index",
        )
    if not t.wandb:
        differs("--use_wandb", "given", NOT_GIVEN, "wandb.mode is off; the original always reports to W&B")
    differs(
        "--master_port",
        f"10000 + {original.job_variable} % 50000" if original.port else NOT_GIVEN,
        MASTER_PORT,
        "a port that is free when the run starts"
        + ("; that of the job's number may be taken" if original.port else "; DeepSpeed's 29500 is everybody's"),
    )
    if not facts.nodes:
        differs("--num_gpus", NOT_GIVEN, str(t.processes), "as many processes as the plan counts with")
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
    if original.node_count_is_unset:
        differs(
            "number of nodes",
            "NHOSTS, which Slurm does not set",
            str(max(1, len(facts.nodes))),
            "the nodes that train are counted. In the original the job's name has no number of GPUs",
        )
    if original.said:
        differs(
            "name",
            original.said,
            original.done,
            "the script's name says one thing and its settings another; ours says what is done",
        )
    differs(
        "log and exit code",
        "2>&1 | tee LOG",
        "the stage's log.txt",
        "the exit code of the pipeline is tee's: a training that failed counted as done",
    )
    differs(
        "pointer to the newest checkpoint",
        "asked of hosts named worker-0, worker-1, ...",
        "read and checked in the checkpoint folder",
        "no such hosts exist; a checkpoint that is not whole is passed over",
    )
    return found
