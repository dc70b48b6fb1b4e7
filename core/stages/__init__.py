"""The stages, in the order in which they run."""

from core.stages import convert, corpus, data, environment, finetune, pretrain, tokenizer, upload
from core.stages.base import Stage

STAGES: tuple[Stage, ...] = (
    environment.STAGE,
    corpus.STAGE,
    tokenizer.STAGE,
    data.STAGE,
    pretrain.STAGE,
    convert.STAGE,
    upload.UPLOAD_PRETRAINED,
    finetune.STAGE,
    upload.UPLOAD_FINETUNED,
)
BY_ID = {stage.id: stage for stage in STAGES}
