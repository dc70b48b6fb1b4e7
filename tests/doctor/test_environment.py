"""The environment stage on this machine, whole and broken: the probe is real, and so are the broken torch packages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeRun, RunStage
from core.doctor.environment import summary_of
from core.doctor.finding import Finding, Verdict
from core.doctor.fix import Command, Fix
from core.doctor.needs import needs_of
from core.files import read_json
from core.runs.directory import RunDirectory

SMALL = {"model": {"layers": 2, "hidden_size": 64, "heads": 2, "sequence_length": 64}, "tokenizer": {"vocab_size": 512}}
BROKEN = {
    "raises": "raise ImportError('libtorch_cuda.so: undefined symbol: ncclCommInit')",
    "hangs": "import time; time.sleep(1000)",
}


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path) -> RunDirectory:
    return make_run({"corpus": {"script": str(tmp_path / "none.py")}, **SMALL})


def broken_torch(tmp_path: Path, run: RunDirectory, code: str) -> dict[str, str]:
    """An environment in which `import torch` finds a package of ours first."""
    package = tmp_path / "broken" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    return {"PYTHONPATH": f"{package.parent}{os.pathsep}{run.code}", "LLM_WIZARD_PROBE_TIMEOUT": "2"}


def findings(run: RunDirectory) -> dict[str, dict[str, Any]]:
    return {finding["id"]: finding for finding in read_json(run.stage("environment") / "report.json")["findings"]}


def test_this_machine_is_fit_for_the_quickstart(run: RunDirectory, run_stage: RunStage) -> None:
    done = run_stage(run, "environment")
    assert done.returncode == 0, done.stdout
    found = findings(run)
    assert found["python.pins"]["status"] == "pass"
    assert found["cuda.torch_sees_gpu"]["status"] == "pass"
    assert "fail" not in {finding["status"] for finding in found.values()}
    result = read_json(run.result("environment"))
    assert sum(result["metrics"].values()) == len(found)
    assert all(finding_id in done.stdout for finding_id in found)


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_torch_is_found_and_every_other_check_is_still_made(
    how: str, tmp_path: Path, run: RunDirectory, run_stage: RunStage
) -> None:
    done = run_stage(run, "environment", **broken_torch(tmp_path, run, BROKEN[how]))
    found = findings(run)
    torch = found.pop("cuda.torch_sees_gpu")
    assert {finding["status"] for finding in found.values()} <= {"pass", "skip", "warn"}, found
    if how == "hangs":  # it could not be observed; that alone does not stop the run
        assert (torch["status"], done.returncode) == ("unknown", 0)
        assert "timeout" in torch["found"]
        return
    assert (torch["status"], done.returncode) == ("fail", 2)
    assert "error: cuda.torch_sees_gpu: torch does not import" in done.stdout
    assert "undefined symbol: ncclCommInit" in torch["found"]
    assert "Traceback" not in done.stdout


def test_a_python_without_the_packages_is_told_what_to_install(
    make_run: MakeRun, run_stage: RunStage, tmp_path: Path
) -> None:
    import venv

    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    run = make_run({"corpus": {"script": "none.py"}, "cluster": {"python": str(python)}, **SMALL})
    document = read_json(run.plan)  # the fixture gathers facts of this Python; the preset's is the other one
    document["stages"][0]["derived"]["python"] = str(python)
    run.plan.write_text(json.dumps(document))
    failed = run_stage(run, "environment")
    assert failed.returncode == 2
    pins = findings(run)["python.pins"]
    assert pins["status"] == "fail"
    assert pins["fix"]["preview"][0].startswith(f"{python} -m pip install ")
    assert "'torch>=2.6'" in pins["fix"]["preview"][0]


def test_a_training_python_that_does_not_run_is_named(run: RunDirectory, run_stage: RunStage, tmp_path: Path) -> None:
    """One that is not there at all: test_verb.py."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no modules here; exit 1\n")
    python.chmod(0o755)
    document = read_json(run.plan)
    document["stages"][0]["derived"]["python"] = str(python)
    run.plan.write_text(json.dumps(document))
    failed = run_stage(run, "environment")
    assert failed.returncode == 2
    assert f"error: python.env: {python} does not run" in failed.stdout
    found = findings(run)
    # What concerns the machine is looked at all the same.
    assert {found[name]["status"] for name in ("limits", "fs.space", "build.ninja")} == {"pass"}
    assert {found[name]["status"] for name in ("python.pins", "cuda.torch_sees_gpu")} == {"unknown"}
    assert "does not run" in found["python.pins"]["found"]


def test_what_is_skipped_needs_nothing(make_run: MakeRun) -> None:
    document = read_json(make_run(dict(SMALL)).plan)
    for stage in document["stages"]:
        stage["skip"] = "" if stage["id"] in ("environment", "tokenizer") else "not now"
    needs = needs_of(document)
    assert set(needs.packages) == {"orjson", "psutil", "pydantic", "sentencepiece", "tokenizers", "transformers"}
    assert not needs.torch
    assert (needs.gpus, needs.disk, needs.memory, needs.builds_kernels) == (0, 0, 0, False)


def test_several_processes_need_deepspeed_its_compiler_and_shared_memory(make_run: MakeRun) -> None:
    settings = {"cluster": {"processes": 2}, "pretrain": {"device": "cpu"}, "wandb": {"mode": "offline"}}
    needs = needs_of(read_json(make_run(SMALL | settings).plan))
    assert "deepspeed" in needs.packages
    assert "wandb" in needs.packages
    assert needs.builds_kernels
    assert (needs.processes, needs.shared_memory) == (2, 1 << 30)


def test_many_failed_checks_are_named_and_those_first_that_need_a_person() -> None:
    def failed(check: str, fix: Fix | None) -> Finding:
        return Finding(check, "all", "gpu", Verdict("fail", f"{check} is wrong", fix=fix))

    mended = Fix("setup.x", "safe", (Command(("install", "x")),))
    findings = [failed(f"build.{name}", mended) for name in "abc"] + [failed("gpu.count", None)]
    assert summary_of(findings).startswith("gpu.count: gpu.count is wrong; build.a: ")
    assert summary_of(findings).endswith("; and 1 more: build.c")
