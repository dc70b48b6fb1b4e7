"""The form is made from the sections: every key of a preset is in it once, with its help, default, kind and choices."""

from __future__ import annotations

import pytest

from core.preset import Preset
from core.preset_source import load_preset, set_text, shipped_presets
from tui.draft import Draft
from tui.form import _UNITS, STEPS, all_fields, fields_of, section_of, step_of


def test_every_key_of_the_preset_is_in_exactly_one_step() -> None:
    asked = [spec.key for step in STEPS for section in step.sections for spec in fields_of(section)]
    assert sorted(asked) == sorted(all_fields())
    assert len(asked) == len(set(asked))
    sections = {name for name, field in Preset.model_fields.items() if section_of(field)}
    assert {key.rpartition(".")[0] for key in asked} == sections | {""}


def test_every_unit_belongs_to_a_key_that_exists_and_is_a_number() -> None:
    for key in _UNITS:
        assert all_fields()[key].kind in ("whole", "number"), key


@pytest.mark.parametrize("key", all_fields())
def test_every_field_has_help_and_a_kind(key: str) -> None:
    spec = all_fields()[key]
    assert spec.help
    assert spec.expected()
    assert spec.kind != "value", "the form has no better way to ask for it than YAML"
    if spec.kind == "choice":
        assert spec.shown(spec.default) in spec.choices


@pytest.mark.parametrize("preset", shipped_presets())
def test_what_a_form_shows_can_be_typed_back(preset: str) -> None:
    before = load_preset(preset).preset
    draft = Draft.from_preset(preset)
    for key, spec in all_fields().items():
        assert draft.set(key, spec.typed(spec.shown(draft.value(key)))) is None, key
    assert draft.changes == {}
    assert draft.preset() == before


@pytest.mark.parametrize(
    ("key", "typed", "value"),
    [
        ("wandb.project", "7", "7"),
        ("wandb.project", "null", "null"),
        ("wandb.entity", "", None),
        ("wandb.tags", "a, 7 ,b c", ["a", "7", "b c"]),
        ("wandb.tags", "", []),
        ("wandb.tags", '["a, b"]', ["a, b"]),
        ("pretrain.tokens", "1_000", 1000),
        ("pretrain.steps", " 12 ", 12),
        ("pretrain.lr", "1", 1),
        ("data.append_eod", "false", False),
        ("pretrain.zero", "2", 2),
        ("pretrain.zero", "auto", "auto"),
        ("model.size", "", None),
        ("corpus.files", "/a b.jsonl, /二.jsonl", ["/a b.jsonl", "/二.jsonl"]),
        ("corpus.files", "/a.jsonl", ["/a.jsonl"]),
        ("finetune.instruction_template", "### 人間:", "### 人間:"),
        ("finetune.instruction_template", r'"\n"', "\n"),
    ],
)
def test_typed_text_becomes_the_value_that_was_meant(key: str, typed: str, value: object) -> None:
    draft = Draft.from_preset("quickstart")
    draft.set(key, all_fields()[key].typed(typed))
    assert draft.value(key) == value
    assert type(draft.value(key)) is type(value)


@pytest.mark.parametrize(
    ("key", "kind", "expected", "unit"),
    [
        ("pretrain.steps", "whole", "a whole number > 0", "steps"),
        ("pretrain.beta1", "number", "a number >= 0, < 1", ""),
        ("pretrain.zero", "choice", "auto | 0 | 1 | 2 | 3", ""),
        ("model.size", "choice", "125M | 350M | 760M | 1.3B | 2.7B | 6.7B | 13B | 175B", ""),
        ("corpus.files", "paths", "paths, separated by commas", ""),
        ("corpus.script", "path", "a path", ""),
        ("finetune.lora", "flag", "true or false", ""),
    ],
)
def test_kind_bounds_and_unit_are_read_from_the_type(key: str, kind: str, expected: str, unit: str) -> None:
    spec = all_fields()[key]
    assert (spec.kind, spec.expected(), spec.unit) == (kind, expected, unit)


@pytest.mark.parametrize(
    ("key", "step"),
    [
        ("pretrain.zero", "pretrain"),
        ("model", "model"),
        ("wandb.mode", "tracking"),
        ("seed", "environment"),
        ("x", None),
    ],
)
def test_a_key_is_found_in_its_step(key: str, step: str | None) -> None:
    found = step_of(key)
    assert (found.id if found else None) == step


def test_set_text_of_numbers_and_truth_values_is_yaml() -> None:
    assert [set_text(value) for value in (True, None, 1, 1e-5, [], ["a", "1"])] == [
        "true", "null", "1", "1e-05", "[]", '[a, "1"]',
    ]  # fmt: skip
