"""Several processes, as the plan starts them: torchrun, Gloo, DeepSpeed ZeRO 1, 2 and 3 on one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from forked_stage import fork_stage
from safetensors.torch import load_file

from core.files import read_json
from core.runs.directory import RunDirectory
from core.train.checkpoint import latest_verified, step_folders
from core.train.failpoint import VARIABLE

pytestmark = pytest.mark.slow

SIX_STEPS = {"steps": 6, "save_interval": 3, "valid_interval": 3}
MakeTraining = Callable[..., RunDirectory]


def losses(run: RunDirectory, name: str = "loss") -> dict[int, Any]:
    lines = [json.loads(line) for line in run.metrics("pretrain").read_text().splitlines()]
    return {line["step"]: line[name] for line in sorted(lines, key=lambda line: line["attempt"]) if name in line}


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_zero_trains_like_one_process_and_goes_on_after_a_rank_was_killed(
    zero: int, training_run: MakeTraining, run_stage: Any
) -> None:
    alone = training_run(SIX_STEPS, name="alone")
    assert fork_stage(alone, "pretrain").wait() == 0
    run = training_run(SIX_STEPS | {"zero": zero}, cluster={"processes": 2})
    killed = run_stage(run, "pretrain", **{VARIABLE: "files-synced@6"})
    assert killed.returncode != 0
    assert [path.name for path in step_folders(run.checkpoints)] == ["step-3"]
    resumed = run_stage(run, "pretrain")
    assert resumed.returncode == 0, resumed.stdout
    assert "at step 3 (attempt 2)" in resumed.stdout

    for name in ("loss", "val_loss", "grad_norm"):
        assert losses(run, name) == pytest.approx(losses(alone, name), rel=1e-4)
    own = losses(run, "forward_ms")
    assert len(own) == (0 if zero == 3 else 6), "with ZeRO-3 each forward pass waits for the other ranks"
    assert all(len(per_rank) == 2 and min(per_rank) > 0 for per_rank in own.values())
    found = latest_verified(run.checkpoints)
    assert found is not None
    assert (found.step, found.manifest["world_size"], found.manifest["engine"]) == (6, 2, f"DeepSpeed ZeRO-{zero}")
    assert list(found.path.rglob("*.py")) == []
    expected = load_file(alone.checkpoints / "step-6" / "model.safetensors")
    weights = load_file(found.path / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_bf16_checkpoints_hold_the_fp32_master_weights_and_convert(training_run: MakeTraining, run_stage: Any) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    run = training_run(SIX_STEPS | {"zero": 2, "precision": "bf16"}, cluster={"processes": 2})
    done = run_stage(run, "pretrain")
    assert done.returncode == 0, done.stdout
    folder = run.checkpoints / "step-6"
    ours = load_file(folder / "model.safetensors")
    masters = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag="deepspeed")
    for name, weight in ours.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, masters[f"model.{name}"]), name
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in ours.values())
    converted = fork_stage(run, "convert")
    assert converted.wait() == 0, converted.output


def test_a_stop_lets_all_ranks_leave_at_the_same_step(training_run: MakeTraining, run_stage: Any) -> None:
    run = training_run({"steps": 2000, "save_interval": 2000, "valid_interval": 2000}, cluster={"processes": 2})
    plan = next(stage for stage in read_json(run.plan)["stages"] if stage["id"] == "pretrain")
    log = run.root / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            plan["argv"], env={**os.environ, **plan["env"]}, cwd=plan["cwd"], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + 240
            while "step 5/" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            process.kill()
    found = latest_verified(run.checkpoints)
    assert found is not None, log.read_text()
    assert 5 <= found.step < 2000
    assert log.read_text().count("stopped on request") == 2
    assert "error:" not in log.read_text()


def test_one_process_goes_on_with_what_two_under_torchrun_saved(training_run: MakeTraining, run_stage: Any) -> None:
    run = training_run(SIX_STEPS, cluster={"processes": 2})
    killed = run_stage(run, "pretrain", **{VARIABLE: "files-synced@6"})
    assert killed.returncode != 0
    single = training_run(SIX_STEPS, name="single")
    single.checkpoints.rmdir()
    run.checkpoints.rename(single.checkpoints)
    stage = fork_stage(single, "pretrain")
    assert stage.wait() == 0, stage.output
    assert "at step 3 (attempt 1)" in stage.output
    assert (
        "written by 2 process(es) with DeepSpeed ZeRO-1: its optimizer state was dealt out anew to 1 with PyTorch"
        in stage.output
    )
    alone = training_run(SIX_STEPS, name="alone")
    assert fork_stage(alone, "pretrain").wait() == 0
    after = {step: loss for step, loss in losses(alone).items() if step > 3}
    assert losses(single) == pytest.approx(after, rel=1e-6)
