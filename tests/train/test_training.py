"""Pretraining as a process: equal runs, resuming, dying in the middle of a save, stopping, being asked to save."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked_stage import ForkedStage, fork_stage

import core.train
from core.files import read_json, sha256, write_json
from core.runs.directory import RunDirectory
from core.train.checkpoint import MANIFEST, POINTER, InvalidCheckpointError, latest_verified, step_folders, verify
from core.train.failpoint import VARIABLE

NINE_STEPS = {"steps": 9, "save_interval": 3, "valid_interval": 3}
FAILPOINTS = [
    "folder-made",
    "model-written",
    "optimizer-written",
    "files-written",
    "files-synced",
    "manifest-written",
    "folder-synced",
    "renamed",
    "parent-synced",
    "pointer-replaced",
    "old-renamed",
]

MakeTraining = Callable[..., RunDirectory]


def finish(run: RunDirectory, **env: str) -> ForkedStage:
    stage = fork_stage(run, "pretrain", **env)
    assert stage.wait() == 0, stage.output
    return stage


def records(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics("pretrain").read_text().splitlines()]


def lineage(run: RunDirectory, name: str = "loss") -> dict[int, str]:
    """Each step's value as float hex; of a step that was done again, the attempt that counts: the last one."""
    return {r["step"]: float(r[name]).hex() for r in sorted(records(run), key=lambda r: r["attempt"]) if name in r}


def weights(run: RunDirectory, step: int = 9) -> str:
    return sha256(run.checkpoints / f"step-{step}" / "model.safetensors")


@pytest.fixture
def reference(training_run: MakeTraining) -> RunDirectory:
    """An uninterrupted run of nine steps."""
    run = training_run(NINE_STEPS, name="reference")
    finish(run)
    return run


def test_two_runs_with_one_seed_are_identical_and_another_seed_differs(
    training_run: MakeTraining, reference: RunDirectory
) -> None:
    again, other = training_run(NINE_STEPS, name="again"), training_run(NINE_STEPS, name="other", seed=7)
    finish(again)
    finish(other)
    assert lineage(again) == lineage(reference)
    assert lineage(again, "val_loss") == lineage(reference, "val_loss")
    assert weights(again) == weights(reference)
    assert weights(other) != weights(reference)


def test_the_model_learns_and_the_outcome_says_so(training_run: MakeTraining) -> None:
    run = training_run({"steps": 150, "valid_interval": 50, "save_interval": 150, "lr": 1e-2, "min_lr": 1e-3})
    finish(run)
    result = read_json(run.result("pretrain"))
    metrics = result["metrics"]
    assert metrics["step"] == 150
    assert metrics["tokens"] == 150 * 8 * 32
    assert metrics["first_val_loss"] == pytest.approx(5.70, abs=0.1)  # ln 300, before any step
    assert metrics["val_loss"] < 0.6 * metrics["first_val_loss"]
    assert verify(Path(result["outputs"]["checkpoint"])).step == 150
    by_step = {record["step"]: record for record in records(run)}
    assert sorted(by_step) == list(range(151))
    assert [step for step, record in by_step.items() if "val_loss" in record] == [0, 50, 100, 150]
    assert by_step[150].keys() >= {
        "time", "step", "total", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "step_ms", "attempt",
    }  # fmt: skip


@pytest.mark.parametrize("name", FAILPOINTS)
def test_no_checkpoint_is_lost_and_resume_gives_the_same_losses_when_killed_at(
    name: str, training_run: MakeTraining, reference: RunDirectory
) -> None:
    removing = name == "old-renamed"  # of step 3, once step 9 is there as well
    step = 9 if removing else 6
    run = training_run(NINE_STEPS)
    killed = fork_stage(run, "pretrain", **{VARIABLE: f"{name}@{3 if removing else step}"})
    assert killed.wait() == -signal.SIGKILL
    announced = [json.loads(line) for line in run.events.read_text().splitlines()]
    saved = [Path(event["path"]) for event in announced if event["kind"] == "checkpoint"]
    assert [path.name for path in saved] == [f"step-{done}" for done in range(3, step + 3 * removing, 3)]
    for path in saved[1:] if removing else saved:
        verify(path)
    committed = removing or name in ("renamed", "parent-synced", "pointer-replaced")
    found = latest_verified(run.checkpoints)
    assert found is not None
    assert found.step == (step if committed else step - 3)

    finish(run)
    assert lineage(run) == lineage(reference)
    assert weights(run) == weights(reference)
    assert [verify(path).step for path in step_folders(run.checkpoints)] == [9, 6]
    assert {path.name for path in run.checkpoints.iterdir()} == {"step-6", "step-9", POINTER}


def test_every_failpoint_of_the_code_is_tested() -> None:
    source = "".join(file.read_text() for file in Path(core.train.__path__[0]).glob("*.py"))
    assert set(re.findall(r'failpoint\("([a-z-]+)"', source)) == set(FAILPOINTS)


def test_steps_done_again_are_reported_with_a_higher_attempt(training_run: MakeTraining) -> None:
    run = training_run({"steps": 6, "save_interval": 2, "valid_interval": 6})
    assert fork_stage(run, "pretrain", **{VARIABLE: "files-written@4"}).wait() == -signal.SIGKILL
    finish(run)
    steps = [(record["step"], record["attempt"]) for record in records(run)]
    assert steps == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (3, 2), (4, 2), (5, 2), (6, 2)] or steps == [
        (0, 1), (1, 1), (2, 1), (3, 1), (3, 2), (4, 2), (5, 2), (6, 2),
    ]  # fmt: skip


def test_a_resumed_run_draws_the_dropout_it_would_have_drawn(training_run: MakeTraining) -> None:
    gpt2 = {"family": "gpt2", "dropout": 0.2}
    whole, run = training_run(NINE_STEPS, model=gpt2, name="whole"), training_run(NINE_STEPS, model=gpt2)
    assert fork_stage(run, "pretrain", **{VARIABLE: "pointer-replaced@6"}).wait() == -signal.SIGKILL
    finish(run)
    finish(whole)
    assert lineage(run) == lineage(whole)
    assert weights(run) == weights(whole)


@pytest.mark.parametrize(
    "changed", [{"micro_batch": 8}, {"gradient_checkpointing": True}, {"log_interval": 3}, {"micro_batch": 4}]
)
def test_the_result_does_not_depend_on(
    changed: dict[str, Any], training_run: MakeTraining, reference: RunDirectory
) -> None:
    """... how a global batch is cut into micro-batches, on recomputed activations, or on how often it is logged."""
    run = training_run(NINE_STEPS | changed)
    finish(run)
    found, expected = lineage(run), lineage(reference)
    assert sorted(found) == [step for step in sorted(expected) if step % changed.get("log_interval", 1) == 0]
    for step, value in found.items():
        assert float.fromhex(value) == pytest.approx(float.fromhex(expected[step]), rel=1e-5)


def test_bf16_trains_like_fp32(training_run: MakeTraining, reference: RunDirectory) -> None:
    run = training_run(NINE_STEPS | {"precision": "bf16"})
    finish(run)
    for step, value in lineage(run).items():
        assert float.fromhex(value) == pytest.approx(float.fromhex(lineage(reference)[step]), rel=3e-3)
    assert lineage(run) != lineage(reference)


def test_sigterm_saves_and_resume_goes_on_as_if_nothing_had_happened(training_run: MakeTraining) -> None:
    settings = {"steps": 200, "save_interval": 200, "valid_interval": 200}
    whole, run = training_run(settings, name="whole"), training_run(settings)
    stage = fork_stage(run, "pretrain")
    wait_for(lambda: "step 5/" in stage.output, stage)
    stage.process.terminate()
    assert stage.wait() == 130, stage.output
    stopped = latest_verified(run.checkpoints)
    assert stopped is not None
    assert 5 <= stopped.step < 200
    assert read_json(stopped.path / "trainer.json")["samples"] == stopped.step * 8 == stopped.manifest["data_position"]

    finish(run)
    finish(whole)
    assert lineage(run) == lineage(whole)
    assert weights(run, 200) == weights(whole, 200)


def test_a_checkpoint_is_saved_on_request(training_run: MakeTraining) -> None:
    run = training_run({"steps": 200, "save_interval": 200, "valid_interval": 200})
    stage = fork_stage(run, "pretrain")
    wait_for(lambda: "step 3/" in stage.output, stage)
    (run.requests / "checkpoint").touch()
    wait_for(lambda: "checkpoint /" in stage.output, stage)
    wait_for(lambda: not (run.requests / "checkpoint").exists(), stage)
    assert stage.wait() == 0
    steps = [path.name for path in step_folders(run.checkpoints)]
    assert len(steps) == 2
    assert steps[0] == "step-200"


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    training_run: MakeTraining, reference: RunDirectory
) -> None:
    flip_bit(reference.checkpoints / "step-9" / "optimizer.safetensors")
    expected = lineage(reference)
    stage = finish(reference)
    assert "optimizer.safetensors changed since it was written" in stage.output
    assert re.search(r"resuming from .*step-6 at step 6 \(attempt 2\)", stage.output)
    assert lineage(reference) == expected
    assert (reference.checkpoints / "step-9.damaged-1").is_dir()
    assert verify(reference.checkpoints / "step-9").step == 9


def test_nothing_starts_again_from_zero_when_no_checkpoint_verifies(reference: RunDirectory) -> None:
    for folder in step_folders(reference.checkpoints):
        flip_bit(folder / MANIFEST)
    stage = fork_stage(reference, "pretrain")
    assert stage.wait() == 2
    assert "error: no checkpoint in" in stage.output
    assert "Traceback" not in stage.output


def test_a_finished_run_is_not_trained_again(reference: RunDirectory) -> None:
    before = lineage(reference)
    reference.result("pretrain").unlink()
    finish(reference)
    assert len(records(reference)) == 10
    assert lineage(reference) == before
    assert read_json(reference.result("pretrain"))["metrics"]["step"] == 9


@pytest.mark.parametrize("what", ["config", "data"])
def test_checkpoints_of_another(what: str, reference: RunDirectory) -> None:
    """... config or data are moved aside with a warning, and never mixed with the new run's."""
    if what == "config":
        document = read_json(reference.plan)
        document["preset"]["pretrain"]["lr"] = 1e-4
        write_json(reference.plan, document)
    else:
        file = reference.data_prefix.with_name("text_document.bin")
        content = bytearray(file.read_bytes())
        content[0] ^= 1
        file.write_bytes(content)
    stage = finish(reference)
    assert f"belong to another {what}" in stage.output
    assert verify(reference.root / "checkpoints.old-1" / "step-9").step == 9
    assert latest_verified(reference.checkpoints).step == 9
    assert records(reference)[-1]["attempt"] == 2


def test_a_loss_that_is_no_number_stops_the_stage_and_keeps_the_last_good_checkpoint(
    training_run: MakeTraining,
) -> None:
    # The update of the first step is a trillion times too large; what follows from it can't be finite.
    run = training_run({"steps": 6, "lr": 1e38, "clip_grad": 0.0, "save_interval": 6, "warmup_steps": 3})
    stage = fork_stage(run, "pretrain")
    assert stage.wait() == 2, stage.output
    assert re.search(r"error: the loss is not a number any more: step \d", stage.output)
    assert "There is no checkpoint yet" in stage.output
    assert "Traceback" not in stage.output
    assert step_folders(run.checkpoints) == []


def test_a_full_disk_is_told_and_costs_no_checkpoint(training_run: MakeTraining) -> None:
    run = training_run({"steps": 6, "save_interval": 3})
    assert fork_stage(run, "pretrain", **{VARIABLE: "files-written@6"}).wait() == -signal.SIGKILL
    stage = fork_stage(run, "pretrain", TEST_FILE_LIMIT="200000")  # above the weights, below the optimizer's state
    assert stage.wait() == 2, stage.output
    assert re.search(
        r"error: the checkpoint of step 6 could not be written: .*last good checkpoint is .*step-3", stage.output
    )
    assert verify(run.checkpoints / "step-3").step == 3
    assert {path.name for path in run.checkpoints.iterdir()} == {"step-3", POINTER}
    finish(run)


def test_token_files_of_another_tokenizer_are_refused(training_run: MakeTraining) -> None:
    run = training_run()
    tokenizer = read_json(run.huggingface_tokenizer / "tokenizer.json")
    tokenizer["model"]["vocab"] = {piece: n for piece, n in tokenizer["model"]["vocab"].items() if n < 200}
    write_json(run.huggingface_tokenizer / "tokenizer.json", tokenizer)
    stage = fork_stage(run, "pretrain")
    assert stage.wait() == 2
    assert "the tokenizer has only 200 pieces" in stage.output
    assert "Traceback" not in stage.output


def test_token_files_made_with_another_model_of_the_same_size_are_refused(training_run: MakeTraining) -> None:
    run = training_run()
    (run.tokenizer / "tokenizer.model").write_bytes(b"a SentencePiece model")
    manifest = run.data_prefix.with_name("text_document.manifest.json")
    write_json(manifest, {"tokenizer_sha256": sha256(run.tokenizer / "tokenizer.model")})
    finish(run)
    (run.tokenizer / "tokenizer.model").write_bytes(b"another SentencePiece model")
    stage = fork_stage(run, "pretrain")
    assert stage.wait() == 2
    assert "error: the token files were made with another tokenizer than" in stage.output


def test_a_wrong_number_of_processes_is_refused_with_the_numbers(training_run: MakeTraining) -> None:
    stage = fork_stage(training_run(), "pretrain", WORLD_SIZE="3", RANK="0")
    assert stage.wait() == 2
    assert "3 training process(es) are running, the plan says 1" in stage.output


def test_a_planned_gpu_that_is_not_there_is_refused(training_run: MakeTraining) -> None:
    stage = fork_stage(training_run({"device": "cuda"}), "pretrain", CUDA_VISIBLE_DEVICES="")
    assert stage.wait() == 2
    assert "the plan trains on GPUs" in stage.output


def test_the_planned_command_trains_in_a_process_of_its_own(training_run: MakeTraining, run_stage: Any) -> None:
    run = training_run({"steps": 2})
    done = run_stage(run, "pretrain")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("loading PyTorch and transformers\n")
    assert latest_verified(run.checkpoints).step == 2


def wait_for(condition: Callable[[], bool], stage: ForkedStage, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, stage.output
        assert stage.process.is_alive(), stage.output
        time.sleep(0.01)


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InvalidCheckpointError):
        verify(file.parent)
