"""The quickstart's corpus: real, the same every time, free of what belongs to one machine; and the stage that makes it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import presets
from conftest import MakeRun, RunStage
from core.files import read_json

SCRIPT = Path(presets.__file__).parent / "python_docs.py"


def write_corpus(folder: Path, python: str = sys.executable, **env: str) -> Path:
    subprocess.run([python, SCRIPT, folder], check=True, env={**os.environ, **env}, cwd=folder.parent, timeout=120)
    return folder


def records(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "out")


def test_two_runs_write_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    again = write_corpus(tmp_path / "elsewhere", PYTHONHASHSEED="77", TZ="Asia/Tokyo", LC_ALL="C", HOME=str(tmp_path))
    for name in ("pretrain.jsonl", "chat.jsonl"):
        assert (corpus / name).read_bytes() == (again / name).read_bytes()
    assert sorted(p.name for p in again.iterdir()) == ["chat.jsonl", "pretrain.jsonl"]


def test_the_text_is_of_a_size_that_trains_a_small_model(corpus: Path) -> None:
    documents = records(corpus / "pretrain.jsonl")
    assert 3e6 <= (corpus / "pretrain.jsonl").stat().st_size <= 6e6
    assert len(documents) > 3000
    assert all(set(d) == {"text"} and len(d["text"]) >= 20 for d in documents)


def test_no_document_and_no_question_comes_twice(corpus: Path) -> None:
    texts = [d["text"] for d in records(corpus / "pretrain.jsonl")]
    questions = [d["messages"][0]["content"] for d in records(corpus / "chat.jsonl")]
    assert len(set(texts)) == len(texts)
    assert len(set(questions)) == len(questions)


def test_nothing_of_this_machine_is_in_the_text(corpus: Path) -> None:
    text = (corpus / "pretrain.jsonl").read_text("utf-8") + (corpus / "chat.jsonl").read_text("utf-8")
    for mine in (f"{Path.home()}/", sysconfig.get_paths()["stdlib"] + "/"):
        assert mine not in text
    assert not re.search(r"\bat 0x[0-9a-f]+|0x7f[0-9a-f]{6,}", text)


def test_the_order_says_nothing_about_the_content(corpus: Path) -> None:
    """A validation split is a stretch of the file: topics and modules must be spread over all of it."""
    texts = [d["text"] for d in records(corpus / "pretrain.jsonl")]
    for word in ("asyncio.", "email.", "class "):
        halves = [sum(word in t for t in part) for part in (texts[::2], texts[1::2])]
        first, second = (sum(word in t for t in part) for part in (texts[: len(texts) // 2], texts[len(texts) // 2 :]))
        assert min(halves) > 0
        assert 0.6 < first / second < 1.6, word


def test_questions_name_public_objects_and_answers_are_sentences(corpus: Path) -> None:
    answers = {}
    for record in records(corpus / "chat.jsonl"):
        question, answer = record["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        name = re.search(r"`([^`]+)`", question["content"])[1]
        assert not any(part.startswith("_") for part in name.split("."))
        assert answer["content"][-1] in ".!?"
        assert "\n" not in answer["content"]
        answers[name] = answer["content"]
    assert len(answers) > 4000
    assert answers["os.path.join"].startswith("Join two or more pathname components")
    assert "square root" in answers["math.sqrt"]
    assert answers["json"].startswith("JSON (JavaScript Object Notation)")


def test_the_question_is_asked_in_several_ways(corpus: Path) -> None:
    forms = {re.sub(r"`[^`]+`", "X", r["messages"][0]["content"]) for r in records(corpus / "chat.jsonl")}
    assert len(forms) >= 12


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no Python of the system")
def test_the_system_python_writes_it_too(tmp_path: Path) -> None:
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(sys.version_info >= (3, 10))"], capture_output=True, text=True
    )
    if version.stdout.strip() != "True":
        pytest.skip("the system's Python is older than 3.10")
    folder = write_corpus(tmp_path / "out", python="/usr/bin/python3")
    assert (folder / "pretrain.jsonl").stat().st_size > 3e6
    assert len(records(folder / "chat.jsonl")) > 4000


# --- the stage


def corpus_preset(tmp_path: Path, body: str, **more: Any) -> dict[str, Any]:
    script = tmp_path / "make_text.py"
    script.write_text(body)
    return {"corpus": {"script": str(script)}, **more}


BOTH = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / "pretrain.jsonl").write_text('{"text": "a"}\\n\\n{"text": "b"}\\n')
(folder / "chat.jsonl").write_text('{"text": "### Human: a### Assistant: b"}\\n')
print("made", len(list(folder.iterdir())), "files")
"""


def test_the_stage_runs_the_script_and_counts(tmp_path: Path, make_run: MakeRun, run_stage: RunStage) -> None:
    run = make_run(corpus_preset(tmp_path, BOTH))
    done = run_stage(run, "corpus")
    assert done.returncode == 0, done.stdout
    assert "made 2 files" in done.stdout
    result = read_json(run.result("corpus"))
    assert result["metrics"] == {"pretrain_records": 2, "pretrain_bytes": 29, "chat_records": 1, "chat_bytes": 41}
    assert set(result["outputs"]) == {"pretrain", "chat"}


def test_the_plan_shows_the_scripts_command(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(corpus_preset(tmp_path, BOTH))
    stage = next(s for s in read_json(run.plan)["stages"] if s["id"] == "corpus")
    assert stage["derived"]["command"].endswith(f"make_text.py {run.corpus}")


def test_a_failing_script_fails_the_stage_with_its_last_line(
    tmp_path: Path, make_run: MakeRun, run_stage: RunStage
) -> None:
    run = make_run(corpus_preset(tmp_path, "raise SystemExit('the source is gone')"))
    failed = run_stage(run, "corpus")
    assert failed.returncode == 2
    assert "error: the corpus script make_text.py ended with 1: the source is gone" in failed.stdout
    assert not run.result("corpus").exists()


@pytest.mark.parametrize("body", ["", "import sys; open(sys.argv[1] + '/pretrain.jsonl', 'w').close()"])
def test_a_script_that_writes_nothing_fails_the_stage(
    tmp_path: Path, make_run: MakeRun, run_stage: RunStage, body: str
) -> None:
    failed = run_stage(make_run(corpus_preset(tmp_path, body)), "corpus")
    assert failed.returncode == 2
    assert "pretrain.jsonl" in failed.stdout
    assert "Traceback" not in failed.stdout


def test_own_conversations_leave_only_the_other_half_to_the_script(
    tmp_path: Path, make_run: MakeRun, run_stage: RunStage
) -> None:
    body = "import sys; open(sys.argv[1] + '/pretrain.jsonl', 'w').write('{\"text\": \"a\"}\\n')"
    chat = tmp_path / "own.jsonl"
    chat.write_text("{}\n")
    run = make_run(corpus_preset(tmp_path, body, finetune={"files": [str(chat)]}))
    done = run_stage(run, "corpus")
    assert done.returncode == 0, done.stdout
    assert set(read_json(run.result("corpus"))["outputs"]) == {"pretrain"}


def test_the_script_does_not_see_the_runs_own_code(tmp_path: Path, make_run: MakeRun, run_stage: RunStage) -> None:
    (tmp_path / "core.py").write_text("WHOSE = 'the script author'")
    body = "import core; print('core of', core.WHOSE)\n" + BOTH
    done = run_stage(make_run(corpus_preset(tmp_path, body)), "corpus")
    assert "core of the script author" in done.stdout
