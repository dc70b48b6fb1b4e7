"""The preset: one document that says everything about a run. Loading it, changing it with --set, checking it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from core.cluster.section import ClusterSection
from core.cluster.slurm_section import SlurmSection
from core.model import ModelSection
from core.section import Section
from core.stages.convert import ConvertSection
from core.stages.corpus import CorpusSection
from core.stages.data import DataSection
from core.stages.finetune import FinetuneSection
from core.stages.pretrain import PretrainSection
from core.stages.tokenizer import TokenizerSection
from core.stages.upload import UploadSection
from core.wandb_section import WandbSection


class Preset(Section):
    """Everything about a run, one section a stage."""

    description: str = ""
    """One sentence for the list of presets."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1234
    """Seed of the initial weights and of the order of the data; equal seeds give equal runs on a CPU."""
    cluster: ClusterSection = ClusterSection()
    """Where the stages run."""
    slurm: SlurmSection = SlurmSection()
    """The Slurm job of a submitted run."""
    corpus: CorpusSection = CorpusSection()
    """The text."""
    tokenizer: TokenizerSection = TokenizerSection()
    """The tokenizer."""
    data: DataSection = DataSection()
    """The token files."""
    model: ModelSection = ModelSection(size="125M")
    """The model's shape."""
    pretrain: PretrainSection = PretrainSection()
    """Pretraining."""
    convert: ConvertSection = ConvertSection()
    """Conversion to a Hugging Face folder."""
    upload_pretrained: UploadSection = UploadSection()
    """Publishing the pretrained model."""
    finetune: FinetuneSection = FinetuneSection()
    """Fine-tuning."""
    upload_finetuned: UploadSection = UploadSection()
    """Publishing the chat-tuned model."""
    wandb: WandbSection = WandbSection()
    """Weights & Biases."""
