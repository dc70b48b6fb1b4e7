"""What is known of the original pipeline's eleven fine-tuning scripts beyond the settings that a preset holds.

The plan needs it for two things: to be equal to a script to the letter (`megatron.strict_original`), and to say what it does otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OriginalScript:
    """One script of step 4, known by its path below train/scripts."""

    nodes: int
    job_variable: Literal["", "JOB_ID", "SLURM_JOB_ID"] = ""
    """The variable that --master_port is made from; "" where there is no --master_port, which then is DeepSpeed's 29500."""
    length: Literal["an argument", "2048", ""] = "an argument"
    """--max_seq_length: an argument of the script, always 2048, or not given, which is train.py's 2048."""
    tag: bool = True
    """Whether the script takes --wandb_tag."""


def _step_4(folder: str, name: str) -> str:
    return f"step4_finetune_model/{folder}/dataset-openassistant/{name}.sh"


_NONE, _ZERO_2, _ZERO_3 = "launcher-none_zero-none", "launcher-deepspeed_zero-2", "launcher-deepspeed_zero-3"

ORIGINALS: dict[str, OriginalScript] = {
    _step_4("abci_node-1_gpu-1", _NONE): OriginalScript(1),
    _step_4("abci_node-2_gpu-16", _ZERO_2): OriginalScript(2, "JOB_ID"),
    _step_4("abci_node-2_gpu-16", _ZERO_3): OriginalScript(2, "JOB_ID"),
    _step_4("gcp_honban_node-2_gpu-16", _ZERO_2): OriginalScript(2, "SLURM_JOB_ID"),
    _step_4("gcp_honban_node-2_gpu-16", _ZERO_3): OriginalScript(2, "SLURM_JOB_ID"),
    _step_4("gcp_play_node-1_gpu", _NONE): OriginalScript(1, length="", tag=False),
    _step_4("gcp_play_node-1_gpu-2", _NONE): OriginalScript(1),
    _step_4("gcp_play_node-2_gpu", _ZERO_2): OriginalScript(2, length="2048", tag=False),
    _step_4("gcp_play_node-2_gpu", _ZERO_3): OriginalScript(2, length="2048", tag=False),
    _step_4("gcp_play_node-2_gpu-16", _ZERO_2): OriginalScript(2, "SLURM_JOB_ID"),
    _step_4("gcp_play_node-2_gpu-16", _ZERO_3): OriginalScript(2, "SLURM_JOB_ID"),
}
