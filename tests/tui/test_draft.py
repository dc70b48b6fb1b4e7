"""Screen, preset file and command line are one plan: each is made from the others."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import InputError
from core.facts import Facts, facts_for
from core.plan import make_plan
from core.preset_source import load_preset, set_text, shipped_presets
from core.runs.directory import RunDirectory
from tui.draft import Draft
from tui.form import all_fields

FACTS = Facts(python="/py/bin/python", host="head", cores=8, memory=64 << 30, disk_free=1 << 40, path="/usr/bin")
CHANGES = {
    "pretrain.lr": "1e-3",
    "tokenizer.user_defined_symbols": r'["<s>", "</s>", "<pad>", "<EOD>", "\n"]',
    "finetune.instruction_template": "### Human:",
    "finetune.files": "[chat one.jsonl, '二.jsonl']",
    "corpus.files": "mine.jsonl",
    "wandb.project": '"7"',
    "upload_pretrained.test_prompt": r"""  "It's \"so\": $HOME\n" """.strip(),
    "data.append_eod": "false",
}


OF_OUR_OWN = {"pretrain.steps": "12", "model.size": "null"}
OF_THE_ORIGINAL = {
    "cluster.processes": "16",
    "pretrain.global_batch": "512",
    "megatron.checkout": "Megatron-DeepSpeed",
    "megatron.data_folders": "[]",
    "finetune.checkout": "llm-jp-sft",
}
"""Its presets name sizes and tokens, and no checkout."""


def plan_of_command(line: str, runs_dir: Path) -> dict[str, Any]:
    """The plan that the command line makes, through the options as `llm-wizard run` reads them."""
    from core.cli import _build_parser

    options = _build_parser().parse_args(shlex.split(line)[1:])
    loaded = load_preset(options.preset, options.set)
    run = RunDirectory(runs_dir / (options.name or loaded.name))
    return make_plan(loaded.preset, loaded.name, FACTS, run).document()


def plan_of_file(path: Path, runs_dir: Path, name: str) -> dict[str, Any]:
    loaded = load_preset(str(path))
    return make_plan(loaded.preset, loaded.name, FACTS, RunDirectory(runs_dir / name)).document()


@pytest.mark.parametrize("preset", shipped_presets())
def test_screen_file_and_command_line_make_the_same_plan(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draft = Draft.from_preset(preset)
    draft.name = "tried"
    changes = CHANGES | (OF_THE_ORIGINAL if load_preset(preset).preset.original else OF_OUR_OWN)
    for key, text in changes.items():
        assert draft.set(key, text) is None, key
    shown = draft.plan(FACTS, tmp_path).document()
    assert shown["preset"]["pretrain"]["lr"] == 1e-3
    assert shown["preset"]["finetune"]["files"] == [str(tmp_path / "chat one.jsonl"), str(tmp_path / "二.jsonl")]
    assert plan_of_command(draft.command_line(), tmp_path) == shown
    path = tmp_path / "elsewhere" / f"{preset}.yaml"
    path.parent.mkdir()
    draft.save(path)
    assert plan_of_file(path, tmp_path, "tried") == shown


def test_the_shell_gets_the_same_arguments_that_the_screen_holds(tmp_path: Path) -> None:
    draft = Draft.from_preset("quickstart")
    for key, text in CHANGES.items():
        draft.set(key, text)
    line = draft.command_line().replace("llm-wizard", "printf '%s\\0'", 1)
    seen = subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    assert seen == shlex.split(draft.command_line())[1:]


def test_a_change_back_to_the_presets_value_leaves_no_trace() -> None:
    draft = Draft.from_preset("quickstart")
    before = draft.command_line()
    for key, wrong, right in (("pretrain.steps", "many", "300"), ("pretrain.lr", "1", "0.002"), ("seed", "5", "1234")):
        draft.set(key, wrong)
        assert key in draft.command_line()
        draft.set(key, right)
        assert draft.command_line() == before == "llm-wizard run quickstart"
    draft.set("data.split", "1,2")
    draft.reset("data.split")
    assert draft.command_line() == before


def test_a_size_that_only_the_missing_section_had_is_not_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text("seed: 7\n")
    draft = Draft.from_preset(str(path))
    assert draft.value("model.size") == "125M"
    assert draft.set("model.layers", "6") is not None  # as `--set model.layers=6` alone
    assert draft.set("model.size", "125M") is None
    assert draft.preset().model.layers == 6


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("pretrain.steps", "many", "expected a whole number"),
        ("pretrain.steps", "0", "greater than"),
        ("pretrain.steps", "1e999", "too large"),
        ("corpus.files", "[a", "not valid YAML"),
        ("model.heads", "7", "is not a multiple of heads 7"),
        ("model.size", "126M", "did you mean '125M'?"),
        ("pretrain.stpes", "3", "did you mean pretrain.steps?"),
    ],
)
def test_a_wrong_value_is_refused_as_set_refuses_it_and_kept(key: str, text: str, words: str) -> None:
    draft = Draft.from_preset("quickstart")
    problem = draft.set(key, text)
    assert problem is not None
    assert words in problem.text
    assert draft.changes[key] == text
    assert str(problem) in map(str, draft.problems())
    with pytest.raises(InputError) as refused:
        draft.plan(FACTS, Path("/runs"))
    assert words in str(refused.value)
    with pytest.raises(InputError) as on_command_line:
        load_preset("quickstart", [f"{key}={text}"])
    assert words in str(on_command_line.value)


def test_comments_order_and_spelling_of_the_preset_stay_in_the_file(tmp_path: Path) -> None:
    draft = Draft.from_preset("quickstart")
    draft.set("pretrain.steps", "7")
    draft.set("pretrain.tokens", "null")
    draft.set("pretrain.schedule", "wsd")
    old, new = draft.text.splitlines(), draft.yaml(draft.folder).splitlines()
    assert [line for line in new if line not in old] == ["  steps: 7", "  schedule: wsd"]
    assert [line for line in old if line not in new] == ["  steps: 300"]
    assert new.index("  schedule: wsd") < new.index("  save_interval: 100")


def test_paths_in_the_saved_file_are_relative_where_they_can_move_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draft = Draft.from_preset("quickstart")
    draft.set("corpus.files", "[data/a.jsonl, /far/b.jsonl]")
    draft.save(tmp_path / "mine.yaml")
    text = (tmp_path / "mine.yaml").read_text()
    assert "files: [data/a.jsonl, /far/b.jsonl]" in text
    assert "script: /" in text
    assert load_preset("mine.yaml").preset.corpus.files == [str(tmp_path / "data/a.jsonl"), "/far/b.jsonl"]


def test_a_preset_with_wrong_values_opens_and_shows_them(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("pretrain:\n  steps: many\n  stpes: 3\n")
    draft = Draft.from_preset(str(path))
    assert [(problem.key, problem.place.line) for problem in draft.problems()] == [
        ("pretrain.steps", 2),
        ("pretrain.stpes", 3),
    ]
    assert draft.value("pretrain.steps") == "many"
    assert draft.set("pretrain.steps", "3") is None


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "a: &x 1"])
def test_a_preset_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"none\.yaml"):
        Draft.from_preset(str(path))


def test_an_edited_text_becomes_the_values_the_changes_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draft = Draft.from_preset("quickstart")
    draft.set("pretrain.lr", "1e-3")
    edited = draft.yaml().replace("steps: 300", "steps: 301   # a thought") + "data: {prefix: tokens}\n"
    edited = edited.replace("  warmup_steps: 20\n", "").replace("description: ", "description: My ")
    draft.take_text(edited, "editor")
    assert "# a thought" in draft.yaml()
    assert draft.changes == {
        "description": set_text("My " + Draft.from_preset("quickstart").value("description")),
        "data.prefix": str(tmp_path / "tokens"),
        "pretrain.steps": "301",
        "pretrain.lr": "0.001",
        "pretrain.warmup_steps": "null",
    }
    assert plan_of_command(draft.command_line(), tmp_path) == draft.plan(FACTS, tmp_path).document()


def test_a_wrong_edited_text_is_refused_with_its_lines_and_changes_nothing() -> None:
    draft = Draft.from_preset("quickstart")
    draft.set("pretrain.lr", "1e-3")
    before = (draft.yaml(), dict(draft.changes))
    for text, words in (("a: [", "not valid YAML"), ("seed: x\nfoo: 1\n", "editor:2:1: unknown key 'foo'")):
        with pytest.raises(InputError) as refused:
            draft.take_text(text, "editor")
        assert words in str(refused.value)
        assert (draft.yaml(), draft.changes) == before


def test_a_whole_section_taken_out_or_put_in_by_the_editor(tmp_path: Path) -> None:
    draft = Draft.from_preset("quickstart")
    draft.take_text("seed: 3\n", "editor")
    assert draft.preset().model.size == "125M"
    assert plan_of_command(draft.command_line(), tmp_path) == draft.plan(FACTS, tmp_path).document()
    bare = tmp_path / "bare.yaml"
    bare.write_text("seed: 3\n")
    draft = Draft.from_preset(str(bare))
    draft.take_text("model: {size: 125M, layers: 6}\n", "editor")
    assert draft.preset() == load_preset_text(tmp_path, "model: {size: 125M, layers: 6}\n")
    assert plan_of_command(draft.command_line(), tmp_path) == draft.plan(FACTS, tmp_path).document()


def load_preset_text(folder: Path, text: str) -> Any:
    (folder / "text.yaml").write_text(text)
    return load_preset(str(folder / "text.yaml")).preset


def test_the_runs_name_is_the_presets_and_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "my preset (2).yaml"
    path.write_text("seed: 1\n")
    draft = Draft.from_preset(str(path))
    assert draft.name == "my-preset-2"
    assert "--name my-preset-2" in draft.command_line()
    draft.name = "../x"
    with pytest.raises(InputError, match="not usable"):
        draft.plan(FACTS, tmp_path)


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        Draft.from_preset("quickstart").save(tmp_path / "no" / "folder.yaml")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
AWKWARD = st.sampled_from(
    ["", "null", "1_000", "0x10", "2024-01-01", "~", "yes", "1.", ".5", "- a", "a: b", "#", "<<", "="]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=TEXT.filter(bool) | AWKWARD.filter(bool),
    symbols=st.lists(TEXT.filter(bool) | AWKWARD.filter(bool), max_size=3, unique=True),
    entity=st.none() | TEXT | AWKWARD,
    lr=st.floats(1e-30, 1e30),
)
def test_any_value_survives_form_command_line_and_file(
    prompt: str, symbols: list[str], entity: str | None, lr: float, tmp_path: Path
) -> None:
    values = {
        "upload_pretrained.test_prompt": prompt,
        "wandb.tags": symbols,
        "wandb.entity": entity,
        "pretrain.lr": lr,
        "finetune.response_template": prompt,
    }
    draft = Draft.from_preset("quickstart")
    draft.set("pretrain.min_lr", "0")
    for key, value in values.items():
        spec = all_fields()[key]
        assert draft.set(key, spec.typed(spec.shown(value))) is None, (key, spec.shown(value))
        assert draft.value(key) == value
    preset = draft.preset()
    argv = shlex.split(draft.command_line())
    assert load_preset("quickstart", argv[argv.index("run") + 3 :: 2]).preset == preset
    draft.save(tmp_path / "any.yaml")
    assert load_preset(str(tmp_path / "any.yaml")).preset == preset


def test_facts_are_gathered_for_the_drafts_own_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("text")
    draft = Draft.from_preset("quickstart")
    draft.set("corpus.files", str(tmp_path / "mine.txt"))
    assert facts_for(draft.preset(), tmp_path).sizes == {str(tmp_path / "mine.txt"): 4}


def test_draft_and_form_need_no_screen() -> None:
    code = "import sys, tui.draft, tui.preset_text; sys.exit('textual' in sys.modules or 'rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
