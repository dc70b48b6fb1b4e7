"""A node with eight GPUs, by a libnvidia-ml.so.1 of our own: everything above it is the real probe, verb and judges."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import wizard
from core.doctor.checks import CHECKS
from core.doctor.examine import examine
from core.doctor.needs import Needs
from core.doctor.verb import choose_checks

Findings = dict[str, dict[str, Any]]
Node = Callable[..., Findings]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", str(folder / "libnvidia-ml.so.1"), str(source)], check=True)
    return folder


@pytest.fixture
def node(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """`node("temperature=95", 3)`: the findings of eight GPUs, the fourth of which is hot; or of a first line alone.

    Set up only, for a verb of its own, where it is not to be `looked_at`.
    """

    def look(change: str = "", index: int = 7, alone: str = "", looked_at: bool = True) -> Findings:
        state = tmp_path / "state"
        lines = [change if number == index and change else "gpu" for number in range(8)]
        state.write_text((alone or "\n".join(lines)) + "\n")
        monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
        monkeypatch.setenv("FAKE_NVML_FILE", str(state))
        if not looked_at:
            return {}
        checks = choose_checks(CHECKS, "quick", ["gpu,cuda.driver"], [])
        needs = Needs(stages=("pretrain",), python=sys.executable, gpus=8)
        return {finding.id: finding.document() for finding in examine(needs, checks, "here")}

    return look


def statuses(findings: Findings) -> dict[str, str]:
    return {check: finding["status"] for check, finding in findings.items()}


def test_a_healthy_node_gives_no_warning(node: Node, tmp_path: Path) -> None:
    findings = node()
    assert set(statuses(findings).values()) <= {"pass", "skip"}, findings
    assert findings["gpu.count"]["summary"] == "8x NVIDIA H100 80GB HBM3, 80 GiB"
    assert findings["cuda.driver"]["summary"] == "driver 580.65.06, for CUDA up to 13.0"
    assert findings["gpu.nvlink"]["summary"] == "18 NVLinks a GPU"
    done = wizard("doctor", "--only", "gpu,cuda.driver", cwd=tmp_path)  # the whole verb, its plan by nvidia-ml-py
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "8x NVIDIA H100" in done.stdout


@pytest.mark.parametrize(
    ("change", "check", "status", "said"),
    [
        ("ecc_uncorrected=2", "gpu.ecc", "fail", "GPU 3: 2 uncorrected errors"),
        ("ecc_corrected=99999", "gpu.ecc", "warn", "GPU 3: 99999 corrected errors"),
        ("pending=1", "gpu.ecc", "fail", "GPU 3: row remapping pending"),
        ("reasons=128", "gpu.throttle", "fail", "GPU 3: hardware slowdown"),
        ("reasons=32", "gpu.throttle", "warn", "GPU 3: slowed down by temperature"),
        ("limit=350000", "gpu.clocks", "warn", "GPU 3: power limit 350 W of 700 W"),
        ("temperature=84", "gpu.temp_power", "warn", "GPU 3: 84 °C / 87 °C"),
        ("temperature=90", "gpu.temp_power", "fail", "GPU 3: 90 °C / 87 °C"),
        ("links=17", "gpu.nvlink", "fail", "GPU 3: 17 of 18 links active"),
        ("width=4", "gpu.pcie", "warn", "GPU 3: x4 / x16"),
        ("persistence=0", "gpu.persistence", "warn", "off on GPU 3"),
        ("mig=1", "gpu.count", "warn", "MIG is on"),
        ("lost=1", "gpu.count", "fail", "GPU 3: GPU is lost"),
        ("used_mib=40000", "gpu.busy", "fail", "held by processes that are not seen"),
    ],
)
def test_a_fault_of_one_gpu_is_named_and_nothing_else_is(
    node: Node, change: str, check: str, status: str, said: str
) -> None:
    findings = node(change, 3)
    bad = {name: value for name, value in statuses(findings).items() if value not in ("pass", "skip")}
    assert bad == {check: status}
    assert said in findings[check]["summary"] + findings[check]["found"]


def test_memory_held_by_an_own_process_is_named_with_how_to_end_it(node: Node) -> None:
    findings = node(f"pid={os.getpid()} pid_mib=9000 used_mib=9000", 0)
    assert findings["gpu.busy"]["status"] == "fail"
    assert f"pid {os.getpid()} (" in findings["gpu.busy"]["found"]
    assert findings["gpu.busy"]["fix"]["preview"] == [f"kill {os.getpid()}"]
    assert findings["gpu.busy"]["fix"]["runnable"] is False


def test_a_driver_of_two_versions_is_named_and_what_it_hides_is_unknown(node: Node) -> None:
    findings = node(alone="init=18")
    assert findings["cuda.driver"]["status"] == "fail"
    assert "different versions" in findings["cuda.driver"]["summary"]
    assert "Driver/library version mismatch" in findings["cuda.driver"]["found"]
    assert statuses(findings)["gpu.ecc"] == "unknown"


def test_a_driver_that_blocks_costs_its_own_checks_only(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looks at it: the probe's, and the plan's by nvidia-ml-py."""
    monkeypatch.setenv("LLM_WIZARD_PROBE_TIMEOUT", "1.5")
    node(alone="block", looked_at=False)
    done = wizard("doctor", "--only", "gpu,cuda.driver", "--json", cwd=tmp_path)
    assert done.returncode == 3, done.stdout
    findings = {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert statuses(findings)["gpu.ecc"] == statuses(findings)["cuda.driver"] == "unknown"
    assert "timeout" in findings["gpu.ecc"]["found"]
    assert statuses(findings)["gpu.fabricmanager"] == "skip"
    assert "Traceback" not in done.stderr


def test_a_gpu_that_has_fallen_off_the_bus_stops_the_plan_instead_of_making_it_one_for_the_cpu(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node("lost=1", 3, looked_at=False)
    refused = wizard("plan", "quickstart", cwd=tmp_path)
    assert refused.returncode == 2
    assert "GPU 3 does not answer: GPU is lost" in refused.stderr
    assert "CUDA_VISIBLE_DEVICES=0,1,2,4,5,6,7" in refused.stderr
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,4,5,6,7")
    assert '"cuda"' in wizard("plan", "quickstart", "--json", cwd=tmp_path).stdout
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # asked for: the CPU
    assert '"cuda"' not in wizard("plan", "quickstart", "--json", cwd=tmp_path).stdout


def test_a_driver_that_does_not_work_stops_the_plan(node: Node, tmp_path: Path) -> None:
    node(alone="init=18", looked_at=False)
    refused = wizard("plan", "quickstart", cwd=tmp_path)
    assert refused.returncode == 2
    assert "the NVIDIA driver does not work" in refused.stderr
    node(alone="init=9", looked_at=False)  # no driver loaded: a machine without GPUs
    assert wizard("plan", "quickstart", cwd=tmp_path).returncode == 0
