"""Starting a failed training again: while it makes progress, within its budget, and never a third time at one failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scripted_runs import PRELUDE

from core.files import read_json, write_json
from core.runs.directory import RunDirectory
from core.runs.records import json_records
from core.runs.restart import Failure, why_not_again
from core.runs.start import start_supervisor

from .conftest import Scripted, wait_for_end

ATTEMPT = """
tries = run / 'tries'; tries.write_text(tries.read_text() + 'x' if tries.exists() else 'x'); attempt = len(tries.read_text())
def step(number):
    with open(run / 'stages' / stage / 'metrics.jsonl', 'a') as file: file.write(json.dumps({'step': number, 'loss': 1.0}) + '\\n')
def checkpoint(number):
    folder = run / 'checkpoints' / f'step-{number}'; folder.mkdir(exist_ok=True); (folder / 'manifest.json').touch()
"""


def failure(**values: Any) -> Failure:
    return Failure(**{"kind": "exit", "text": "it broke", "step": 5, "checkpoint": 4, **values})


def records(*failures: Failure) -> list[dict[str, Any]]:
    return [one.record(0.0) for one in failures]


def test_a_first_failure_is_tried_again_where_there_is_a_budget() -> None:
    assert why_not_again(failure(), [], 3) == ""
    assert why_not_again(failure(), [], 0) == "final"
    assert why_not_again(failure(final=True), [], 3) == "final"


def test_the_same_failure_at_the_same_step_is_not_tried_a_third_time() -> None:
    again = why_not_again(failure(text="pid 17 broke at 0x7f"), records(failure(text="pid 4 broke at 0x12")), 3)
    assert again == "the same failure at step 5 for the second time"
    assert why_not_again(failure(step=6), records(failure()), 3) == ""
    assert "before its first step" in why_not_again(failure(step=None), records(failure(step=None)), 3)


def test_a_node_that_is_gone_again_says_nothing_of_the_step() -> None:
    gone = failure(kind="node", node="node1")
    assert why_not_again(gone, records(gone), 3) == ""
    assert "3 restarts without a new checkpoint" in why_not_again(gone, records(gone, gone, gone), 3)


def test_a_new_checkpoint_renews_the_budget() -> None:
    before = records(failure(step=1), failure(step=2))
    assert "2 restarts without a new checkpoint" in why_not_again(failure(step=3), before, 2)
    assert why_not_again(failure(step=3, checkpoint=8), before, 2) == ""


@pytest.fixture
def training(scripted: Scripted):  # type: ignore[no-untyped-def]
    def make(script: str, **cluster: Any) -> RunDirectory:
        run = scripted(pretrain=ATTEMPT + script)
        document = read_json(run.plan)
        document["preset"]["cluster"] |= cluster
        write_json(run.plan, document)
        return run

    return make


def events(run: RunDirectory, kind: str) -> list[Any]:
    return [event for event in json_records(run.events.read_bytes().split(b"\n")) if event["kind"] == kind]


def test_a_training_goes_on_by_itself_as_long_as_it_makes_progress(training) -> None:  # type: ignore[no-untyped-def]
    run = training(
        "step(attempt); checkpoint(attempt)\nif attempt < 4: print('error: broken'); sys.exit(3)\ndone()", restarts=1
    )
    start_supervisor(run)
    document: Any = wait_for_end(run)
    assert document["state"] == "done"
    assert document["stages"]["pretrain"]["attempt"] == 4
    assert [event["step"] for event in events(run, "restart")] == [1, 2, 3]
    assert len(document["stages"]["pretrain"]["failures"]) == 3


def test_a_training_that_breaks_at_one_step_stops_with_its_evidence(training) -> None:  # type: ignore[no-untyped-def]
    run = training("step(7)\nprint(f'error: bad sample (pid {os.getpid()})'); sys.exit(3)", restarts=3)
    start_supervisor(run)
    stage: Any = wait_for_end(run)["stages"]["pretrain"]  # type: ignore[index]
    assert stage["attempt"] == 2
    assert "the same failure at step 7 for the second time" in stage["error"]
    assert stage["evidence"]["text"].startswith("bad sample")


def test_a_budget_without_progress_runs_out_and_survives_slurms_own_restart(
    training, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    run = training("step(attempt)\nprint('error: broken'); sys.exit(3)", restarts=2)
    start_supervisor(run)
    stage: Any = wait_for_end(run)["stages"]["pretrain"]  # type: ignore[index]
    assert stage["attempt"] == 3
    assert "2 restarts without a new checkpoint" in stage["error"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    start_supervisor(run)
    stage = wait_for_end(run)["stages"]["pretrain"]  # type: ignore[index]
    assert stage["attempt"] == 4
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    start_supervisor(run)
    stage = wait_for_end(run)["stages"]["pretrain"]  # type: ignore[index]
    assert stage["attempt"] == 7


def test_wrong_input_and_a_machine_of_its_own_are_not_tried_again(training) -> None:  # type: ignore[no-untyped-def]
    wrong = training("step(1)\nprint('error: no such key'); sys.exit(64)", restarts=3)
    start_supervisor(wrong)
    document: Any = wait_for_end(wrong)
    assert (document["exit_code"], document["stages"]["pretrain"]["attempt"]) == (64, 1)


RANKS = """
step(1)
code = pathlib.Path(sys.argv[0]).with_name('rank.py')
ranks = [subprocess.Popen([sys.executable, code, stage, run], env={**os.environ, 'RANK': str(rank)}) for rank in range(2)]
time.sleep(1.5)
if attempt == 1:
    os.kill(ranks[1].pid, signal.SIGSTOP)
    time.sleep(60)
for rank in ranks: rank.kill()
done()
"""
RANK = """
sys.path.insert(0, str(run / 'code'))
from core.runs.directory import RunDirectory
from core.stages.entry import write_stacks_when_asked
write_stacks_when_asked(RunDirectory(run).stacks(stage), int(os.environ['RANK']))
def waits_for_the_others(): time.sleep(60)
waits_for_the_others()
"""


def test_a_training_that_takes_no_steps_is_ended_with_every_stack_saved(training, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "rank.py").write_text(PRELUDE + RANK)
    run = training(RANKS, restarts=1, hang_timeout=0.06)
    document = read_json(run.plan)
    next(stage for stage in document["stages"] if stage["id"] == "pretrain")["derived"]["processes"] = 2
    write_json(run.plan, document)
    start_supervisor(run)
    end: Any = wait_for_end(run)
    assert end["state"] == "done"
    (hang,) = events(run, "trouble")
    assert hang["trouble"] == "hang"
    assert "rank 0: waits_for_the_others (rank.py:" in hang["text"]
    assert "rank 1: no answer" in hang["text"]
    assert "waits_for_the_others" in (run.stacks("pretrain") / "rank-0.txt").read_text()
    assert "no step for 4 s" in end["stages"]["pretrain"]["failures"][0]["text"]
