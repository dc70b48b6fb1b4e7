"""`llm-wizard doctor` as a user's shell runs it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from conftest import wizard
from core.cli import main
from core.doctor.check import GROUPS
from core.doctor.checks import CHECKS
from core.doctor.finding import Status
from core.doctor.verb import choose_checks, exit_code
from core.errors import InputError

FINDING = ["id", "node", "status", "summary", "expected", "found", "why", "fix"]


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """A Python of its own without any package."""
    venv.create(tmp_path / "bare", with_pip=False)
    return str(tmp_path / "bare" / "bin" / "python")


def test_this_machine_is_judged_for_the_quickstart(tmp_path: Path) -> None:
    done = wizard("doctor", cwd=tmp_path)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "ready: corpus, tokenizer, data, pretrain" in done.stdout
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())  # looking leaves nothing behind


def test_a_python_without_packages_is_named_with_the_stages_that_miss_them(tmp_path: Path, bare_python: str) -> None:
    done = wizard("doctor", "--python", bare_python, "--json", cwd=tmp_path)
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert document["status"] == "fail"
    assert all(list(finding) == FINDING for finding in document["findings"])
    pins = next(finding for finding in document["findings"] if finding["id"] == "python.pins")
    assert pins["fix"]["runnable"] is True
    assert pins["fix"]["preview"][0].startswith(f"{bare_python} -m pip install ")
    assert document["stages"]["pretrain"] == ["python.pins"]
    assert document["stages"]["corpus"] == ["python.pins"]


def test_what_to_type_next_looks_at_the_same_environment(tmp_path: Path, bare_python: str) -> None:
    options = ("--python", bare_python, "--set", "cluster.processes=2")
    done = wizard("doctor", *options, "--only", "python.pins", cwd=tmp_path)
    line = next(line for line in done.stdout.splitlines() if "--fix python.pins" in line)
    words = shlex.split(line.partition(":")[2])
    shown = wizard(*words[1:], "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert (
        shown.stdout.count(f"{bare_python} -m pip install") == 2
    )  # torch before DeepSpeed, which imports it to be built


def test_findings_stream_one_line_each_after_the_list_of_checks(tmp_path: Path) -> None:
    done = wizard("doctor", "--stream", cwd=tmp_path)
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [line["kind"] for line in lines]
    checks = [line for line in lines if line["kind"] == "check"]
    findings = [line for line in lines if line["kind"] == "finding"]
    assert kinds == ["check"] * len(checks) + ["finding"] * len(findings) + ["report"]
    assert [list(check) for check in checks] == [["kind", "id", "title", "group", "scope", "tier"]] * len(checks)
    assert [list(finding) for finding in findings] == [["kind", *FINDING, "group"]] * len(findings)
    assert {check["id"] for check in checks} == {finding["id"] for finding in findings}
    assert lines[-1]["status"] in ("pass", "warn")


def test_the_list_names_every_check(tmp_path: Path) -> None:
    document = json.loads(wizard("doctor", "--list", "--json", cwd=tmp_path).stdout)
    assert [entry["id"] for entry in document["checks"]] == [check.id for check in CHECKS]
    assert all(set(entry) == {"id", "title", "group", "tier", "scope", "fix"} for entry in document["checks"])
    assert {entry["group"] for entry in document["checks"]} == set(GROUPS)
    text = wizard("doctor", "--list", "--only", "limits", cwd=tmp_path).stdout
    assert [line.split()[0] for line in text.splitlines()] == ["limits", "clock.skew", "fleet.equal"]


def test_only_and_skip_take_checks_and_groups() -> None:
    def chosen(tier: Any, only: list[str], skip: list[str]) -> list[str]:
        return [check.id for check in choose_checks(CHECKS, tier, only, skip)]

    assert "ds.ops" not in chosen("quick", [], [])
    assert "ds.ops" in chosen("full", [], [])
    assert chosen("quick", ["ds.ops"], []) == ["ds.ops"]  # named: made whatever the tier
    assert chosen("quick", ["files"], []) == ["fs.shared", "fs.space"]
    assert chosen("quick", ["fs.space,ssh"], ["ssh.latency", "ssh.same_host"]) == ["ssh.batch", "fs.space"]
    with pytest.raises(InputError, match="no check 'fs\\.spac'") as error:
        chosen("quick", ["fs.spac"], [])
    assert "did you mean fs.space" in error.value.hint


@pytest.mark.parametrize(
    ("status", "code", "strict"), [("pass", 0, 0), ("skip", 0, 0), ("warn", 1, 2), ("fail", 2, 2), ("unknown", 3, 2)]
)
def test_exit_codes_are_those_of_the_table(status: Status, code: int, strict: int) -> None:
    assert exit_code(status, strict=False) == code
    assert exit_code(status, strict=True) == strict


@pytest.mark.parametrize(
    "argv",
    [
        ("--only", "nothing"),
        ("--tier", "deepest"),
        ("--dry-run",),
        ("--stream", "--json"),
        ("--accept", "limits"),
        ("--accept", "limit", "--why", "x", "--until", "2999-01-01"),
        ("--accept", "limits", "--why", "x", "--until", "tomorrow"),
        ("--accept", "limits", "--why", "x", "--until", "1999-01-01"),
        ("--why", "x"),
        ("--tier", "deep"),
        ("--preset", "nothing"),
        ("--fix", "nothing"),
        ("--nodes", "-oProxyCommand=x"),
        ("--nodes", "a", "--hostfile", "b"),
        ("--hostfile", "not-there"),
    ],
)
def test_wrong_usage_ends_with_64_and_says_why(
    argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_WIZARD_HOME", str(tmp_path / "home"))
    try:
        code = main(["doctor", *argv])
    except SystemExit as error:  # argparse's own
        code = int(str(error.code))
    assert code == 64
    assert capsys.readouterr().err.strip()


@pytest.mark.parametrize("answer", [b"n\n", b"\x04"])
def test_the_deep_tier_asks_and_takes_anything_but_yes_for_a_no(tmp_path: Path, answer: bytes) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    argv = [sys.executable, "-m", "core.cli", "doctor", "--tier", "deep"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(argv, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as doctor:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # EIO: it has ended
            while chunk := os.read(ours, 1 << 16):
                said += chunk
        os.close(ours)
    assert doctor.returncode == 64
    assert b"Go on? [y/N]" in said
    assert b"nothing was looked at" in said


def test_what_is_accepted_is_shown_as_such_and_does_not_fail(
    tmp_path: Path, bare_python: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_WIZARD_HOME", str(tmp_path / "home"))
    look = ["doctor", "--python", bare_python, "--only", "python.pins", "--json"]
    assert main(look) == 2
    assert main(["doctor", "--accept", "python.pins", "--why", "comes tomorrow", "--until", "2999-12-31"]) == 0
    capsys.readouterr()
    assert main(look) == 0
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["status"] == "skip"
    assert "until 2999-12-31 (comes tomorrow)" in finding["summary"]
    kept = tmp_path / "home" / "accepted.json"
    record = json.loads(kept.read_text())
    record["accepted"][0]["until"] = "2001-01-01"  # time passes
    kept.write_text(json.dumps(record))
    assert main(look) == 2
    kept.write_text("{")
    assert main(look) == 64
    assert str(kept) in capsys.readouterr().err


def test_a_python_that_is_not_there_leaves_the_machines_checks(tmp_path: Path) -> None:
    done = wizard("doctor", "--python", "/gone/python", "--json", cwd=tmp_path)
    assert done.returncode == 2
    found = {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["python.env"]["status"] == "fail"
    assert found["limits"]["status"] == "pass"
    assert found["python.pins"]["status"] == "unknown"
    assert len(found) == len([check for check in CHECKS if check.tier == "quick"])


def test_nothing_heavy_is_imported_for_the_help(tmp_path: Path) -> None:
    code = "import sys; import core.doctor.verb; print([m for m in ('pydantic', 'core.plan', 'core.doctor.checks') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_interruption_shows_what_is_known_and_what_is_not(tmp_path: Path) -> None:
    """One node of two hangs when Ctrl-C comes."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(
        '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\n'
        'case $2 in hang) exec sleep 1000 ;; *) shift 2; exec sh -c "$*" ;; esac\n'
    )
    ssh.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{ssh.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    argv = [sys.executable, "-m", "core.cli", "doctor", "--nodes", "one,hang", "--only", "limits,ssh", "--stream"]
    with subprocess.Popen(
        argv, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as doctor:
        assert doctor.stdout is not None
        lines: list[dict[str, Any]] = []
        for line in doctor.stdout:
            lines.append(json.loads(line))
            if lines[-1].get("id") == "ssh.latency" and lines[-1].get("node") == "one":
                doctor.send_signal(signal.SIGINT)
        code = doctor.wait()
    assert code == 130
    assert lines[-1]["kind"] == "report"
    assert lines[-1]["status"] == "unknown"


def test_the_report_keeps_to_the_terminals_width(tmp_path: Path) -> None:
    """Except for what is to be typed, which must be pasted whole."""
    words = ("doctor", "--python", "/gone/python", "--nodes", "no-such-node.invalid")
    for columns in (60, 80):
        done = wizard(*words, cwd=tmp_path, COLUMNS=str(columns))
        assert "no-such-node.invalid" in done.stdout
        long = [line for line in done.stdout.splitlines() if len(line) > columns and "type: " not in line]
        assert not long


def test_a_user_without_a_home_or_a_name_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A container's: no HOME, and no entry for the user."""

    def nobody(*_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "LLM_WIZARD_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert main(["doctor", "--only", "limits,shell.bashrc_dup"]) in (0, 1)
    monkeypatch.setenv("LLM_WIZARD_HOME", str(tmp_path / "home"))
    assert main(["doctor", "--accept", "limits", "--why", "x", "--until", "2999-01-01"]) == 0
    assert json.loads((tmp_path / "home" / "accepted.json").read_text())["accepted"][0]["who"] == str(os.getuid())
    monkeypatch.setenv("LLM_WIZARD_HOME", "/proc/home")
    assert main(["doctor", "--accept", "limits", "--why", "x", "--until", "2999-01-01"]) == 2
    assert "set LLM_WIZARD_HOME" in capsys.readouterr().err


def test_a_folder_full_of_lures_changes_nothing(tmp_path: Path) -> None:
    """Neither this program's modules nor the training Python's are looked for where the user stands."""
    for name in ("torch", "json", "orjson", "probe", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('lured')\n")
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("raise SystemExit('lured')\n")
    program = str(Path(sys.executable).with_name("llm-wizard"))
    done = subprocess.run(
        [program, "doctor", "--only", "python,cuda.torch_sees_gpu"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert b"lured" not in done.stdout + done.stderr


def test_what_a_start_up_file_exports_or_prints_is_no_secret_of_ours_to_show(tmp_path: Path) -> None:
    canary = "hf_canarycanarycanarycanary"
    (tmp_path / ".bashrc").write_text(
        f"export HF_TOKEN={canary}\nexport HF_TOKEN={canary}\necho now {canary}\nulimit -n 9\nulimit -n 9\n{canary}\n"
    )
    done = wizard("doctor", "--only", "shell.bashrc_dup", "--json", cwd=tmp_path, HOME=str(tmp_path))
    assert "now ***" in done.stdout
    assert canary not in done.stdout + done.stderr
