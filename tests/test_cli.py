"""The command line as a user meets it: every mistake answered with a message, exit 64 and no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import MakeRun, wizard
from core.files import read_json

TINY = [
    "--set=tokenizer.vocab_size=400",
    "--set=model.layers=1",
    "--set=model.hidden_size=32",
    "--set=model.heads=2",
    "--set=model.sequence_length=16",
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
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
        "歴史",
        "科学",
    ]
    texts = [f"{a}と{b}について{c}が話す。" * 3 for a in words for b in words[::3] for c in words[::7]]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--set=pretrain.stpes=3"], "did you mean pretrain.steps?"),
        (["--set=pretrain.steps=many"], "expected a whole number"),
        (["--set=corpus.files=nowhere.jsonl"], "there is no file or folder"),
        (["--set=finetune.files=nowhere.jsonl"], "there is no file or folder"),
        (["--set=tokenizer.model=nowhere.model"], "there is no file or folder"),
        (["--set=corpus.files=empty.jsonl"], "the corpus is empty"),
        (["--set=corpus.files=mine.jsonl", "--set=corpus.text_key=body"], "no usable document"),
        (["--set=corpus.files=mine.jsonl", "--set=model.sequence_length=4096"], "no document reaches"),
        (["--set=model.hidden_size=100", "--set=model.heads=7"], "is not a multiple of heads"),
        (["--set=cluster.python=/nowhere/python"], "is not a program"),
        (["--runs-dir=mine.jsonl"], "is a file"),
        (["--runs-dir=/proc/nowhere"], "cannot be written"),
        (["--name=../x"], "is not usable"),
        (["--name=-x"], "is not usable"),
        (["--name=taken"], "a run named 'taken' exists"),
        (["--from=convrt"], "there is no stage 'convrt'"),
        (["--from=pretrain"], "start with --from data"),
        (["--from=finetune"], "--set finetune.model=PATH"),
        (["--no-such-option"], "unrecognized arguments"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_input_is_answered_with_64_and_no_traceback(
    tmp_path: Path, corpus: Path, argv: list[str], words: str
) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    before = sorted(path.name for path in (tmp_path / "runs").iterdir())
    done = wizard("run", "quickstart", *argv, cwd=tmp_path)
    assert done.returncode == 64, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == before, "a refused run leaves nothing behind"


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "nowhere.yaml"],
        ["run", "quikstart"],
        ["status", "nowhere"],
        ["attach", "../x"],
        ["logs", "nowhere"],
        ["stop", "nowhere"],
        ["resume", "nowhere"],
        ["presets", "show"],
        ["presets", "show", "nowhere"],
        ["presets", "check", "nowhere.yaml"],
        ["frobnicate"],
        [],
    ],
    ids=" ".join,
)
def test_every_verb_refuses_what_is_not_there(tmp_path: Path, argv: list[str]) -> None:
    done = wizard(*argv, cwd=tmp_path)
    assert done.returncode == 64
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout + done.stderr


def test_a_vocabulary_larger_than_the_corpus_allows_ends_with_64_and_says_what_to_type(
    tmp_path: Path, corpus: Path
) -> None:
    sets = [*TINY, "--set=corpus.files=mine.jsonl", "--set=tokenizer.vocab_size=30000"]
    done = wizard("run", "quickstart", *sets, "--until=tokenizer", cwd=tmp_path)
    assert done.returncode == 64, done.stdout + done.stderr
    assert "--set tokenizer.vocab_size=" in done.stdout
    assert "stages/tokenizer/log.txt:" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_json_is_one_document_on_stdout_and_nothing_else(tmp_path: Path, corpus: Path) -> None:
    sets = [*TINY, "--set=corpus.files=mine.jsonl"]
    planned = wizard("plan", "quickstart", *sets, "--json", cwd=tmp_path)
    assert json.loads(planned.stdout)["schema_version"] == 1
    ran = wizard("run", "quickstart", *sets, "--until=data", "--json", cwd=tmp_path)
    document = json.loads(ran.stdout)
    assert (ran.returncode, document["state"]) == (0, "done")
    status = wizard("status", "quickstart", "--json", cwd=tmp_path)
    assert json.loads(status.stdout) == document
    assert json.loads(wizard("status", "--json", cwd=tmp_path).stdout)["runs"] == [document]
    assert json.loads(wizard("presets", "--json", cwd=tmp_path).stdout)["presets"]


def test_the_plan_that_was_shown_is_the_plan_that_runs(tmp_path: Path, corpus: Path) -> None:
    sets = [*TINY, "--set=corpus.files=mine.jsonl", "--until=tokenizer"]
    shown = json.loads(wizard("run", "quickstart", *sets, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert not (tmp_path / "runs").exists()
    wizard("run", "quickstart", *sets, cwd=tmp_path)
    ran = read_json(tmp_path / "runs" / "quickstart" / "plan.json")
    for stages in (shown["stages"], ran["stages"]):
        for stage in stages:
            stage["derived"].pop("disk_free", None)
    assert ran == shown


def test_a_module_named_core_in_the_users_folder_is_never_imported(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("open('imported', 'w'); raise SystemExit('the wrong core')")
    script = (
        "import sys; sys.path = [p for p in sys.path if p]; from core.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            "run",
            "quickstart",
            *TINY,
            "--set=corpus.files=mine.jsonl",
            "--until=tokenizer",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "imported").exists()


def test_a_run_of_this_machine_that_is_resumed_as_a_job_is_planned_for_the_job(
    make_run: MakeRun, tmp_path: Path
) -> None:
    (tmp_path / "corpus.py").touch()
    run = make_run({"corpus": {"script": str(tmp_path / "corpus.py")}}, "r")
    before = run.plan.read_bytes()
    # No sbatch on PATH: as far as it goes without Slurm.
    done = wizard("resume", "r", "--submit", "--set", "slurm.nodes=2", cwd=tmp_path, PATH=str(tmp_path))
    assert (done.returncode, "sbatch is not on PATH" in done.stderr) == (64, True), done.stderr
    stages = {stage["id"]: stage for stage in read_json(run.plan)["stages"]}
    assert (stages["pretrain"]["launcher"], stages["pretrain"]["derived"]["processes"]) == ("slurm", 2)
    assert (run.root / "plan.json-1").read_bytes() == before
