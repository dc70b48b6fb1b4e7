"""The main job, end to end at a reduced size: raw text in, two publishable model folders out."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import wizard
from core.files import read_json
from core.runs.directory import RunDirectory
from core.runs.state import read_status

REPOSITORY = Path(__file__).parent.parent
REDUCED = [
    "--set=tokenizer.vocab_size=1024",
    "--set=tokenizer.input_sentence_size=20000",
    "--set=model.layers=2",
    "--set=model.hidden_size=64",
    "--set=model.heads=2",
    "--set=model.sequence_length=64",
    "--set=pretrain.steps=120",
    "--set=pretrain.valid_interval=60",
    "--set=pretrain.valid_batches=200",  # all of the validation split
    "--set=pretrain.save_interval=40",
    "--set=finetune.steps=10",
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def outside(code: str, *argv: str) -> Any:
    """Run code in a process that cannot import this project; its last line of output as JSON."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(code), *argv],
        cwd="/",
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, subprocess.CompletedProcess[str]]:
    """The quickstart at a reduced size, run once for all tests of this module."""
    folder = tmp_path_factory.mktemp("quickstart")
    done = wizard("run", "quickstart", *REDUCED, cwd=folder)
    return RunDirectory(folder / "runs" / "quickstart"), done


pytestmark = pytest.mark.slow


def test_every_stage_is_done_and_names_its_outputs(finished: tuple[RunDirectory, Any]) -> None:
    run, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    status = wizard("status", str(run.root), "--json", cwd=run.root)
    document = json.loads(status.stdout)
    assert document["state"] == "done"
    for stage_id, stage in document["stages"].items():
        assert stage["state"] == "done", stage_id
        assert stage["outputs"], stage_id
        assert all(Path(path).exists() for path in stage["outputs"].values())
        assert str(next(iter(stage["outputs"].values()))) in done.stdout


def test_the_model_learns(finished: tuple[RunDirectory, Any]) -> None:
    metrics = read_status(finished[0]).document["stages"]["pretrain"]["metrics"]
    assert metrics["val_loss"] < 0.8 * metrics["first_val_loss"]
    assert metrics["val_loss"] < metrics["unigram_entropy_nats"]


def test_the_pretrained_folder_works_without_this_project_and_agrees_with_the_trainer(
    finished: tuple[RunDirectory, Any],
) -> None:
    run = finished[0]
    metrics = read_status(run).document["stages"]["pretrain"]["metrics"]
    split = read_json(Path(f"{run.data_prefix}.manifest.json"))["splits"]["valid"]
    found = outside(
        """
        import json, sys
        import numpy as np, torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        folder, tokens, start, end, length = *sys.argv[1:3], *map(int, sys.argv[3:])
        assert "core" not in sys.modules
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        ids = np.memmap(tokens, np.uint16, "r")[start:end].astype(np.int64)
        windows = torch.tensor(np.stack([ids[i : i + length + 1] for i in range(0, len(ids) - length, length)]))
        losses = []
        with torch.no_grad():
            for part in windows.split(64):
                logits = model(part[:, :-1]).logits.float()
                losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
        loss = (sum(losses) / windows[:, 1:].numel()).item()
        inputs = tokenizer("The following", return_tensors="pt")
        text = tokenizer.decode(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0])
        print(json.dumps({"loss": loss, "text": text, "vocab": len(tokenizer), "rows": logits.shape[-1]}))
        """,
        str(run.pretrained),
        f"{run.data_prefix}.bin",
        str(split["token_start"]),
        str(split["token_end"]),
        "64",
    )
    assert found["vocab"] == found["rows"] == 1024
    assert len(found["text"]) > len("The following")
    assert math.exp(found["loss"]) == pytest.approx(math.exp(metrics["val_loss"]), rel=0.01)


def test_both_published_folders_hold_what_an_upload_needs_and_nothing_private(
    finished: tuple[RunDirectory, Any],
) -> None:
    run = finished[0]
    for stage_id in ("upload-pretrained", "upload-finetuned"):
        folder = run.upload(stage_id)
        names = {path.name for path in folder.iterdir()}
        assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
        for path in folder.iterdir():
            if path.suffix in (".md", ".json"):
                assert str(run.root) not in path.read_text(encoding="utf-8"), path.name


def test_the_chat_model_answers_in_its_format(finished: tuple[RunDirectory, Any]) -> None:
    found = outside(
        """
        import json, sys
        from transformers import AutoModelForCausalLM, AutoTokenizer
        model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
        chat = [{"role": "user", "content": "What does `len` do?"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        named = json.load(open(sys.argv[1] + "/tokenizer_config.json"))["tokenizer_class"]
        print(json.dumps({"class": named, "prompt": text, "new": out.shape[1] - inputs["input_ids"].shape[1]}))
        """,
        str(finished[0].upload("upload-finetuned")),
    )
    assert found["prompt"] == "### Human: What does `len` do?\n### Assistant:"
    assert found["new"] > 0
    assert found["class"] == "PreTrainedTokenizerFast", "transformers 4 knows it, too"


def test_a_finished_run_is_not_done_again(finished: tuple[RunDirectory, Any]) -> None:
    run = finished[0]
    again = wizard("resume", str(run.root), cwd=run.root)
    assert again.returncode == 0
    states = {line.split()[1]: line.split()[0] for line in again.stdout.splitlines() if line[:1].islower()}
    assert states["pretrain"] == states["finetune"] == states["upload-finetuned"] == "reused"


def test_japanese_text_of_a_user_works_end_to_end(tmp_path: Path) -> None:
    words = [
        "東京",
        "大阪",
        "学校",
        "先生",
        "学生",
        "電車",
        "天気",
        "今日",
        "明日",
        "料理",
        "音楽",
        "映画",
        "言語",
        "機械",
        "学習",
        "計算",
        "世界",
        "日本",
    ]
    sentences = [f"{a}と{b}は{c}についての話です。" for a in words for b in words for c in words[:4]]
    documents = ["".join(sentences[i : i + 12]) for i in range(0, len(sentences), 8)]
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps({"本文": text}, ensure_ascii=False) + "\n" for text in documents), encoding="utf-8"
    )
    (tmp_path / "chat.jsonl").write_text(
        "".join(
            json.dumps(
                {"text": f"### Human: {word}とは何ですか。### Assistant: {word}は大切です。"}, ensure_ascii=False
            )
            + "\n"
            for word in words
        ),
        encoding="utf-8",
    )
    sets = ["corpus.files=mine.jsonl", "corpus.text_key=本文", "finetune.files=chat.jsonl", "tokenizer.vocab_size=400"]
    small = [option for option in REDUCED if "vocab_size" not in option and "steps" not in option]
    small += ["--set=pretrain.steps=20", "--set=finetune.steps=4", "--set=pretrain.warmup_steps=2"]
    done = wizard("run", "quickstart", "--name=mine", *small, *(f"--set={option}" for option in sets), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_status(RunDirectory(tmp_path / "runs" / "mine")).document["stages"]["corpus"]["state"] == "skipped"


def test_a_closed_terminal_changes_nothing_and_attach_shows_the_run_again(tmp_path: Path) -> None:
    command = ["run", "quickstart", "--name=hup", *REDUCED, "--until=pretrain", "--set=pretrain.steps=60"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-m", "core.cli", *command], ENVIRONMENT)
    run = RunDirectory(tmp_path / "runs" / "hup")
    seen = read_until(terminal, lambda text: bool(re.search(r"running +pretrain.*loss", text)))
    os.close(terminal)  # the kernel sends SIGHUP to the session, as a dropped SSH connection does
    os.waitpid(pid, 0)
    assert read_status(run).state == "running", seen
    attached = wizard("attach", "hup", cwd=tmp_path)
    assert attached.returncode == 0, attached.stdout + attached.stderr
    assert re.search(r"^done +pretrain", attached.stdout, re.MULTILINE)
    steps = [json.loads(line) for line in run.metrics("pretrain").read_bytes().splitlines()]
    losses = [record["step"] for record in steps if "loss" in record]
    assert losses == sorted(set(losses)), "no step was repeated or lost"
    assert losses[-1] == 60


def test_ctrl_c_asks_whether_to_detach_or_to_stop(tmp_path: Path) -> None:
    command = ["run", "quickstart", "--name=c", *REDUCED, "--until=pretrain", "--set=pretrain.steps=100000"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-m", "core.cli", *command], ENVIRONMENT)
    run = RunDirectory(tmp_path / "runs" / "c")
    read_until(terminal, lambda text: bool(re.search(r"running +pretrain.*loss", text)))
    os.write(terminal, b"\x03")
    read_until(terminal, lambda text: "[d]etach" in text)
    os.write(terminal, b"d\n")
    read_until(terminal, lambda text: "the run goes on" in text)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert read_status(run).state == "running"
    stopped = wizard("stop", "c", cwd=tmp_path)
    assert stopped.returncode == 0
    status = read_status(run)
    assert status.state == "stopped"
    assert list(run.checkpoints.glob("step-*/manifest.json")), "it saved before it stopped"


def read_until(terminal: int, condition: Callable[[str], bool], seconds: float = 300) -> str:
    """What a terminal shows until a condition on it holds."""
    import select

    text = ""
    deadline = time.monotonic() + seconds
    while not condition(text):
        assert time.monotonic() < deadline, text[-2000:]
        if select.select([terminal], [], [], 0.5)[0]:
            text += os.read(terminal, 1 << 16).decode("utf-8", "replace")
    return text


def test_a_trainer_killed_in_the_middle_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    small = [*REDUCED, "--until=pretrain", "--set=pretrain.steps=80", "--set=pretrain.save_interval=10"]
    done = wizard("run", "quickstart", "--name=k", "--detach", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = RunDirectory(tmp_path / "runs" / "k")
    deadline = time.monotonic() + 300
    while not list(run.checkpoints.glob("step-2*/manifest.json")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    from core.runs.process import run_processes

    for process in run_processes(run.root):
        process.send_signal(signal.SIGKILL)
    while read_status(run).state == "running":
        time.sleep(0.1)
    assert "SIGKILL" in read_status(run).document["stages"]["pretrain"]["error"]
    resumed = wizard("resume", "k", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout
    log = run.log("pretrain").read_text()
    assert re.search(r"step-[2-7]0", log), "the log says from where it went on"
