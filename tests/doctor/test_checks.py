"""Each judge on recorded observations: one that passes, one that fails, one that cannot be read, one that timed out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.doctor import needs as needs_module
from core.doctor.checks import CHECKS, judge, version_of
from core.doctor.finding import Finding, Observation, overall, report, text
from core.doctor.needs import Needs

GIB = 1 << 30
NEEDS = Needs(
    packages={"torch": ("pretrain", "convert"), "transformers": ("pretrain",), "sentencepiece": ("tokenizer",)},
    python="/opt/env/bin/python",
    gpus=2,
    bf16=True,
    processes=2,
    builds_kernels=True,
    open_files=4096,
    shared_memory=GIB,
    memory=4 * GIB,
    disk=10 * GIB,
)
VERSIONS = {"torch": "2.13.0+cpu", "transformers": "5.23.0", "sentencepiece": "0.2.3"}
TORCH = {
    "asked": True,
    "imported": True,
    "version": "2.13.0",
    "cuda": "13.0",
    "cuda_available": True,
    "devices": ["NVIDIA H100"] * 2,
    "bf16": True,
}
CC = {"path": "/usr/bin/cc", "version": "cc 12.2.0"}
LIMITS = {"open_files": 65536, "open_files_hard": 65536, "memory": 64 * GIB, "cores": 8, "shm": 2 * GIB}
SPACE = {"folder": "/data", "free": 100 * GIB, "inodes": 10**6, "writable": True}
ENCODING = {"filesystem": "utf-8", "stdout": "utf-8", "preferred": "UTF-8", "variables": {"LANG": "C.UTF-8"}}

PASSES: dict[str, dict[str, Any]] = {
    "python.env": {"version": "3.11.7", "executable": "/opt/env/bin/python"},
    "python.pins": {"versions": VERSIONS},
    "python.encoding": ENCODING,
    "cuda.torch_sees_gpu": TORCH,
    "build.cxx": {"cc": CC, "c++": CC},
    "build.ninja": {"path": "/usr/bin/ninja", "version": "1.13.0"},
    "build.headers": {"python_h": "/usr/include/python3.11/Python.h", "present": True},
    "limits": LIMITS,
    "fs.space": SPACE,
}

# check id, observation, status, what the finding must say
TROUBLE: list[tuple[str, dict[str, Any], str, str]] = [
    ("python.env", {"version": "3.9.18", "executable": "p"}, "fail", "too old"),
    ("python.env", {"executable": "/gone/python", "error": "No such file"}, "fail", "/gone/python does not run"),
    ("python.pins", {"versions": VERSIONS | {"torch": None}}, "fail", "not installed: torch"),
    ("python.pins", {"versions": VERSIONS | {"transformers": "4.57.1"}}, "fail", "too old: transformers 4.57.1"),
    ("python.encoding", ENCODING | {"preferred": "ANSI_X3.4-1968"}, "warn", "ANSI_X3.4-1968"),
    ("cuda.torch_sees_gpu", {"asked": True, "imported": False, "error": "OSError: libcudart"}, "fail", "libcudart"),
    ("cuda.torch_sees_gpu", TORCH | {"devices": ["NVIDIA H100"]}, "fail", "the plan trains on 2"),
    ("cuda.torch_sees_gpu", TORCH | {"cuda": None, "devices": []}, "fail", "CUDA none"),
    ("cuda.torch_sees_gpu", TORCH | {"bf16": False}, "fail", "without bf16"),
    ("build.cxx", {"cc": CC, "c++": None}, "fail", "no working c++"),
    ("build.cxx", {"cc": CC | {"version": "error: exit code 1"}, "c++": CC}, "fail", "no working cc"),
    ("build.ninja", {"path": None, "version": None}, "fail", "no ninja"),
    ("build.ninja", {"path": "/x/ninja", "version": "error: exit code 1"}, "fail", "does not run"),
    ("build.headers", {"python_h": "/usr/include/Python.h", "present": False}, "fail", "no /usr/include/Python.h"),
    ("limits", LIMITS | {"open_files": 1024}, "fail", "4096 open files"),
    ("limits", LIMITS | {"shm": 64 << 20}, "fail", "1 GiB of /dev/shm"),
    ("limits", LIMITS | {"shm": None}, "fail", "/dev/shm absent"),
    ("limits", LIMITS | {"memory": 2 * GIB}, "warn", "about 4 GiB of memory"),
    ("fs.space", SPACE | {"free": 9 * GIB}, "fail", "9 GiB free"),
    ("fs.space", SPACE | {"free": 15 * GIB}, "warn", "15 GiB free"),
    ("fs.space", SPACE | {"inodes": 5}, "fail", "only 5 more files"),
    ("fs.space", SPACE | {"writable": False}, "fail", "not writable"),
]
BY_ID = {check.id: check for check in CHECKS}


def judged(check_id: str, value: dict[str, Any] | None, needs: Needs = NEEDS, **observed: str) -> Finding:
    return judge(BY_ID[check_id], Observation(check_id, "node1", value, **observed), "node1", needs)


def test_every_check_has_its_recorded_observations_and_says_what_it_looks_at() -> None:
    assert list(PASSES) == list(BY_ID)
    assert {check_id for check_id, *_ in TROUBLE} == set(BY_ID)
    assert all(check.title for check in CHECKS)


@pytest.mark.parametrize("check_id", BY_ID)
def test_a_good_machine_passes(check_id: str) -> None:
    finding = judged(check_id, PASSES[check_id])
    assert (finding.status, finding.id, finding.node) == ("pass", check_id, "node1")
    assert "\n" not in text(finding)


@pytest.mark.parametrize(("check_id", "value", "status", "said"), TROUBLE)
def test_trouble_is_named_with_what_was_expected(check_id: str, value: dict[str, Any], status: str, said: str) -> None:
    finding = judged(check_id, value)
    assert finding.status == status
    assert said in text(finding)
    assert finding.expected
    assert finding.fix is None or finding.fix.preview


@pytest.mark.parametrize("check_id", BY_ID)
@pytest.mark.parametrize("value", [{}, {"versions": 5, "version": [], "cc": 1, "c++": 1, "asked": True}])
def test_an_answer_that_cannot_be_read_is_unknown(check_id: str, value: dict[str, Any]) -> None:
    finding = judged(check_id, value)
    assert finding.status == "unknown"
    assert "could not be read" in finding.summary


@pytest.mark.parametrize("check_id", BY_ID)
def test_a_timeout_and_a_missing_answer_are_unknown(check_id: str) -> None:
    late = judged(check_id, None, error="timeout", detail="no answer within 5 s")
    assert (late.status, late.found) == ("unknown", "timeout: no answer within 5 s")
    assert judge(BY_ID[check_id], None, "node1", NEEDS).status == "unknown"


@pytest.mark.parametrize("check_id", BY_ID)
def test_nothing_fails_that_no_stage_needs(check_id: str) -> None:
    nothing = Needs()
    for other_id, value, _, _ in TROUBLE:
        if (
            other_id == check_id
            and check_id != "python.env"
            and value.get("writable", True)
            and value.get("inodes") != 5
        ):
            assert judged(check_id, value, nothing).status != "fail", value


def test_the_fix_for_packages_names_the_training_python_and_the_versions() -> None:
    finding = judged("python.pins", {"versions": VERSIONS | {"torch": None, "sentencepiece": None}})
    assert finding.fix is not None
    assert finding.fix.preview == ("/opt/env/bin/python -m pip install 'sentencepiece>=0.2.3' 'torch>=2.6'",)
    assert finding.why == "sentencepiece: tokenizer; torch: pretrain, convert"


def test_two_gpus_less_shared_memory_is_a_failure_and_on_a_cpu_a_warning() -> None:
    small = LIMITS | {"shm": 64 << 20}
    assert judged("limits", small, replace(NEEDS, gpus=0)).status == "warn"
    assert judged("limits", small).status == "fail"


def test_unlimited_open_files_pass() -> None:
    assert judged("limits", LIMITS | {"open_files": -1}).status == "pass"


def test_the_worst_finding_decides_and_a_skip_never_does() -> None:
    def of(*statuses: Any) -> str:
        return overall(Finding("x", "n", status, "s") for status in statuses)

    assert of("pass", "skip") == "pass"
    assert of("pass", "warn", "skip") == "warn"
    assert of("warn", "unknown") == "unknown"
    assert of("unknown", "fail", "pass") == "fail"


def test_the_report_has_the_designs_shape() -> None:
    document = report(
        [judged("python.env", PASSES["python.env"]), judged("build.ninja", {"path": None, "version": None})]
    )
    assert (document["schema_version"], document["status"]) == (1, "fail")
    good, bad = document["findings"]
    assert set(good) == {"id", "node", "status", "summary", "expected", "found", "why", "fix"}
    assert good["fix"] is None
    assert set(bad["fix"]) == {"id", "risk", "preview"}


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("3.13.0rc1", (3, 13, 0)), ("17", (17,)), ("5.0.dev1", (5, 0))]
)
def test_versions_are_compared_by_their_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert version_of(version) == numbers


def test_the_minimum_versions_are_those_of_pyproject() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    stated = dict(re.findall(r'"([A-Za-z_-]+)>=([\d.]+)', project))
    assert {name: stated[name] for name in needs_module.MINIMUM} == needs_module.MINIMUM
