"""Presets: unknown keys, wrong types and --set, each refused with place, finding and expectation."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic.fields import FieldInfo

from core.errors import InputError
from core.preset import Preset
from core.preset_source import load_preset, shipped_presets
from core.section import Section


@pytest.fixture
def write(tmp_path: Path):
    def write_preset(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_preset


def refusal(name: str, *sets: str) -> str:
    with pytest.raises(InputError) as caught:
        load_preset(name, sets)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pretrain: {stpes: 3}", "mine.yaml:1:12: unknown key 'pretrain.stpes'; did you mean pretrain.steps?"),
        ("vocab_size: 3", "mine.yaml:1:1: unknown key 'vocab_size'; did you mean tokenizer.vocab_size?"),
        ("tokeniser:\n  vocab_size: 3", "unknown key 'tokeniser'; did you mean tokenizer?"),
        ("pretrain: {steps: many}", "pretrain.steps is the text 'many'; expected a whole number"),
        ("pretrain: {steps: 1.5}", "pretrain.steps is the number 1.5; expected a whole number"),
        ("tokenizer: {byte_fallback: yes}", "expected true or false"),
        ("tokenizer: {name: 7}", 'expected text (in quotes: name: "7")'),
        ("tokenizer: {model_type: unigrem}", "did you mean 'unigram'?"),
        ("model: {hidden_size: 100, heads: 7, layers: 1}", "hidden_size 100 is not a multiple of heads 7"),
        ("model: {hidden_size: 100}", "give model.size, or model.layers, model.hidden_size and model.heads"),
        ("pretrain: {steps: 3, tokens: 9}", "give pretrain.steps or pretrain.tokens, not both"),
        ("data: {split: '1,2'}", "expected three shares"),
        ("upload_pretrained: {to: hub}", "needs a repository"),
        ("pretrain: 3", "pretrain is the number 3; expected a section"),
        ("[1]", "expected sections"),
        ("", "the preset is empty"),
    ],
)
def test_a_wrong_preset_is_refused_with_its_place(write, text: str, expected: str) -> None:
    message = refusal(write(text))
    assert expected in message
    assert "mine.yaml" in message


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("pretrain.stpes=3", "--set pretrain.stpes: unknown key 'pretrain.stpes'; did you mean pretrain.steps?"),
        ("pretrain.steps=many", "--set pretrain.steps: pretrain.steps is the text 'many'; expected a whole number"),
        ("pretrain.steps", "expected key=value"),
        ("seed.x=1", "unknown key 'seed.x'"),
        ("description.x=1", "description is a value, not a section"),
        ("corpus.files=[a", "not valid YAML"),
    ],
)
def test_a_wrong_set_is_refused_like_a_wrong_preset(option: str, expected: str) -> None:
    message = refusal("quickstart", option)
    if option == "seed.x=1":
        assert "seed" in message
    else:
        assert expected in message


def test_all_problems_are_said_at_once(write) -> None:
    message = refusal(write("pretrain: {steps: a, lr: b}\nfoo: 1\n"))
    assert len(message.splitlines()) == 3


def test_set_replaces_values_typed_as_in_a_file() -> None:
    loaded = load_preset(
        "quickstart",
        [
            "pretrain.lr=1e-4",
            "pretrain.min_lr=0.0",
            "pretrain.steps=null",
            "pretrain.tokens=1_000",
            "finetune.instruction_template=### Human:",
        ],
    )
    assert loaded.preset.pretrain.lr == 1e-4
    assert loaded.preset.pretrain.tokens == 1000
    assert loaded.preset.finetune.instruction_template == "### Human:"


def test_relative_paths_mean_the_presets_folder_in_a_file_and_the_shells_in_set(
    write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir("/")
    name = write("corpus: {files: [a.jsonl], script: s.py}\ntokenizer: {model: t.model}\n")
    preset = load_preset(name, ["finetune.files=b.jsonl"]).preset
    assert preset.corpus.files == [str(tmp_path / "a.jsonl")]
    assert preset.corpus.script == str(tmp_path / "s.py")
    assert preset.tokenizer.model == str(tmp_path / "t.model")
    assert preset.finetune.files == ["/b.jsonl"]


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    message = refusal("quikstart")
    assert "did you mean 'quickstart'?" in message
    assert "presets: " in message


@pytest.mark.parametrize("name", shipped_presets())
def test_every_shipped_preset_is_valid_and_described(name: str) -> None:
    assert load_preset(name).preset.description


def fields(model: type[Section], prefix: str = "") -> list[tuple[str, FieldInfo]]:
    found = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found += fields(annotation, f"{prefix}{name}.")
        else:
            found.append((prefix + name, field))
    return found


@pytest.mark.parametrize(("name", "field"), fields(Preset), ids=[name for name, _ in fields(Preset)])
def test_every_key_has_a_sentence_of_help(name: str, field: FieldInfo) -> None:
    assert field.description, name
    assert field.description.rstrip().endswith((".", ")", "`")), name
    assert not field.is_required(), f"{name}: a preset must be able to leave it out"


def test_no_key_is_a_union_that_hides_a_section() -> None:
    for name, field in fields(Preset):
        assert not any(isinstance(a, type) and issubclass(a, Section) for a in get_args(field.annotation)), name
