"""The arithmetic of the model's shape."""

from __future__ import annotations

import pydantic
import pytest

from core.model import NAMED_SIZES, ModelSection


def test_a_named_size_has_the_dimensions_of_the_original_table() -> None:
    shape = ModelSection(size="1.3B", family="gpt2").shape()
    assert (shape.layers, shape.hidden_size, shape.heads, shape.init_std) == (24, 2048, 16, 0.013)


def test_gpt_parameters_follow_the_formula_checked_against_a_real_log() -> None:
    # V'h + S h + L(12h^2+13h) + 2h; a real run with L12 h768 V'2048 S2048 printed 88,201,728 (seed-pipeline.md, 2.2)
    shape = ModelSection(size="125M", family="gpt2", sequence_length=2048).shape()
    assert shape.parameters(2048) == 88_201_728


@pytest.mark.parametrize("size", NAMED_SIZES)
def test_a_dimension_beside_a_size_replaces_the_tables(size: str) -> None:
    shape = ModelSection.model_validate({"size": size, "layers": 3}).shape()
    assert shape.layers == 3
    assert shape.hidden_size == NAMED_SIZES[size][1]


def test_flops_count_the_output_projection_but_not_the_input_embedding() -> None:
    shape = ModelSection(layers=2, hidden_size=64, heads=2, sequence_length=32).shape()
    n = shape.non_embedding_parameters() + 1000 * 64
    assert shape.flops_per_token(1000) == 6 * n + 12 * 2 * 64 * 32


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_size": 64, "heads": 6, "layers": 1}, "not a multiple of heads"),
        ({"hidden_size": 66, "heads": 6, "layers": 1}, "even number"),
        ({"hidden_size": 64, "heads": 4, "kv_heads": 3, "layers": 1}, "not a multiple of kv_heads"),
        ({"hidden_size": 64, "heads": 4, "kv_heads": 2, "layers": 1, "family": "gpt2"}, "llama family only"),
    ],
)
def test_dimensions_that_do_not_fit_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=words):
        ModelSection.model_validate(values)
