"""A foreign training under our supervisor: followed, stopped, killed and gone on with; what it leaves is what our own trainer leaves."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_runs import supervise, wait_for, wait_for_end

from conftest import MakeRun
from core.data.indexed import write_indexed
from core.errors import InputError, WizardError
from core.files import read_json, write_json
from core.runs import requests
from core.runs.directory import RunDirectory
from core.runs.driver import driver_of, newest_checkpoint
from core.runs.process import run_processes
from core.runs.records import json_records
from core.runs.start import start_supervisor

from .log_format import iteration, validation

STEPS = 80
PRESET: dict[str, Any] = {
    "model": {"family": "gpt2", "layers": 2, "hidden_size": 64, "heads": 4, "sequence_length": 64},
    "pretrain": {
        "backend": "megatron", "device": "cpu", "steps": STEPS, "global_batch": 4, "micro_batch": 4,
        "valid_interval": 20, "save_interval": 10, "log_interval": 2,
    },
}  # fmt: skip
MakeMegatron = Callable[..., RunDirectory]


@pytest.fixture
def make_megatron(make_run: MakeRun, tmp_path: Path) -> MakeMegatron:
    """`make_megatron(name, FAKE_EXITS_AT="30")`: a run of the stage pretrain alone, whose checkout is the fake one."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copy(Path(__file__).with_name("fake_pretrain_gpt.py"), checkout / "pretrain_gpt.py")

    def make(name: str = "r", megatron: dict[str, Any] | None = None, **env: str) -> RunDirectory:
        section = {"checkout": str(checkout), "python": sys.executable, **(megatron or {})}
        run = make_run({**PRESET, "megatron": section}, name)
        run.data_prefix.parent.mkdir(parents=True)
        write_indexed(run.data_prefix, [np.arange(50) + n for n in range(20)], np.uint16)
        document = read_json(run.plan)
        for stage in document["stages"]:
            if stage["id"] != "pretrain":
                stage |= {"skip": "not in this test", "outputs": {}}
                continue
            script = next(place for place, word in enumerate(stage["argv"]) if word.endswith("pretrain_gpt.py"))
            stage["argv"] = [
                sys.executable,
                *stage["argv"][script:],
            ]  # without deepspeed's launcher, which may not be here
            stage["env"] |= {"FAKE_FORMATS": str(Path(__file__).parent), **env}
        write_json(run.plan, document)
        return run

    return make


def stage_of(run: RunDirectory) -> dict[str, Any]:
    return next(dict(stage) for stage in read_json(run.plan)["stages"] if stage["id"] == "pretrain")


def checkpoints(run: RunDirectory) -> Path:
    return Path(stage_of(run)["outputs"]["checkpoints"])


def records(run: RunDirectory) -> list[dict[str, Any]]:
    path = run.metrics("pretrain")
    return list(json_records(path.read_bytes().split(b"\n"))) if path.exists() else []


def losses(run: RunDirectory) -> dict[int, float]:
    """By step; a later attempt replaces what it has done again."""
    return {record["step"]: record["loss"] for record in records(run) if "loss" in record}


def events(run: RunDirectory, kind: str) -> list[dict[str, Any]]:
    return [event for event in json_records(run.events.read_bytes().split(b"\n")) if event["kind"] == kind]


def has_reached(run: RunDirectory, step: int, attempt: int) -> bool:
    return any(record["attempt"] == attempt and record["step"] >= step for record in records(run))


def to_its_end(run: RunDirectory) -> dict[str, Any]:
    start_supervisor(run)
    return dict(wait_for_end(run))


def test_a_training_to_its_end(make_megatron: MakeMegatron) -> None:
    run = make_megatron()
    document = to_its_end(run)
    assert document["state"] == "done", document
    rows = records(run)
    assert {row["total"] for row in rows} == {STEPS}  # not what the log shows
    step = next(row for row in rows if row["step"] == 10)
    assert {"tokens", "loss", "lr", "tokens_per_s", "mfu", "step_ms", "skipped_steps", "attempt", "time"} <= step.keys()
    assert step["tokens"] == 10 * 4 * 64
    assert "grad_norm" not in step  # not printed in fp32
    assert [row["step"] for row in rows if "val_loss" in row] == [20, 40, 60, 80, 80]
    assert [event["step"] for event in events(run, "checkpoint")] == list(range(10, STEPS + 1, 10))
    assert events(run, "warning") == []
    result = read_json(run.result("pretrain"))
    assert result["outputs"]["checkpoint"] == str(checkpoints(run) / f"global_step{STEPS}")
    metrics = result["metrics"]
    assert (metrics["step"], metrics["tokens"]) == (STEPS, STEPS * 4 * 64)
    assert metrics["val_loss"] == pytest.approx(metrics["loss"] + 0.2, abs=1e-5)
    assert metrics["first_val_loss"] == pytest.approx(losses(run)[20] + 0.1, abs=1e-5)


def test_killed_stopped_and_left_alone_it_goes_on_with_the_same_losses(make_megatron: MakeMegatron) -> None:
    whole = make_megatron("whole")
    to_its_end(whole)
    run = make_megatron("run", FAKE_STEP_S="0.05")

    start_supervisor(run)
    wait_for(lambda: has_reached(run, 24, 1))
    for process in run_processes(run.root):
        if "pretrain_gpt.py" in " ".join(process.cmdline()):
            process.kill()
    document = wait_for_end(run)
    assert document["state"] == "failed"
    step = newest_checkpoint(run, stage_of(run))
    assert step is not None
    assert step >= 20
    newest = checkpoints(run) / f"global_step{step}"
    with (newest / "layer_02-model_00-model_states.pt").open("r+b") as file:
        file.truncate(30)  # as a crash of the machine leaves it

    start_supervisor(run)
    wait_for(lambda: has_reached(run, 34, 2))
    requests.ask(run, requests.STOP)
    assert wait_for_end(run)["state"] == "stopped"
    first = next(record["step"] for record in records(run) if record["attempt"] == 2)
    assert first == step - 10 + 2
    assert any("is not a complete checkpoint" in event["text"] for event in events(run, "warning"))
    assert list(checkpoints(run).glob(f"{newest.name}.incomplete-*"))
    saved = events(run, "checkpoint")[-1]["step"]

    supervisor = supervise(run)
    wait_for(lambda: has_reached(run, saved + 10, 3))
    assert next(record["step"] for record in records(run) if record["attempt"] == 3) in (saved + 1, saved + 2)
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    assert to_its_end(run)["state"] == "done"
    assert losses(run) == losses(whole)


def test_one_that_dies_while_it_saves_goes_on_from_the_checkpoint_before(make_megatron: MakeMegatron) -> None:
    run = make_megatron(FAKE_DIES_SAVING="30")
    document = to_its_end(run)
    assert document["state"] == "failed"
    assert "SIGKILL" in document["stages"]["pretrain"]["error"]
    plan = read_json(run.plan)
    del next(stage for stage in plan["stages"] if stage["id"] == "pretrain")["env"]["FAKE_DIES_SAVING"]
    write_json(run.plan, plan)
    assert to_its_end(run)["state"] == "done"
    assert next(record["step"] for record in records(run) if record["attempt"] == 2) == 22
    assert (checkpoints(run) / "latest").read_text() == f"global_step{STEPS}"


def test_a_checkpoint_that_was_not_whole_yet_is_looked_at_once_more_at_the_end(make_megatron: MakeMegatron) -> None:
    run = make_megatron()
    to_its_end(run)
    said: list[tuple[str, Any]] = []
    last = driver(run, said)
    last._saved, last._unseen = {STEPS}, {STEPS: (time.monotonic(), time.monotonic() + 60)}
    last.follow()
    assert [values["step"] for kind, values in said if kind == "checkpoint" and values["step"] == STEPS] == []
    last.finish(0)
    assert [values["step"] for kind, values in said if kind == "checkpoint" and values["step"] == STEPS] == [STEPS]


def test_one_that_ends_before_its_last_step_is_not_done(make_megatron: MakeMegatron) -> None:
    run = make_megatron(FAKE_EXITS_AT="30")
    stage = to_its_end(run)["stages"]["pretrain"]
    assert stage["state"] == "failed"
    assert stage["error"] == "the training ended by itself at step 30 of 80: exiting program after 60.0 minutes"
    assert not run.result("pretrain").exists()


def test_a_log_that_cannot_be_read_ends_no_training(make_megatron: MakeMegatron) -> None:
    said = f"saving checkpoint at iteration {'9' * 5000} to /x"  # Python makes no number of so many digits
    run = make_megatron(FAKE_SAYS=said, FAKE_STEP_S="0.02")
    assert to_its_end(run)["state"] == "done"
    assert max(losses(run)) == STEPS


def test_a_checkpoint_on_request_is_answered(make_megatron: MakeMegatron) -> None:
    run = make_megatron(FAKE_STEP_S="0.1")
    start_supervisor(run)
    wait_for(lambda: has_reached(run, 2, 1))
    requests.ask(run, requests.CHECKPOINT)
    wait_for(lambda: bool(events(run, "warning")))
    assert "Megatron saves every 10 steps" in events(run, "warning")[0]["text"]
    assert requests.pending(run, requests.CHECKPOINT) is None
    requests.ask(run, requests.STOP)
    wait_for_end(run)


# --- Without a process


def driver(run: RunDirectory, said: list[tuple[str, Any]] | None = None) -> Any:
    return driver_of(run, stage_of(run), 1, lambda kind, **values: [] if said is None else said.append((kind, values)))


def test_what_is_known_only_now_is_filled_in(make_megatron: MakeMegatron) -> None:
    run = make_megatron()
    stage = stage_of(run)
    argv = driver(run).prepare()["argv"]
    tensorboard = argv[argv.index("--tensorboard-dir") + 1]
    assert os.uname().nodename in tensorboard
    assert time.strftime("%Y.%m.%d_") in tensorboard
    assert not [word for word in argv if "{" in word]
    assert read_json(Path(stage["derived"]["ds_config_file"])) == stage["derived"]["ds_config"]
    assert checkpoints(run).is_dir()


def test_what_nodes_will_know_stays_open(make_megatron: MakeMegatron) -> None:
    run = make_megatron()
    document = read_json(run.plan)
    stage = next(stage for stage in document["stages"] if stage["id"] == "pretrain")
    stage["launcher"] = "ssh"
    stage["argv"].insert(1, "--master-port={master_port}")
    write_json(run.plan, document)
    argv = driver(run).prepare()["argv"]
    assert argv[1] == "--master-port={master_port}"
    assert not [word for word in argv[2:] if "{" in word]


def test_it_starts_from_elsewhere_only_while_it_has_nothing_of_its_own(
    make_megatron: MakeMegatron, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = make_megatron(megatron={"start_from": str(elsewhere)})
    with pytest.raises(InputError, match=r"megatron\.start_from"):
        driver(run).prepare()
    (elsewhere / "latest").write_text("global_step7")
    argv = driver(run).prepare()["argv"]
    assert argv[argv.index("--load") + 1] == str(elsewhere)
    assert "--finetune" in argv
    other = make_megatron("other")
    to_its_end(other)
    shutil.copytree(checkpoints(other), checkpoints(run), dirs_exist_ok=True)
    argv = driver(run).prepare()["argv"]
    assert argv[argv.index("--load") + 1] == str(checkpoints(run))
    assert "--finetune" not in argv


def test_going_on_from_another_runs_checkpoint_is_said(make_megatron: MakeMegatron, tmp_path: Path) -> None:
    shared = {"output": str(tmp_path / "shared")}
    first, second = make_megatron("a", shared), make_megatron("b", shared)
    for run, words in ((first, []), (second, ["goes on from step 80", "where another run left it"])):
        assert to_its_end(run)["state"] == "done"
        said = " ".join(str(event["text"]) for event in events(run, "warning"))
        assert ("goes on from step" in said) == bool(words)
        assert all(word in said for word in words)


def test_without_a_checkout_nothing_starts(make_megatron: MakeMegatron, tmp_path: Path) -> None:
    run = make_megatron()
    (tmp_path / "checkout" / "pretrain_gpt.py").unlink()
    stage = to_its_end(run)["stages"]["pretrain"]
    assert "is no Megatron-DeepSpeed checkout" in stage["error"]
    assert stage["evidence"]["hint"]


def test_without_its_python_nothing_starts(make_megatron: MakeMegatron, tmp_path: Path) -> None:
    run = make_megatron()
    document = read_json(run.plan)
    stage = next(stage for stage in document["stages"] if stage["id"] == "pretrain")
    stage["argv"][0] = str(tmp_path / "no python")
    write_json(run.plan, document)
    with pytest.raises(InputError, match=r"is not a program") as found:
        driver(run).prepare()
    assert "megatron.python" in found.value.hint


def test_settings_that_name_another_folder_do_not_begin_anew_unsaid(make_megatron: MakeMegatron) -> None:
    run = make_megatron()
    to_its_end(run)
    before = checkpoints(run)
    document = read_json(run.plan)
    stage = next(stage for stage in document["stages"] if stage["id"] == "pretrain")
    after = before.with_name("gpt_of_more_tokens")
    stage["argv"] = [str(after) if word == str(before) else word for word in stage["argv"]]
    stage["outputs"]["checkpoints"] = str(after)
    write_json(run.plan, document)
    with pytest.raises(InputError, match=rf"up to step {STEPS} are in {before}") as found:
        driver(run).prepare()
    assert after.name in found.value.hint
    assert not after.exists()
    before.rename(after)  # as the hint says
    said: list[tuple[str, Any]] = []
    driver(run, said).prepare()
    assert [values for kind, values in said if kind == "warning"] == []


def test_an_order_of_other_token_files_is_put_aside(make_megatron: MakeMegatron) -> None:
    run = make_megatron()
    cache = run.data_prefix.parent / "index-cache"
    cache.mkdir()
    said = {"Data prefix": run.data_prefix, "Dataset name": "train", "Number of samples": 4, "Number of epochs": 1}
    said |= {"Sequence length": 64, "Random seed": 1234, "Split": "100,0,0"}
    words = "".join(f"{name} {value}\n" for name, value in said.items())
    (cache / "a.dsc").write_text(f"GPT Dataset\n\n{words}")
    np.save(cache / "a_doc_idx.npy", np.arange(999, dtype=np.int32))
    np.save(cache / "a_sample_idx.npy", np.zeros((5, 2), np.int64))
    np.save(cache / "a_shuffle_idx.npy", np.arange(4, dtype=np.uint32))
    events: list[tuple[str, Any]] = []
    driver(run, events).prepare()
    assert sorted(path.name for path in cache.iterdir()) == [
        "a.dsc.bak", "a_doc_idx.npy.bak", "a_sample_idx.npy.bak", "a_shuffle_idx.npy.bak",
    ]  # fmt: skip
    assert any(kind == "warning" and "orders of samples" in values["text"] for kind, values in events)


def followed(run: RunDirectory, *lines: str) -> list[tuple[str, Any]]:
    """The events of a log with these lines, the last without its end."""
    said: list[tuple[str, Any]] = []
    one = driver(run, said)
    one.prepare()
    said.clear()
    with run.log("pretrain").open("a") as log:
        for line in lines:
            half = len(line) // 2
            for part in (line[:half], f"{line[half:]}\n"):
                log.write(part)
                log.flush()
                one.follow()
    return said


def test_overflows_are_skipped_steps_and_a_vanished_loss_is_a_record_without_a_number(
    make_megatron: MakeMegatron,
) -> None:
    run = make_megatron()
    overflow = "[deepspeed] OVERFLOW! Rank {} Skipping step. Attempted loss scale: 2048, reducing to 1024"
    followed(
        run,
        iteration(2, fp16=True),
        overflow.format(0),
        overflow.format(1),  # the same step
        overflow.format(0),
        iteration(4, loss=None, fp16=True),
        validation(4, 7.5),
        validation(4, 7.6, "test"),
    )
    first, second, third = records(run)
    assert (first["skipped_steps"], second["skipped_steps"]) == (0, 2)
    assert (first["loss_scale"], first["grad_norm"], first["loss"]) == (2048, 18.604, 7.5)
    assert second["loss"] is None
    assert (third["step"], third["val_loss"]) == (4, 7.5)


def test_ranks_that_are_not_what_was_planned_are_told_of(make_megatron: MakeMegatron) -> None:
    run = make_megatron()
    layout = "using world size: 2, data-parallel-size: 2, sequence-parallel size: 1, tensor-model-parallel size: 1, "
    said = followed(
        run, layout + "pipeline-model-parallel size: 1 ", "  successfully loaded checkpoint from /x at iteration 10"
    )
    warnings = [values["text"] for kind, values in said if kind == "warning"]
    assert warnings[:2] == [
        "the ranks say that processes is 2; the plan says 1",
        "the ranks say that data parallel is 2; the plan says 1",
    ]
    assert "from step 10" in warnings[2]


def test_a_rank_that_was_killed_is_named_though_the_launcher_ended_by_itself(make_megatron: MakeMegatron) -> None:
    run = make_megatron()
    one = driver(run)
    one.prepare()
    run.log("pretrain").write_text(f"{iteration(12)}\n['python'] exits with return code = -9\n")
    assert one.finish(247) == "a rank was killed by SIGKILL (out of memory?) after step 12"
    assert not run.result("pretrain").exists()


def test_a_folder_that_cannot_be_made_is_said_before_the_start(make_megatron: MakeMegatron, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = make_megatron(megatron={"output": str(tmp_path / "file" / "below")})
    with pytest.raises(WizardError, match=r"cannot be written"):
        driver(run).prepare()
