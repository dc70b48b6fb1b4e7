"""What goes with a model's size: batch and learning rates, unless the preset gives its own."""

from __future__ import annotations

import pytest

from core.model import NAMED_SIZES
from core.preset import Preset
from core.stages.pretrain import BatchAndRates, batch_and_rates

OWN_SHAPE = {"layers": 2, "hidden_size": 64, "heads": 2}


@pytest.mark.parametrize("size", NAMED_SIZES)
def test_a_named_size_brings_its_row(size: str) -> None:
    _, _, _, batch, lr, min_lr, _ = NAMED_SIZES[size]
    assert batch_and_rates(Preset.model_validate({"model": {"size": size}})) == BatchAndRates(batch, lr, min_lr)


def test_a_shape_of_ones_own_has_the_smallest_sizes_and_what_is_given_counts() -> None:
    assert batch_and_rates(Preset.model_validate({"model": OWN_SHAPE})) == BatchAndRates(256, 6e-4, 1e-6)
    given = {"model": {"size": "13B"}, "pretrain": {"global_batch": 8, "lr": 0.1, "min_lr": 0.0}}
    assert batch_and_rates(Preset.model_validate(given)) == BatchAndRates(8, 0.1, 0.0)


@pytest.mark.parametrize(
    ("pretrain", "message"),
    [
        ({"lr": 1e-7}, "min_lr 1e-06 is above lr 1e-07"),
        ({"min_lr": 1e-3}, "min_lr 0.001 is above the learning rate of 175B, 6e-05; set pretrain.lr too"),
    ],
)
def test_an_end_above_the_peak_is_refused_whichever_is_left_out(pretrain: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preset.model_validate({"model": {"size": "175B"}, "pretrain": pretrain})
