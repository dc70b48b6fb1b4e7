"""A run whose fine-tuning is another program's: started, followed and taken over by its files, never by its exit code."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import wizard
from core.exit_codes import ExitCode
from core.files import read_json
from core.runs.directory import RunDirectory

HERE = Path(__file__).parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with a train.py, a model to start from and conversations."""
    folder = tmp_path / "llm-jp-sft"
    (folder / "dataset").mkdir(parents=True)
    shutil.copyfile(HERE / "like_train.py", folder / "train.py")
    (folder / "behaviour").write_text("well")
    line = json.dumps({"text": "### Human: a### Assistant: b"})
    (folder / "dataset" / "openassistant_best_replies_train.jsonl").write_text(f"{line}\n" * 3)
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.model").write_bytes(b"pieces")
    (model / "config.json").write_text("{}")
    return folder


def run(checkout: Path, *sets: str, behaviour: str = "well", detach: bool = False) -> Any:
    (checkout / "behaviour").write_text(behaviour)
    given = {
        "finetune.backend": "llm-jp-sft", "finetune.checkout": checkout, "finetune.python": sys.executable,
        "finetune.model": checkout.parent / "model", "finetune.log_interval": 2, "finetune.device": "cpu", "seed": 42,
    }  # fmt: skip
    options = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    options += [word for option in sets for word in ("--set", option)]
    return wizard(
        "run", "quickstart", "--set", "corpus.script=null", *options, "--from", "finetune", "--until", "finetune",
        "--name", "r", *(["--detach"] if detach else []), cwd=checkout.parent,
    )  # fmt: skip


def folder_of(checkout: Path) -> RunDirectory:
    return RunDirectory(checkout.parent / "runs" / "r")


def records(checkout: Path) -> list[dict[str, Any]]:
    lines = folder_of(checkout).metrics("finetune").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def test_the_steps_are_reported_and_the_model_is_taken_over(checkout: Path) -> None:
    done = run(checkout, "wandb.mode=offline")
    assert done.returncode == 0, done.stdout + done.stderr
    found = records(checkout)
    assert [(record["step"], record["total"], record["loss"]) for record in found] == [
        (2, 6, 2.8),
        (4, 6, 2.6),
        (6, 6, 2.4),
    ]
    assert {record["grad_norm"] for record in found} == {1.5}
    assert {record["lr"] for record in found} == {1e-05}
    directory = folder_of(checkout)
    result = read_json(directory.result("finetune"))
    assert result["outputs"] == {"model": str(directory.finetuned)}
    assert result["metrics"] == {"steps": 6, "loss": 2.4, "train_loss": 2.5, "train_seconds": 12.5, "without_answer": 0}
    names = {path.name for path in directory.finetuned.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"}
    log = directory.log("finetune").read_text()
    assert "group finetune_model_" in log
    assert "{" not in log.split("group ")[1].split()[0]


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("ends early", "before its last step"),
        ("cut off", "is not whole"),
        ("saves nothing", "there is no config.json"),
        ("crash", "RuntimeError: it broke"),
    ],
)
def test_exit_code_0_is_no_success_and_what_is_half_is_not_taken(checkout: Path, behaviour: str, words: str) -> None:
    done = run(checkout, behaviour=behaviour)
    assert done.returncode == ExitCode.FAILED
    assert words in done.stdout
    assert not folder_of(checkout).finetuned.exists()
    assert not folder_of(checkout).result("finetune").exists()


def test_a_resumed_attempt_begins_again_and_the_old_ones_files_do_not_count(checkout: Path) -> None:
    run(checkout, behaviour="cut off")
    output = folder_of(checkout).stage("finetune") / "output"
    assert (output / "model.safetensors").exists()
    (checkout / "behaviour").write_text("saves nothing")
    again = wizard("resume", "r", cwd=checkout.parent)
    assert again.returncode == ExitCode.FAILED
    assert not (output / "model.safetensors").exists()
    assert (output / "checkpoint-6").is_dir()
    (checkout / "behaviour").write_text("well")
    assert wizard("resume", "r", cwd=checkout.parent).returncode == 0
    assert [record["attempt"] for record in records(checkout)][-1] == 3


def test_a_loss_that_is_no_number_and_conversations_that_teach_nothing_are_told(checkout: Path) -> None:
    run(checkout, behaviour="nan")
    assert [record["loss"] for record in records(checkout)] == [2.8, None, 2.4]
    shutil.rmtree(folder_of(checkout).root)
    run(checkout, behaviour="no answer")
    events = [json.loads(line) for line in folder_of(checkout).events.read_text().splitlines()]
    told = [event["text"] for event in events if event["kind"] == "warning" and "response template" in event["text"]]
    assert len(told) == 1
    assert read_json(folder_of(checkout).result("finetune"))["metrics"]["without_answer"] == 3


def test_a_stop_ends_it(checkout: Path) -> None:
    run(checkout, behaviour="slow", detach=True)
    metrics = folder_of(checkout).metrics("finetune")
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    wizard("stop", "r", cwd=checkout.parent)
    assert wizard("attach", "r", cwd=checkout.parent).returncode == ExitCode.INTERRUPTED
    assert not folder_of(checkout).result("finetune").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"messages": []}', "reads lines of"),
        ("{broken", "not JSON"),
    ],
)
def test_conversations_that_train_py_cannot_read_are_refused_before_it_starts(
    checkout: Path, line: str, words: str
) -> None:
    (checkout / "dataset" / "openassistant_best_replies_train.jsonl").write_text(f"{line}\n")
    done = run(checkout)
    assert done.returncode == ExitCode.USAGE
    assert words in done.stdout


def test_conversations_that_are_missing_come_with_what_to_type(checkout: Path) -> None:
    (checkout / "dataset" / "openassistant_best_replies_train.jsonl").unlink()
    done = run(checkout)
    assert done.returncode == ExitCode.USAGE
    assert "openassistant.py" in done.stderr
    assert "finetune.files" in done.stderr
