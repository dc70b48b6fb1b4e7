"""Fine-tuning, as the real stage process: what is learnt, what comes out, and what a stop or a damaged checkpoint costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_stage import fork_stage
from safetensors.torch import load_file
from tiny_model import make_model_folder, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import MakeRun, RunStage
from core.errors import InputError
from core.files import read_json, sha256
from core.runs.directory import RunDirectory
from core.stages.entry import load_context
from core.text.conversations import Turn
from core.train import sft
from core.train.sft_arguments import lora_config, total_steps, training_arguments
from core.train.sft_examples import Templates, check_tokenizer, encode

HUMAN, ASSISTANT = "### Human:", "### Assistant:"
TEMPLATES = Templates(HUMAN, ASSISTANT)
TWO_TURNS = (Turn("What is 日本?", "A  country.\nIn Asia."), Turn("Sure?", "Yes."))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: make_model_folder(folder / family, family) for family in ("llama", "gpt2")}


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 conversations of two turns."""
    path = tmp_path_factory.mktemp("data") / "chat.jsonl"
    text = "### Human: What is {0} plus 1?### Assistant: It is {1}.### Human: Sure?### Assistant: Yes."
    path.write_text("".join(json.dumps({"text": text.format(i, i + 1)}) + "\n" for i in range(40)))
    return path


def preset(model: Path, files: Path, **section: Any) -> dict[str, Any]:
    wanted = {"steps": 8, "lr": 1e-3, "micro_batch": 4, "valid_share": 0.1} | section
    return {"cluster": {"threads": 1}, "finetune": {"model": str(model), "files": [str(files)], **wanted}}


def records(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics("finetune").read_text().splitlines()]


def losses(run: RunDirectory) -> dict[int, tuple[float, float]]:
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in records(run) if "loss" in r}


def tune(run: RunDirectory) -> tuple[int, str]:
    """Run the stage; its exit code and output."""
    stage = fork_stage(run, "finetune")
    return stage.wait(), stage.output


# --- what is learnt


def learnt_texts(ids: list[int], marks: list[int]) -> list[str]:
    """The decoded stretches of tokens that are learnt."""
    tokenizer, texts, current = make_tokenizer(), [], []
    for token, mark in zip([*ids, 0], [*marks, 0], strict=True):
        if mark:
            current.append(token)
        elif current:
            texts.append(tokenizer.decode(current))
            current = []
    return texts


def test_every_answer_of_a_conversation_is_learnt_with_its_end_and_nothing_else() -> None:
    examples = encode([TWO_TURNS], make_tokenizer(), TEMPLATES, 1000)
    assert learnt_texts(examples.input_ids[0], examples.learnt[0]) == ["A  country.\nIn Asia.</s>", "Yes.</s>"]


def test_with_the_projects_own_tokenizer_the_same_tokens_are_learnt(
    tmp_path: Path, make_run: MakeRun, run_stage: RunStage
) -> None:
    lines = [f"line {i}: What is {i} plus 1, and is 日本 a country? It is {i + 1}." for i in range(400)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    settings = {"vocab_size": 300, "held_out_lines": 20, "num_threads": 1}
    run = make_run({"corpus": {"files": [str(tmp_path / "text.jsonl")]}, "tokenizer": settings})
    done = run_stage(run, "tokenizer")
    assert done.returncode == 0, done.stdout
    tokenizer = AutoTokenizer.from_pretrained(run.huggingface_tokenizer)
    assert check_tokenizer(tokenizer, 300, "m") == "</s>"
    examples = encode([TWO_TURNS], tokenizer, TEMPLATES, 1000)
    learnt = [i for i, mark in zip(examples.input_ids[0], examples.learnt[0], strict=True) if mark]
    assert tokenizer.decode(learnt) == "A  country.\nIn Asia.</s> Yes.</s>"
    messages = [{"role": "user", "content": TWO_TURNS[0].question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert examples.input_ids[0][: len(prompt)] == prompt
    assert not any(examples.learnt[0][: len(prompt)])


def test_the_prompt_at_use_is_the_beginning_of_what_was_trained_on() -> None:
    tokenizer = make_tokenizer()
    ids = encode([TWO_TURNS], tokenizer, TEMPLATES, 1000).input_ids[0]
    messages = [{"role": "user", "content": TWO_TURNS[0].question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids[: len(prompt)] == prompt


def test_a_long_conversation_is_cut_and_one_without_an_answer_left_is_counted_as_lost() -> None:
    tokenizer = make_tokenizer()
    whole = encode([TWO_TURNS], tokenizer, TEMPLATES, 1000).input_ids[0]
    first_answer = next(i for i, mark in enumerate(encode([TWO_TURNS], tokenizer, TEMPLATES, 1000).learnt[0]) if mark)
    fits, cut, lost = (
        encode([TWO_TURNS], tokenizer, TEMPLATES, n) for n in (len(whole), first_answer + 2, first_answer)
    )
    assert (fits.cut, fits.lost, len(fits.input_ids)) == (0, 0, 1)
    assert (cut.cut, cut.lost, cut.learnt[0].count(1)) == (1, 0, 2)
    assert (lost.cut, lost.lost, lost.input_ids) == (0, 1, [])


@pytest.mark.parametrize("lora", [False, True])
def test_the_labels_of_real_batches_decode_to_the_answers(
    models: dict[str, Path], conversations: Path, make_run: MakeRun, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from trl import SFTTrainer

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = make_run(preset(models["llama"], conversations, device="cpu", lora=lora))
    context = load_context(run, "finetune")
    found = sft.read_conversations([str(conversations)], HUMAN, ASSISTANT)
    tokenizer = AutoTokenizer.from_pretrained(models["llama"])
    data = sft.prepare(found, tokenizer, TEMPLATES, 128, 0.1, seed=0)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(models["llama"]),
        args=training_arguments(context, run.stage("finetune") / "checkpoints", 8),
        train_dataset=datasets.Dataset.from_dict(data.train.columns()),
        processing_class=tokenizer,
        peft_config=lora_config(context.preset.finetune, "llama") if lora else None,
    )
    sft.check_labels(trainer, data.train)
    seen = 0
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            answers = learnt_texts(ids, [int(label != -100) for label in labels])
            text = tokenizer.decode(ids, skip_special_tokens=False)
            number = int(re.search(r"What is (\d+) plus", text)[1])
            assert answers == [f"It is {number + 1}.</s>", "Yes.</s>"]
            assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
            seen += 1
    assert seen == len(data.train.input_ids) == 36


# --- what comes out


def test_the_chat_model_answers_as_it_was_taught_in_a_process_without_this_project(
    models: dict[str, Path], tmp_path: Path, make_run: MakeRun
) -> None:
    chat = tmp_path / "chat.jsonl"
    turns = [
        ("### 質問: What does the function do?### 回答: It returns the sum.", 1),
        ("### 質問: Who?### 回答: A model.", 2),
    ]
    chat.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in turns * 4) + "nonsense\n")
    section = {"instruction_template": "### 質問:", "response_template": "### 回答:", "steps": 60, "lr": 1e-2}
    run = make_run(preset(models["llama"], chat, **section))
    code, output = tune(run)
    assert code == 0, output
    metrics = read_json(run.result("finetune"))["metrics"]
    assert (metrics["examples"], metrics["valid_examples"], metrics["rejected"]) == (7, 1, 1)
    assert metrics["val_loss"] < 0.2 * metrics["val_loss_first"]
    assert "rejected: chat.jsonl line 9: no valid JSON" in output
    assert re.search(r"asked: .*\nanswered: (It returns the sum\.|A model\.)\n", output)
    ask = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        "t, m = T.from_pretrained(sys.argv[1]), M.from_pretrained(sys.argv[1])\n"
        "i = t.apply_chat_template([{'role': 'user', 'content': 'Who?'}], add_generation_prompt=True, return_dict=True,"
        " return_tensors='pt')\n"
        "o = m.generate(**i, max_new_tokens=40)\n"
        "print('ANSWER', repr(t.decode(o[0, i['input_ids'].shape[1]:])), 'core' in sys.modules)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    asked = subprocess.run(
        [sys.executable, "-c", ask, run.finetuned], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "ANSWER 'A model.</s>' False" in asked.stdout, asked.stderr


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_are_merged_and_the_folder_keeps_its_shape(
    models: dict[str, Path], conversations: Path, make_run: MakeRun, family: str
) -> None:
    run = make_run(
        preset(models[family], conversations, lora=True, lora_rank=4, lr=1e-2) | {"wandb": {"mode": "offline"}}
    )
    code, output = tune(run)
    assert code == 0, output
    before = load_file(models[family] / "model.safetensors")
    after = load_file(run.finetuned / "model.safetensors")
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(lora_config(load_context(run, "finetune").preset.finetune, family).target_modules)
    for name in ("config.json", "generation_config.json"):
        assert read_json(run.finetuned / name) == read_json(models[family] / name)
    assert not [p.name for p in run.finetuned.iterdir() if "adapter" in p.name or p.suffix in {".bin", ".pt"}]
    wandb_file = next(run.stage("finetune").glob("wandb/offline-run-*/run-*.wandb"))
    assert f"finetune_{family}_".encode() in wandb_file.read_bytes()


def test_metrics_have_the_designs_names(models: dict[str, Path], conversations: Path, make_run: MakeRun) -> None:
    run = make_run(preset(models["llama"], conversations, steps=5, log_interval=2))
    assert tune(run)[0] == 0
    trained = [r for r in records(run) if "loss" in r]
    assert [r["step"] for r in trained] == [2, 4, 5]
    names = {"time", "step", "total", "unit", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "step_ms"}
    assert all(set(r) == names and r["total"] == 5 for r in trained)
    valid = [r["step"] for r in records(run) if "val_loss" in r]
    assert (valid[0], valid[-1]) == (0, 5)
    assert sorted(p.name for p in run.stage("finetune").iterdir()) == ["metrics.jsonl", "result.json"]


# --- stopping and going on


@pytest.fixture(scope="module")
def long_section() -> dict[str, Any]:
    return {"steps": 90, "micro_batch": 8, "save_interval": 20, "lora": True, "lora_dropout": 0.1}


@pytest.fixture
def stop_midway(
    make_run: MakeRun, models: dict[str, Path], conversations: Path, long_section: dict[str, Any]
) -> RunDirectory:
    """A run that was stopped by SIGTERM after its second checkpoint or so."""
    run = make_run(preset(models["llama"], conversations, **long_section), "stopped")
    stage = fork_stage(run, "finetune")
    try:
        deadline = time.monotonic() + 120
        while not (run.metrics("finetune").exists() and len(losses(run)) >= 45):
            assert stage.process.is_alive(), stage.output
            assert time.monotonic() < deadline
            time.sleep(0.01)
        stage.process.terminate()
        assert stage.wait() == 130, stage.output
    finally:
        stage.process.kill()
    assert "stopped on request" in stage.output
    return run


@pytest.fixture
def uninterrupted(
    make_run: MakeRun, models: dict[str, Path], conversations: Path, long_section: dict[str, Any]
) -> RunDirectory:
    run = make_run(preset(models["llama"], conversations, **long_section), "whole")
    code, output = tune(run)
    assert code == 0, output
    return run


def test_a_stop_and_a_damaged_checkpoint_change_no_loss_and_no_weight(
    stop_midway: RunDirectory, uninterrupted: RunDirectory
) -> None:
    run, folder = stop_midway, stop_midway.stage("finetune") / "checkpoints"
    steps = sorted(int(path.name[5:]) for path in folder.glob("step-*"))
    stopped_at = max(losses(run))
    assert len(steps) == 2
    assert steps[-1] == stopped_at < 90
    assert not run.finetuned.exists()

    newest = folder / f"step-{steps[-1]}" / "adapter_model.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    shutil.copytree(
        folder / f"step-{steps[0]}", folder / "checkpoint-89"
    )  # as a kill in the middle of a save leaves it
    code, output = tune(run)
    assert code == 0, output
    assert "changed since it was written" in output
    assert min(step for step in losses(run) if step > steps[0]) == steps[0] + 1
    assert losses(run) == losses(uninterrupted)
    assert sha256(run.finetuned / "model.safetensors") == sha256(uninterrupted.finetuned / "model.safetensors")
    ends = [read_json(r.result("finetune"))["metrics"] for r in (run, uninterrupted)]
    assert ends[0] == ends[1]
    assert not folder.exists()


def test_a_checkpoint_of_other_settings_is_not_resumed_from(
    stop_midway: RunDirectory, models: dict[str, Path], conversations: Path, make_run: MakeRun
) -> None:
    other = make_run(preset(models["llama"], conversations, lora=True, steps=3), "other")
    shutil.copytree(stop_midway.stage("finetune") / "checkpoints", other.stage("finetune") / "checkpoints")
    code, output = tune(other)
    assert code == 0, output
    assert "was made with other settings, conversations or weights; starting anew" in output
    assert min(losses(other)) == 1


# --- several processes


@pytest.mark.slow
def test_data_parallel_and_zero_3_train_alike_and_save_whole_weights(
    models: dict[str, Path], conversations: Path, make_run: MakeRun, run_stage: RunStage
) -> None:
    weights, curves = [], []
    for zero in (0, 3):
        settings = preset(models["llama"], conversations, zero=zero) | {"cluster": {"processes": 2, "threads": 1}}
        run = make_run(settings, f"zero{zero}")
        done = run_stage(run, "finetune")
        assert done.returncode == 0, done.stdout
        weights.append(load_file(run.finetuned / "model.safetensors"))
        curves.append([loss for loss, _ in losses(run).values()])
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-4, rtol=0)


# --- what a user can do wrong


def test_a_loss_that_is_no_number_fails_the_stage(
    models: dict[str, Path], conversations: Path, make_run: MakeRun
) -> None:
    run = make_run(preset(models["llama"], conversations, lr=1e30, warmup_share=0.0))
    code, output = tune(run)
    assert code == 2, output
    assert re.search(r"error: the loss is (nan|inf) at step \d", output)
    assert "Traceback" not in output
    assert not run.finetuned.exists()


def test_no_usable_conversation_ends_with_64_and_no_traceback(
    models: dict[str, Path], tmp_path: Path, make_run: MakeRun
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    code, output = tune(make_run(preset(models["llama"], tmp_path / "bad.jsonl")))
    assert code == 64
    assert "error: no usable conversation in" in output
    assert "neither text, nor prompt and completion, nor messages" in output
    assert "Traceback" not in output


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it has no config"):
        sft.load_config_and_tokenizer(tmp_path, TEMPLATES)
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        sft.load_config_and_tokenizer(tmp_path, TEMPLATES)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    tokenizer = make_tokenizer()
    assert check_tokenizer(tokenizer, len(tokenizer), "m") == "</s>"
    with pytest.raises(InputError, match="only 100 rows of embeddings"):
        check_tokenizer(tokenizer, 100, "m")


def test_a_length_beyond_the_models_positions_is_refused(make_run: MakeRun, models: dict[str, Path]) -> None:
    section = load_context(make_run(preset(models["llama"], Path("x"), max_length=129)), "finetune").preset.finetune
    assert sft.sequence_limit(section, 129) == 129
    with pytest.raises(InputError, match="max_length is 129, but the model takes only 128 tokens"):
        sft.sequence_limit(section, 128)


@pytest.mark.parametrize(
    ("epochs", "examples", "processes", "steps"), [(1, 40, 1, 5), (2, 41, 1, 12), (0.5, 40, 2, 2), (0.01, 3, 1, 1)]
)
def test_epochs_become_steps(
    make_run: MakeRun, models: dict[str, Path], epochs: float, examples: int, processes: int, steps: int
) -> None:
    values = {"steps": None, "epochs": epochs, "micro_batch": 4, "gradient_accumulation": 2}
    section = load_context(make_run(preset(models["llama"], Path("x"), **values)), "finetune").preset.finetune
    assert total_steps(section, examples, processes) == steps
