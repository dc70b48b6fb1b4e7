"""The gate's comparison: what a converted folder computes against what its checkpoint computes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.errors import StageError

LOSS_TOLERANCE = 0.01
"""Relative difference allowed between the folder's validation loss and the trainer's (which is bf16 on a GPU)."""
VALIDATION_FLOPS = 2e15
"""Work that the validation may cost on a CPU; of a large model only a part of the validation is compared."""


@torch.no_grad()
def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Logits [B, T, V] in fp32."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.float()


def compare_logits(model: PreTrainedModel, tokens: Tensor, expected: Tensor, tolerance: float) -> float:
    """Largest difference of the folder's logits from the checkpoint's, relative to the largest logit.

    Raises:
        StageError: it is above the tolerance, the most likely token is another one somewhere, or the checkpoint's own logits are not finite.
    """
    if not expected.isfinite().all():
        raise StageError(
            "the checkpoint itself computes logits that are not finite: its training had diverged",
            "name an earlier checkpoint with --set convert.checkpoint=...",
        )
    found = logits_of(model, tokens)
    if found.shape != expected.shape:
        raise StageError(
            f"the folder's logits have shape {tuple(found.shape)}, the checkpoint's {tuple(expected.shape)}"
        )
    largest = expected.abs().max()
    difference = ((found - expected).abs().max() / largest).item()
    # Between two tokens that are equally likely to within the tolerance, rounding decides.
    chosen = expected.gather(-1, found.argmax(-1, keepdim=True)).squeeze(-1)
    other = int((expected.max(-1).values - chosen > 2 * tolerance * largest).sum())
    print(
        f"logits: largest difference {difference:.2e} of the largest logit; {other} of {tokens.numel()} argmax differ"
    )
    if not difference <= tolerance or other:
        raise StageError(
            f"the converted folder does not compute what the checkpoint does: its logits differ by {difference:.3g} of "
            f"the largest (allowed: {tolerance:g}) and {other} of {tokens.numel()} most likely tokens are others",
            "nothing was written; this is a defect of the conversion or of the installed transformers",
        )
    return difference
