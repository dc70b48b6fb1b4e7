"""What is known of the original pipeline's sixteen pretraining scripts beyond the settings that a preset holds.

The plan needs it for two things: to be equal to a script to the letter (`megatron.strict_original`), and to say what it does otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OriginalScript:
    """One pretraining script of the original, known by its path below train/scripts."""

    scheduler: Literal["SGE", "Slurm"]
    node_count: Literal["NHOSTS", "SLURM_JOB_NUM_NODES"]
    """The variable that the script counts its nodes by."""
    port: bool = True
    """Whether the script makes a port from its job's number and takes --wandb_tag; the older ones do neither, and meet at 29500."""
    arxiv: bool = True
    """Whether the data is <checkout>/dataset/arxiv_text_document, else what lies in folders."""
    fp16_flag: bool = True
    """Whether --fp16 is among the arguments; the DeepSpeed configuration turns it on in any case."""
    said: str = ""
    """What the script's name says, where its settings are others."""
    done: str = ""
    """What the settings are then."""

    @property
    def job_variable(self) -> str:
        return "JOB_ID" if self.scheduler == "SGE" else "SLURM_JOB_ID"

    @property
    def node_count_is_unset(self) -> bool:
        """NHOSTS belongs to ABCI's scheduler: under Slurm it is empty, and then so is the script's number of GPUs."""
        return self.node_count == "NHOSTS" and self.scheduler == "Slurm"


def _abci(port: bool = True) -> OriginalScript:
    return OriginalScript("SGE", "NHOSTS", port)


def _gcp(port: bool = True, said: str = "", done: str = "") -> OriginalScript:
    return OriginalScript("Slurm", "NHOSTS", port, said=said, done=done)


def _folders(said: str, done: str, fp16_flag: bool = True) -> OriginalScript:
    return OriginalScript("Slurm", "SLURM_JOB_NUM_NODES", arxiv=False, fp16_flag=fp16_flag, said=said, done=done)


_SMALL = "dataset-arxiv_tokenizer-sentencepiece_model-gpt_0.125B/"
_XL = "dataset-arxiv_tokenizer-sentencepiece_model-gpt_1.3B/"
_BOOK = "dataset-book_wikija_tokenizer-sentencepiece_model-gpt_1.3B/"
_MC4 = "dataset-mc4ja_wikija-tokenizer-sentencepiece_gpt_neox_xb_gpt_0.125B/"
_END = "_flashattn2-on.sh"
_SBATCH = "_flashattn2-on_sbatch.sh"
_ALL_GPUS = "zero_stage=1 and all GPUs of both nodes"

ORIGINALS: dict[str, OriginalScript] = {
    f"step2_pretrain_model/{path}": script
    for path, script in {
        f"abci_node-1_gpu-1/{_SMALL}zero-0_dp-1_pp-1_tp-1{_END}": _abci(),
        f"abci_node-2_gpu-16/{_SMALL}zero-1_dp-16_pp-1_tp-1{_END}": _abci(),
        f"abci_node-2_gpu-16/{_SMALL}zero-1_dp-1_pp-4_tp-4{_END}": _abci(port=False),
        f"abci_node-2_gpu-16/{_SMALL}zero-1_dp-4_pp-2_tp-2{_END}": _abci(),
        f"abci_node-2_gpu-16/{_SMALL}zero-1_dp-8_pp-1_tp-2{_END}": _abci(port=False),
        f"abci_node-2_gpu-16/{_SMALL}zero-1_dp-8_pp-2_tp-1{_END}": _abci(),
        f"abci_node-2_gpu-16/{_XL}zero-1_dp-4_pp-2_tp-2{_END}": _abci(port=False),
        f"gcp_honban_node-2_gpu-16/{_BOOK}zero-0_dp-16_pp-1_tp-1_precision-fp32{_END}": _folders(
            "precision-fp32", "fp16, by the DeepSpeed configuration", fp16_flag=False
        ),
        f"gcp_node-1_gpu/{_SMALL}zero-0_dp-1_pp-1_tp-1{_END}": _gcp(
            port=False, said="dp-1", done="all GPUs of the node"
        ),
        f"gcp_node-2_gpu/{_SMALL}zero-0_dp-1_pp-1_tp-1{_END}": _gcp(port=False, said="zero-0 and dp-1", done=_ALL_GPUS),
        f"gcp_node-2_gpu/{_SMALL}zero-0_dp-1_pp-1_tp-1{_SBATCH}": _gcp(
            port=False, said="zero-0 and dp-1", done=_ALL_GPUS
        ),
        f"gcp_play_node-1_gpu-2/{_SMALL}zero-0_dp-2_pp-1_tp-1{_END}": _gcp(),
        f"gcp_play_node-1_gpu-2/{_MC4}train.sh": _folders("gpt_neox_xb", "GPT of 0.125B"),
        f"gcp_play_node-1_gpu-2/{_MC4}train_sbatch.sh": _folders("gpt_neox_xb", "GPT of 0.125B"),
        f"gcp_play_node-2_gpu-16/{_SMALL}zero-0_dp-16_pp-1_tp-1{_END}": _gcp(said="zero-0", done="zero_stage=1"),
        f"gcp_play_node-2_gpu-16/{_SMALL}zero-0_dp-16_pp-1_tp-1{_SBATCH}": _gcp(said="zero-0", done="zero_stage=1"),
    }.items()
}
