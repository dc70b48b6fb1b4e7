"""Small models of each kind, trained once, and the folder that the conversion makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_tokenizer import Converted, train_small

from core.text.chat import chat_template
from core.tokenizer import convert
from core.tokenizer.model_file import ModelFile, parse_model
from core.tokenizer.special import find_special


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """`small_model(model_type="bpe")`: the .model."""
    made: dict[str, bytes] = {}

    def get(**options: object) -> bytes:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = train_small(tmp_path_factory.mktemp("training"), **options)
        return made[key]

    return get


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory, small_model: Callable[..., bytes]) -> Converted:
    """`converted(model_type="bpe")` or `converted(data)`: the saved folder, and the model that it is made from."""

    def make(data: bytes | None = None, **options: object) -> tuple[Path, ModelFile]:
        data = data if data is not None else small_model(**options)
        folder = tmp_path_factory.mktemp("huggingface")
        model = parse_model(data, "test")
        special = find_special(model, "test")
        template = chat_template("### Human:", "### Assistant:")
        convert.save(convert.build(model, special, "test"), special, folder, data, 128, template)
        return folder, model

    return make
