"""`llm-wizard doctor` as a user's shell runs it."""

from __future__ import annotations

import json
import shlex
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
        ("--nodes", "a", "--fix"),
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


def test_what_is_accepted_is_shown_as_such_and_does_not_fail(tmp_path: Path, bare_python: str) -> None:
    home = str(tmp_path / "home")
    look = ("doctor", "--python", bare_python, "--only", "python.pins")
    assert wizard(*look, cwd=tmp_path, LLM_WIZARD_HOME=home).returncode == 2
    accept = ("--accept", "python.pins", "--why", "comes tomorrow", "--until", "2999-12-31")
    assert wizard("doctor", *accept, cwd=tmp_path, LLM_WIZARD_HOME=home).returncode == 0
    done = wizard(*look, "--json", cwd=tmp_path, LLM_WIZARD_HOME=home)
    (finding,) = json.loads(done.stdout)["findings"]
    assert (done.returncode, finding["status"]) == (0, "skip")
    assert "until 2999-12-31 (comes tomorrow)" in finding["summary"]
    kept = tmp_path / "home" / "accepted.json"
    record = json.loads(kept.read_text())
    record["accepted"][0]["until"] = "2001-01-01"  # time passes
    kept.write_text(json.dumps(record))
    assert wizard(*look, cwd=tmp_path, LLM_WIZARD_HOME=home).returncode == 2
    kept.write_text("{")
    damaged = wizard(*look, cwd=tmp_path, LLM_WIZARD_HOME=home)
    assert damaged.returncode == 64
    assert str(kept) in damaged.stderr


def test_a_python_that_is_not_there_leaves_the_machines_checks(tmp_path: Path) -> None:
    done = wizard("doctor", "--python", "/gone/python", "--json", cwd=tmp_path)
    assert done.returncode == 2
    found = {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["python.env"]["status"] == "fail"
    assert found["limits"]["status"] == "pass"
    assert found["python.pins"]["status"] == "unknown"
    assert len(found) == len([check for check in CHECKS if check.tier == "quick"])


def test_nothing_heavy_is_imported_for_the_help(tmp_path: Path) -> None:
    import subprocess

    code = "import sys; import core.doctor.verb; print([m for m in ('pydantic', 'core.plan', 'core.doctor.checks') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
