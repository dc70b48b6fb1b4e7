"""Runs as jobs of a real Slurm: submitted, queued, saved at the time limit, queued again, cancelled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_runs import Scripted, wait_for

from core.cluster.slurm_script import IN_JOB
from core.files import read_json, write_json
from core.runs.directory import RunDirectory
from core.runs.lock import take_lock

CALL = """
import json, sys
from core.cluster import slurm_job
from core.cluster.slurm_section import SlurmSection
from core.errors import WizardError
from core.runs.directory import RunDirectory
from core.runs.state import read_status
from pathlib import Path
run, section = RunDirectory(Path(sys.argv[1])), SlurmSection.model_validate_json(sys.argv[2])
try:
    print(json.dumps(%s))
except WizardError as error:
    print(json.dumps({"code": error.exit_code, "text": str(error)}))
"""
STEPS = """
def stop(*_):
    (run / 'saved').open('a').write(os.environ.get('SLURM_RESTART_COUNT', '0') + '\\n')
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
if (run / 'saved').exists() and not (run / 'never_ends').exists():
    done(); sys.exit(0)
print('at work', flush=True)
time.sleep(120)
"""


@pytest.fixture
def on_head(slurm: Any) -> Callable[..., Any]:
    """`on_head("slurm_job.submit(run, section, sys.executable)", run, {...})`: called on the machine where jobs are submitted."""

    def call(expression: str, run: RunDirectory, section: dict[str, Any] | None = None, **env: str) -> Any:
        argv = [sys.executable, "-c", CALL % expression, str(run.root), json.dumps(section or {})]
        done = slurm(argv, env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


SUBMIT = "slurm_job.submit(run, section, sys.executable)"
STATUS = "read_status(run).document"


def wait_for_status(on_head: Callable[..., Any], run: RunDirectory, state: str, seconds: float = 60) -> dict[str, Any]:
    """The status document once it has this state; a call each time, so that no answer of Slurm's is an old one."""
    deadline = time.monotonic() + seconds
    while (document := on_head(STATUS, run))["state"] != state:
        assert time.monotonic() < deadline, document
        time.sleep(0.2)
    return document


def start_now(slurm: Any, job: str, restarts: int) -> None:
    """See a job begin again that was requeued, sooner than Slurm would.

    Not at once: slurmd refuses a job that begins in the very second in which it was ended ("Job credential revoked").
    """

    def shown() -> str:
        text: str = slurm(["scontrol", "show", "job", job]).stdout
        return text if f"Restarts={restarts} " in text else ""

    wait_for(lambda: "JobState=PENDING" in shown())
    time.sleep(2)
    slurm(["scontrol", "update", f"jobid={job}", "starttime=now"])
    wait_for(lambda: bool(shown()) and "JobState=PENDING" not in shown())


@pytest.mark.slow
def test_a_submitted_run_saves_at_its_time_limit_and_goes_on_after_the_requeue(
    scripted: Scripted, slurm: Any, on_head: Callable[..., Any]
) -> None:
    run = scripted(tokenizer=STEPS, data="done()")
    job = on_head(SUBMIT, run, {"time": "1", "signal_before": 55})
    wait_for(lambda: (run.root / "saved").exists(), 90)  # Slurm looks at the limits of its jobs every 30 s
    status = wait_for_status(on_head, run, "queued")
    assert status["job"] == job
    assert status["stages"]["tokenizer"]["state"] == "stopped"
    start_now(slurm, job, 1)
    status = wait_for_status(on_head, run, "done")
    assert status["stages"]["tokenizer"]["attempt"] == 2
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    assert [event["by"] for event in events if event["kind"] == "stop-requested"] == ["time limit"]
    assert [event["state"] for event in events if event["kind"] == "run-ended"] == ["stopped", "done"]
    wait_for(
        lambda: "COMPLETED" in slurm(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]).stdout
    )


def test_time_limits_without_progress_end_in_a_failure_that_says_so(
    scripted: Scripted, slurm: Any, on_head: Callable[..., Any]
) -> None:
    run = scripted(tokenizer=STEPS)
    (run.root / "never_ends").touch()
    job = on_head(SUBMIT, run)
    for limit in range(1, 4):
        if limit > 1:
            wait_for_status(on_head, run, "queued")
            start_now(slurm, job, limit - 1)
        wait_for(
            lambda n=limit: run.log("tokenizer").exists() and run.log("tokenizer").read_text().count("at work") == n
        )
        slurm(["scancel", "--batch", "--signal=USR1", job])
        wait_for(lambda n=limit: (run.root / "saved").exists() and (run.root / "saved").read_text().count("\n") == n)
    document = wait_for_status(on_head, run, "failed")
    assert "time limit came 3 times without a new checkpoint" in document["error"]


def test_a_queued_run_says_so_and_stop_cancels_it(scripted: Scripted, slurm: Any, on_head: Callable[..., Any]) -> None:
    run = scripted(tokenizer="done()")
    job = on_head(SUBMIT, run, {"extra": ["--begin=now+1hour"]})
    status = wait_for_status(on_head, run, "queued")
    assert (status["job"], status["reason"]) == (job, "BeginTime")

    def verb(*argv: str) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = slurm([sys.executable, "-m", "core.cli", *argv, str(run.root)])
        return done

    assert f"queued in Slurm as job {job} (BeginTime)" in verb("status").stdout
    assert verb("resume").returncode == 64
    again = on_head(SUBMIT, run)
    assert again["code"] == 64
    assert f"job {job}" in again["text"]
    stopped = verb("stop")
    assert stopped.returncode == 0
    assert f"job {job} was cancelled" in stopped.stdout
    assert "CANCELLED" in slurm(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]).stdout
    assert on_head(STATUS, run)["state"] == "stopped"
    assert "was stopped" in verb("status").stdout


def test_a_run_that_has_begun_is_not_cancelled_but_asked(
    scripted: Scripted, slurm: Any, on_head: Callable[..., Any]
) -> None:
    run = scripted(tokenizer=STEPS)
    on_head(SUBMIT, run)
    wait_for_status(on_head, run, "running")
    assert on_head("slurm_job.cancel(run)", run) is False
    write_json(run.requests / "stop", {"by": "someone", "time": time.time()})
    assert wait_for_status(on_head, run, "stopped")["exit_code"] == 130


def test_a_job_that_was_cancelled_outside_is_stopped_and_one_that_is_gone_is_lost(
    scripted: Scripted, slurm: Any, on_head: Callable[..., Any]
) -> None:
    run = scripted(tokenizer="done()")
    job = on_head(SUBMIT, run, {"extra": ["--hold"]})
    slurm(["scancel", job])
    assert on_head(STATUS, run)["state"] == "stopped"
    write_json(run.slurm, read_json(run.slurm) | {"job": "999999"})
    assert on_head(STATUS, run)["state"] == "lost"


def test_slurms_own_words_stand_in_the_error(scripted: Scripted, on_head: Callable[..., Any]) -> None:
    run = scripted(tokenizer="done()")
    refused = on_head(SUBMIT, run, {"partition": "nosuch"})
    assert refused["code"] == 2
    assert "invalid partition specified: nosuch" in refused["text"]
    assert not run.slurm.exists()


def test_a_comment_reaches_slurm_as_it_is(scripted: Scripted, slurm: Any, on_head: Callable[..., Any]) -> None:
    run = scripted(tokenizer="done()")
    comment = 'it\'s "two" $(touch X) `touch X` # \\ ; 実験'
    job = on_head(SUBMIT, run, {"comment": comment, "extra": ["--hold"]})
    shown = slurm(["scontrol", "show", "job", job]).stdout
    slurm(["scancel", job])
    assert f"Comment={comment}" in shown
    assert not (run.root / "X").exists()


def test_what_the_submitters_shell_sets_for_sbatch_does_not_change_the_job(
    scripted: Scripted, slurm: Any, on_head: Callable[..., Any]
) -> None:
    run = scripted(tokenizer="(run / 'env').write_text(json.dumps(dict(os.environ))); done()")
    env = {
        "SBATCH_NO_REQUEUE": "1",
        "SBATCH_OPEN_MODE": "t",
        "SBATCH_TIMELIMIT": "1",
        "SLURM_MEM_PER_NODE": "7",
        "SOME_TOKEN": "hidden",
    }
    job = on_head(SUBMIT, run, {"time": "30"}, **env)
    shown = slurm(["scontrol", "show", "job", job]).stdout
    assert "Requeue=1" in shown
    assert "TimeLimit=00:30:00" in shown
    wait_for_status(on_head, run, "done")
    inside = json.loads((run.root / "env").read_text())
    assert "SOME_TOKEN" not in inside
    assert inside.get("SLURM_MEM_PER_NODE") != "7"


def test_where_there_is_no_slurm_the_error_says_what_to_do(tmp_path: Path, scripted: Scripted) -> None:
    run = scripted(tokenizer="done()")
    code = CALL % SUBMIT
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.root), "{}"], env=environment, capture_output=True, text=True
    )
    answer = json.loads(done.stdout)
    assert answer["code"] == 64
    assert "sbatch is not on PATH" in answer["text"]
    write_json(run.slurm, {"job": "5", "waiting_since": 1.0})
    done = subprocess.run(
        [sys.executable, "-c", CALL % STATUS, str(run.root), "{}"], env=environment, capture_output=True, text=True
    )
    assert json.loads(done.stdout)["state"] == "queued"
    assert "squeue is not on PATH" in json.loads(done.stdout)["reason"]


def test_a_job_started_again_waits_for_the_lock_of_the_supervisor_before_it(scripted: Scripted) -> None:
    run = scripted(tokenizer="done()")
    lock = take_lock(run)
    process = subprocess.Popen(
        [sys.executable, str(run.code / "supervise.py"), str(run.root)], env={**os.environ, IN_JOB: "1"}
    )
    time.sleep(1)
    assert process.poll() is None
    assert not run.state.exists()
    os.close(lock)
    assert process.wait(30) == 0
