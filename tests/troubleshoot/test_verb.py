"""`llm-wizard diagnose` as a user types it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from conftest import MakeRun, wizard
from core.files import write_json
from core.text.cells import cells
from core.troubleshoot import verb
from core.troubleshoot.text import diagnosis_text

from .conftest import DiagnoseText

CANARY = "hf_" + "CanaryCanaryCanary0123456789"
OOM = "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
STRANGE = (
    "gpu07: [rank5]: Traceback (most recent call last):\n"
    'gpu07: [rank5]:   File "/w/a.py", line 3, in f\n'
    "gpu07: [rank5]:     g()\n"
    "gpu07: [rank5]: my.pkg.Odd: shard 7\n"
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "train.log"
    path.write_text("step 1/9  loss 4.0\n" + OOM, encoding="utf-8")
    return path


def test_it_says_cause_place_and_what_to_do_and_exits_with_2(log: Path, tmp_path: Path) -> None:
    done = wizard("diagnose", "train.log", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == ""
    for words in (
        "cuda-oom",
        "train.log:2 (rank 3)",
        "CUDA out of memory. Tried to allocate",
        "cause:",
        "what to do:",
        "sources:",
    ):
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == [log]


def test_json_is_one_document_of_the_agreed_form(log: Path, tmp_path: Path) -> None:
    done = wizard("diagnose", str(log), "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert {key: document[key] for key in ("schema_version", "verdict")} == {"schema_version": 1, "verdict": "cuda-oom"}
    first = document["findings"][0]
    assert (first["id"], first["role"], first["line"], first["auto_fixable"]) == ("cuda-oom", "root", 2, True)
    assert {"text", "cause", "fix", "sources", "file"} <= first.keys()


def test_a_healthy_log_exits_with_0(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("step 1/9  loss 4.0\n")
    done = wizard("diagnose", "a.log", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)) == (
        0,
        {"schema_version": 1, "verdict": "healthy", "findings": []},
    )


def test_files_folders_gz_and_standard_input(log: Path, tmp_path: Path) -> None:
    node = tmp_path / "node-2"
    node.mkdir()
    (node / "rank4.log.gz").write_bytes(gzip.compress(log.read_bytes()))
    (node / "weights.bin").write_bytes(b"CUDA out of memory")
    found = json.loads(wizard("diagnose", "node-2", "--json", cwd=tmp_path).stdout)
    assert found["findings"][0]["file"] == "node-2/rank4.log.gz"
    command = [sys.executable, "-m", "core.cli", "diagnose", "-", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    done = subprocess.run(
        command, input=log.read_bytes(), capture_output=True, env=environment, cwd=tmp_path, check=False
    )
    assert json.loads(done.stdout)["verdict"] == "cuda-oom"


def test_a_gz_that_is_cut_short_is_read_as_far_as_it_goes(log: Path, tmp_path: Path) -> None:
    text = log.read_bytes() + b"".join(b"filler %d\n" % (n * 7919) for n in range(20_000))
    (tmp_path / "cut.log.gz").write_bytes(gzip.compress(text)[:-2000])
    assert json.loads(wizard("diagnose", "cut.log.gz", "--json", cwd=tmp_path).stdout)["verdict"] == "cuda-oom"


def test_a_name_that_is_not_utf8_is_printed_as_far_as_it_can_be(log: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"tr\xffain.log")
    log.rename(tmp_path / name)
    document = json.loads(wizard("diagnose", name, "--json", cwd=tmp_path).stdout)
    assert (document["verdict"], document["findings"][0]["file"]) == ("cuda-oom", "tr\ufffdain.log")
    done = wizard("diagnose", name, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "")
    assert "tr\ufffdain.log:2 (rank 3)" in done.stdout
    missing = wizard("diagnose", os.fsdecode(b"n\xffone.log"), cwd=tmp_path)
    assert missing.returncode == 64
    assert "Traceback" not in missing.stderr


def test_what_cannot_be_read_in_a_folder_is_left_out_and_named(log: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    (tmp_path / "weights.out").write_bytes(bytes(range(256)) * 40)
    whole = gzip.compress(b"".join(b"filler %d\n" % (n * 7919) for n in range(20_000)))
    (tmp_path / "cut.log.gz").write_bytes(whole[:-2000])
    done = wizard("diagnose", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert "cuda-oom" in done.stdout
    unread = json.loads(wizard("diagnose", ".", "--json", cwd=tmp_path).stdout)["unread"]
    assert [text.split()[0] for text in unread] == ["bad.gz", "cut.log.gz:", "weights.out"]
    for text in unread:
        assert text in done.stdout


def test_a_log_without_a_line_is_no_healthy_log(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("\n \n")
    done = wizard("diagnose", "a.log", "--json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (64, "")
    assert "no line stands in a.log" in done.stderr
    assert wizard("diagnose", "a.log", "--exit-code", "137", cwd=tmp_path).returncode == 2


def test_no_line_is_wider_than_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(OOM.strip() + " 長い" * 300 + "\n" + OOM)
    (tmp_path / "b.log").write_text(STRANGE.replace("shard 7", "shard 7 " * 100))
    for name in ("a.log", "b.log"):
        done = wizard("diagnose", name, cwd=tmp_path, COLUMNS="80")
        lines = done.stdout.splitlines()
        assert [line for line in lines if cells(line) > 80 and "tar.gz" not in line] == []


def test_two_archives_of_the_same_second_have_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    for end in ("", "-2", "-3"):
        path = verb._free_name()
        assert path.name == f"llm-wizard-diagnosis-20260101-000000{end}.tar.gz"
        path.touch()


def test_the_logs_of_several_nodes_are_one_story_in_the_order_of_time(tmp_path: Path) -> None:
    (tmp_path / "node-1.log").write_text("2024-05-01 10:00:09 x\n" + OOM)
    (tmp_path / "node-2.log").write_text("2024-05-01 10:00:04 x\nOSError: [Errno 28] No space left on device\n")
    found = json.loads(wizard("diagnose", "node-1.log", "node-2.log", "--json", cwd=tmp_path).stdout)
    assert [finding["id"] for finding in found["findings"]] == ["disk-full", "cuda-oom"]


def test_a_run_is_named_as_for_the_other_verbs(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run({"corpus": {"script": "none.py"}})
    run.log("tokenizer").write_text("fine\n")
    run.log("pretrain").write_text(
        "CUDA out of memory\n--- attempt 2, 2026-11-24 07:51:41\nOSError: [Errno 28] No space left on device\n"
    )
    write_json(run.state, {"stages": {"tokenizer": {"state": "done"}, "pretrain": {"state": "failed"}}})
    done = wizard("diagnose", "r", "--runs-dir", str(run.root.parent), "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert [finding["id"] for finding in found["findings"]] == ["disk-full"]
    assert found["findings"][0]["line"] == 3


def test_unknown_shows_the_first_exception_and_writes_an_archive_without_secrets(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run({"corpus": {"script": "none.py"}})
    run.log("pretrain").write_text(STRANGE.replace("shard 7", f"shard 7 {CANARY}"))
    write_json(run.state, {"stages": {"pretrain": {"state": "failed", "error": CANARY}}})
    done = wizard("diagnose", "runs/r", cwd=tmp_path)
    assert done.returncode == 2
    assert "gpu07 rank 5" in done.stdout
    assert "my.pkg.Odd: shard 7 ***" in done.stdout
    (archive,) = tmp_path.glob("llm-wizard-diagnosis-*.tar.gz")
    assert archive.stat().st_mode & 0o777 == 0o600
    with tarfile.open(archive) as packed:
        members = {member.name: packed.extractfile(member) for member in packed.getmembers()}
        texts = {name: file.read() for name, file in members.items() if file}
    assert {
        "llm-wizard-diagnosis/r/plan.json",
        "llm-wizard-diagnosis/excerpt.txt",
        "llm-wizard-diagnosis/r/state.json",
    } <= texts.keys()
    for text in texts.values():
        assert CANARY.encode() not in text
        assert str(Path.home()).encode() + b"/" not in text or Path.home() == Path("/")


def test_the_archive_goes_where_it_is_told_and_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(STRANGE)
    done = wizard("diagnose", "a.log", "--bundle", "mine.tar.gz", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["verdict"] == "unknown"
    assert (tmp_path / "mine.tar.gz").exists()
    again = wizard("diagnose", "a.log", "--bundle", "mine.tar.gz", cwd=tmp_path)
    assert again.returncode == 64
    assert "mine.tar.gz exists" in again.stderr


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "a1" * 17,
        "AKIA" + "IOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY=" + "wJalrXUtnFEMI/K7MDENG",
        "https://me:" + "pass-word@proxy:8080",
        "Authorization: Bearer " + "abcdef.123456",
        "eyJhbGciOiJIUzI1" + ".eyJzdWIiOiIxIn0x.abc",
        "ghp_" + "a1" * 18,
        "sk-proj-" + "a1" * 20,
        "wandb login " + "0123456789abcdef" * 2 + "01234567",
    ],
)
def test_no_kind_of_secret_is_shown(secret: str, diagnose_text: DiagnoseText) -> None:
    found = diagnose_text(STRANGE.replace("shard 7", f"x {secret} y"))
    shown = diagnosis_text(found)
    assert secret.partition("@")[0][-8:] not in shown
    assert "***" in shown
    assert found.excerpt[-1].endswith(" y")


def test_escapes_and_secrets_of_a_log_are_not_printed(tmp_path: Path) -> None:
    text = (
        f"\x1b]0;title\x07\x1b[2J\x9b31mRuntimeError: CUDA out of memory {CANARY} \x1b]52;c;aGk=\x07\u202e\n"
        "wandb: ERROR api_key not configured (no-tty) api_key=0123456789abcdef0123\n"
    )
    (tmp_path / "\x1b[31mbad.log").write_text(text, encoding="utf-8")
    for options in ((), ("--json",)):
        done = wizard("diagnose", "\x1b[31mbad.log", *options, cwd=tmp_path)
        assert done.returncode == 2
        for bad in ("\x1b", "\x9b", "\x07", "\u202e", CANARY, "0123456789abcdef0123"):
            assert bad not in done.stdout + done.stderr
        assert "***" in done.stdout


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nothing.log"], "there is no log, folder or run"),
        (["empty"], "no logs in empty"),
        ([""], "the name of a log is empty"),
        (["weights.log"], "is not text"),
        (["train.log", "--stalled-for", "-5"], "seconds without output are expected"),
        (["bad.gz"], "is not a whole gzip file"),
        (["secret.log"], "cannot be read"),
        ([], "the following arguments are required: LOG"),
        (["train.log", "--exit-code", "many"], "invalid int value"),
    ],
)
def test_a_mistake_is_answered_with_a_message_and_64(argv: list[str], words: str, log: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    (tmp_path / "weights.log").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "secret.log").symlink_to("secret.log")  # a loop cannot be opened by anybody
    done = wizard("diagnose", *argv, cwd=tmp_path)
    assert done.returncode == 64
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fix_of_the_doctor_is_named_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(
        "ImportError: cannot import name 'helpers' from 'megatron.data' (/w/megatron/data/__init__.py)\n"
    )
    assert "llm-wizard doctor --fix setup.helpers" in wizard("diagnose", "a.log", cwd=tmp_path).stdout
    (tmp_path / "b.log").write_text("RuntimeError: Error building extension 'fused_adam'\n")
    assert "--fix" not in wizard("diagnose", "b.log", cwd=tmp_path).stdout
