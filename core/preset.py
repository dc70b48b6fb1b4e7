"""The preset: one document that says everything about a run. Loading it, changing it with --set, checking it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from core.cluster.section import ClusterSection
from core.cluster.slurm_section import SlurmSection
from core.megatron.section import MegatronSection
from core.model import ModelSection
from core.section import Section
from core.stages.convert import ConvertSection
from core.stages.corpus import CorpusSection
from core.stages.data import DataSection
from core.stages.finetune import FinetuneSection
from core.stages.pretrain import PretrainSection, batch_and_rates
from core.stages.tokenizer import TokenizerSection
from core.stages.upload import UploadSection
from core.wandb_section import WandbSection


class Preset(Section):
    """Everything about a run, one section a stage."""

    description: str = ""
    """One sentence for the list of presets."""
    original: str = ""
    """The script of the original pipeline that this preset stands for, below its train/scripts folder."""
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
    megatron: MegatronSection = MegatronSection()
    """Pretraining by a Megatron-DeepSpeed checkout."""
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

    @model_validator(mode="after")
    def _rates_fit(self) -> Preset:
        rates = batch_and_rates(self)
        if rates.min_lr > rates.lr:
            raise ValueError(
                f"pretrain.min_lr {rates.min_lr:g} is above the learning rate of {self.model.size or 'the model'}, "
                f"{rates.lr:g}; set pretrain.lr too"
            )
        return self
