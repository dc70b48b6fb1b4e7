"""Every judge on recorded observations: passes, trouble, what cannot be read, what timed out, and nodes that differ."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doctor.observations import (
    COMPARED,
    FLEET,
    LIMITS,
    NEEDS,
    NO_GPU,
    OF_FLEET,
    OF_ORIGINAL,
    ONE_NODE_SKIPS,
    ORIGINAL,
    PASSES,
    PINNED,
    TROUBLE,
    VERSIONS,
)

from core.doctor import profiles
from core.doctor.check import GROUPS, compare, judge
from core.doctor.checks import BY_ID, CHECKS
from core.doctor.finding import Finding, Observation, Verdict, overall, report
from core.doctor.needs import Needs
from core.doctor.probe import OBSERVATIONS
from core.doctor.profiles import satisfies, version_of
from core.doctor.text import finding_text


def needs_for(check_id: str) -> Needs:
    """Those needs under which the check is made at all."""
    if check_id in OF_ORIGINAL:
        return ORIGINAL
    return FLEET if check_id in OF_FLEET else NEEDS


def judged(check_id: str, value: Any, needs: Needs | None = None, **observed: str) -> Finding:
    observation = Observation(BY_ID[check_id].observation, "node1", value, **observed)
    return judge(BY_ID[check_id], observation, "node1", needs or needs_for(check_id))


def test_every_check_is_complete() -> None:
    """Its recorded observations, a docstring, a group, an observation that the probe makes, and a fix with a preview."""
    observed = {name for name, *_ in OBSERVATIONS}
    troubled = {check_id for check_id, *_ in TROUBLE} | {check_id for check_id, *_ in COMPARED}
    assert len(CHECKS) == len(BY_ID) == 59
    for check in CHECKS:
        assert check.id in PASSES, check.id
        assert check.id in troubled, check.id
        assert check.why.endswith("."), check.id
        assert check.group in GROUPS, check.id
        assert check.observation in observed, check.id
        assert check.compare is None or check.id in {check_id for check_id, *_ in COMPARED}, check.id
    assert {check.group for check in CHECKS} == set(GROUPS)


@pytest.mark.parametrize("check_id", BY_ID)
def test_a_good_machine_passes(check_id: str) -> None:
    finding = judged(check_id, PASSES[check_id])
    assert finding.status == ("skip" if check_id in ONE_NODE_SKIPS else "pass"), finding_text(finding)
    assert "\n" not in finding_text(finding)


@pytest.mark.parametrize(("check_id", "value", "status", "said"), TROUBLE)
def test_trouble_is_named_with_what_was_expected(check_id: str, value: dict[str, Any], status: str, said: str) -> None:
    finding = judged(check_id, value)
    assert finding.status == status, finding_text(finding)
    assert said in finding_text(finding)
    if status in ("fail", "warn"):
        assert finding.verdict.expected
        assert finding.verdict.found
        assert finding.verdict.why
    assert finding.fix is None or finding.fix.preview
    json.dumps(finding.document())


@pytest.mark.parametrize("check_id", BY_ID)
@pytest.mark.parametrize("value", [{}, dict.fromkeys(("versions", "gpus", "asked", "pci", "folders", "modules"), 1)])
def test_an_answer_that_cannot_be_read_is_unknown(check_id: str, value: dict[str, Any]) -> None:
    finding = judged(check_id, value)
    assert finding.status == "unknown", finding_text(finding)
    assert "could not be read" in finding.summary


@pytest.mark.parametrize("check_id", BY_ID)
def test_a_timeout_and_a_missing_answer_are_unknown(check_id: str) -> None:
    late = judged(check_id, None, error="timeout", detail="no answer within 5 s")
    assert (late.status, late.verdict.found) == ("unknown", "timeout: no answer within 5 s")
    assert judge(BY_ID[check_id], None, "node1", NEEDS).status == "unknown"


@pytest.mark.parametrize(("check_id", "values", "odd", "said"), COMPARED)
def test_the_node_that_differs_is_named(check_id: str, values: dict[str, Any], odd: str, said: str) -> None:
    observations: dict[str, Observation | None] = {
        node: Observation(check_id, node, value) for node, value in values.items()
    }
    observations["silent"] = Observation(check_id, "silent", error="timeout", detail="ssh")
    needs = replace(needs_for(check_id), nodes=tuple(values))
    findings = {finding.node: finding for finding in compare(BY_ID[check_id], observations, needs)}
    assert findings.pop("silent").status == "unknown"
    assert list(findings) == [odd]
    assert findings[odd].status in ("fail", "warn")
    assert said in finding_text(findings[odd])


@pytest.mark.parametrize(("check_id", "values", "odd", "said"), COMPARED)
def test_a_node_that_answers_nonsense_does_not_hide_the_others(
    check_id: str, values: dict[str, Any], odd: str, said: str
) -> None:
    observations: dict[str, Observation | None] = {
        node: Observation(check_id, node, value) for node, value in values.items()
    }
    observations["mad"] = Observation(check_id, "mad", {"nonsense": 1})
    needs = replace(needs_for(check_id), nodes=tuple(values))
    findings = {finding.node: finding for finding in compare(BY_ID[check_id], observations, needs)}
    assert findings["mad"].status == "unknown"
    assert said in finding_text(findings[odd])


@pytest.mark.parametrize("check_id", [check.id for check in CHECKS if check.compare])
def test_nodes_that_are_alike_are_one_finding(check_id: str) -> None:
    value = PASSES[check_id]
    values = {f"node{i}": dict(value) for i in range(1, 4)}
    if check_id == "ssh.same_host":
        values = {node: value | {"addresses": [f"10.0.0.{i}"]} for i, (node, value) in enumerate(values.items())}
    observations: dict[str, Observation | None] = {n: Observation(check_id, n, v) for n, v in values.items()}
    (finding,) = compare(BY_ID[check_id], observations, replace(needs_for(check_id), nodes=("node1", "node2")))
    assert (finding.node, finding.status) == ("all", "pass"), finding_text(finding)


@pytest.mark.parametrize(("check_id", "value", "status", "said"), TROUBLE)
def test_nothing_fails_that_no_stage_needs(check_id: str, value: dict[str, Any], status: str, said: str) -> None:
    """A plan without training, GPUs, several nodes or uploads: only what is broken in itself remains."""
    broken_in_itself = {"python.env", "shell.bashrc_dup", "cuda.driver", "build.ext_cache", "ssh.batch", "fs.shared"}
    broken_in_itself |= {"net.gloo", "net.nccl", "net.ib", "net.iface", "net.port"}
    finding = judged(check_id, value, Needs(stages=("tokenizer",)))
    if finding.status == "fail":  # the machine says that something is broken, whoever asks
        unusable = value.get("writable") is False or value.get("inodes") == 5
        assert unusable or check_id in broken_in_itself or check_id.startswith("gpu."), finding_text(finding)
    if finding.status == "fail" and finding.verdict.stages:
        assert "tokenizer" not in finding.verdict.stages


def test_a_machine_without_gpus_is_not_warned_about_them() -> None:
    needs = replace(NEEDS, gpus=0)
    for check in CHECKS:
        if check.observation == "gpu":
            assert judged(check.id, NO_GPU, needs).status == "skip", check.id


def test_a_gpu_without_nvlink_or_infiniband_is_not_warned_about_them() -> None:
    """The L4 machines of the original pipeline have neither."""
    gpu = PASSES["gpu.count"]["gpus"][0] | {"name": "NVIDIA L4", "nvlinks": [], "remapped": None}
    value = PASSES["gpu.count"] | {"gpus": [gpu] * 2}
    assert judged("gpu.nvlink", value).status == "skip"
    assert judged("net.ib", {"ports": []}).status == "skip"
    assert judged("gpu.fabricmanager", {"switches": 0, "state": "", "running": False}).status == "skip"


def test_the_fix_for_packages_names_the_training_python_and_the_versions() -> None:
    finding = judged("python.pins", {"versions": VERSIONS | {"torch": None, "sentencepiece": None}})
    assert finding.fix is not None
    assert finding.fix.preview == ("/opt/env/bin/python -m pip install 'sentencepiece>=0.2.3' 'torch>=2.6'",)
    assert finding.verdict.why == "sentencepiece: tokenizer; torch: pretrain, convert"
    assert finding.verdict.stages == ("tokenizer", "pretrain", "convert")


def test_the_original_profile_takes_its_pins_and_nothing_else() -> None:
    assert judged("python.pins", {"versions": PINNED}, ORIGINAL).status == "pass"
    newer = judged("python.pins", {"versions": PINNED | {"transformers": "4.48.3"}}, ORIGINAL)
    assert "transformers 4.48.3" in newer.summary
    assert newer.verdict.stages is not None
    assert "convert" in newer.verdict.stages
    assert judged("python.env", {"version": "3.9.18", "executable": "p"}, ORIGINAL).status == "pass"
    assert judged("python.env", {"version": "3.11.7", "executable": "p"}, ORIGINAL).status == "fail"
    nvcc = {"nvcc": [{"path": "/c/nvcc", "version": "11.7"}], "torch": {"version": "2.2.0", "cuda": "11.8"}}
    assert judged("cuda.nvcc_vs_torch", nvcc, ORIGINAL).status == "fail"  # apex stops at another minor version


def test_two_gpus_with_less_shared_memory_are_a_failure_and_a_cpu_a_warning() -> None:
    small = LIMITS | {"shm": 64 << 20}
    assert judged("limits", small, replace(NEEDS, gpus=0)).status == "warn"
    assert judged("limits", small).status == "fail"


def test_unlimited_open_files_pass() -> None:
    assert judged("limits", LIMITS | {"open_files": -1}).status == "pass"


def test_a_limit_that_the_user_may_raise_has_a_fix_and_one_that_he_may_not_has_words() -> None:
    mine = judged("limits", LIMITS | {"open_files": 1024})
    assert mine.fix is not None
    assert mine.fix.runnable
    assert "+ulimit -n 4096" in mine.fix.preview
    admins = judged("limits", LIMITS | {"open_files": 1024, "open_files_hard": 1024})
    assert admins.fix is not None
    assert not admins.fix.runnable


def test_the_worst_finding_decides_and_a_skip_never_does() -> None:
    def of(*statuses: Any) -> str:
        return overall(Finding("x", "n", "python", Verdict(status, "s")) for status in statuses)

    assert of("pass", "skip") == "pass"
    assert of("pass", "warn", "skip") == "warn"
    assert of("warn", "unknown") == "unknown"
    assert of("unknown", "fail", "pass") == "fail"


def test_the_report_has_the_designs_shape() -> None:
    document = report([judged("python.env", PASSES["python.env"]), judged("limits", LIMITS | {"shm": None})])
    assert (document["schema_version"], document["status"]) == (1, "fail")
    good, bad = document["findings"]
    assert list(good) == ["id", "node", "status", "summary", "expected", "found", "why", "fix"]
    assert good["fix"] is None
    assert set(bad["fix"]) == {"id", "risk", "preview", "runnable"}


def test_what_a_node_says_cannot_move_the_cursor() -> None:
    finding = judged("shell.bashrc_dup", {"path": "/b", "repeated": [], "prints": "\x1b[2Jhello\x07", "complains": ""})
    assert "\x1b" not in finding_text(finding)
    assert "\x1b[2J" not in finding_text(finding, colour=True)
    assert "hello" in finding_text(finding)


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("3.13.0rc1", (3, 13, 0)), ("17", (17,)), ("5.0.dev1", (5, 0))]
)
def test_versions_are_compared_by_their_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert version_of(version) == numbers


@pytest.mark.parametrize(
    ("version", "requirement", "fits"),
    [
        ("2.2.0+cu118", "==2.2.0", True),
        ("2.2.1", "==2.2.0", False),
        ("2.2", "==2.2.0", True),
        ("4.47.1", ">=4.36,<4.48", True),
        ("4.48.0", ">=4.36,<4.48", False),
        ("3.20.3", "<3.21.0", True),
    ],
)
def test_requirements_are_read_as_pip_reads_them(version: str, requirement: str, fits: bool) -> None:
    assert satisfies(version, requirement) is fits


def test_the_minimum_versions_are_those_of_pyproject() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    stated = dict(re.findall(r'"([A-Za-z_-]+)>=([\d.]+)', project))
    assert {name: stated[name] for name in profiles.MINIMUM} == profiles.MINIMUM
