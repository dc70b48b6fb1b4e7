"""Runs as Slurm jobs: submitting one, asking Slurm about it, cancelling it, and the record of it in the run directory.

slurm.json: {"job", "submitted", "waiting_since", "by"} and, later, "cancelled" or what is known of the last time limit.
"""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from core.cluster.slurm_script import directives, job_script
from core.cluster.slurm_section import SlurmSection
from core.errors import InputError, StageError
from core.files import read_json, write_atomically, write_json
from core.runs.directory import RunDirectory
from core.runs.lock import lock_owner
from core.runs.masking import secret_names
from core.runs.process import MARK
from core.text.plain import one_line

ANSWER_S = 10.0
SUBMIT_S = 120.0
"""A controller under load takes its time; giving up on it early could submit a job twice."""
FRESH_S = 10.0
"""How long an answer counts as fresh: a screen that looks every half second must not ask the controller as often."""
STARTING_S = 60.0
"""The longest wait for the supervisor of a job that has begun, before a stop is given up."""
MOST_WITHOUT_PROGRESS = 2
"""Time limits in a row without a new checkpoint or a finished stage, after which a run no longer asks for another."""

WAITING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
ALIVE = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"})
GONE, UNKNOWN = "GONE", "UNKNOWN"
"""Slurm no longer knows the job; Slurm did not answer."""

_VARIABLES = {"time": "TIMELIMIT", "mem": "MEM_PER_NODE"}
"""Options whose SBATCH_ variable has another name."""
_answers: dict[str, tuple[float, JobState]] = {}


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job: its state in Slurm's own words, or GONE or UNKNOWN, and why it waits."""

    state: str
    reason: str = ""


def submit_run(run: RunDirectory, plan: Mapping[str, Any]) -> str:
    """Submit a run whose directory is complete; `plan` is its plan.json. Returns the job's id.

    Raises:
        InputError: it runs or waits already, or there is no sbatch here.
        StageError: Slurm does not take the job.
    """
    section = SlurmSection.model_validate(plan["preset"]["slurm"])
    secrets = {name for stage in plan["stages"] if not stage["skip"] for name in stage["secrets"]}
    return submit(run, section, sys.executable, secrets)


def submit(run: RunDirectory, section: SlurmSection, python: str, secrets: Collection[str] = ()) -> str:
    """Write slurm.sh, give it to sbatch, write slurm.json. `secrets` are the variables that the stages need; no other is passed.

    Raises: as `submit_run`.
    """
    if lock_owner(run) is not None:
        raise InputError(f"run {run.name} is running", f"follow it with `llm-wizard attach {run.name}`")
    before = read_record(run)
    if before and "cancelled" not in before and job_state(before["job"]).state in WAITING | ALIVE:
        raise InputError(
            f"run {run.name} is in Slurm already as job {before['job']}",
            f"follow it with `llm-wizard attach {run.name}`, or cancel it with `llm-wizard stop {run.name}`",
        )
    write_atomically(run.slurm_script, job_script(run, section, python).encode(), mode=0o700)
    argv = ["sbatch", "--parsable", run.slurm_script.name]
    environment = _environment(directives(run, section), secrets)
    try:
        done = subprocess.run(
            argv, cwd=run.root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=SUBMIT_S, umask=0o077,
        )  # fmt: skip
    except FileNotFoundError:
        raise InputError(
            "sbatch is not on PATH, so nothing can be submitted here",
            "log in to a machine where jobs are submitted, or load the cluster's slurm module",
        ) from None
    except subprocess.TimeoutExpired:
        raise StageError(
            f"sbatch gave no answer within {SUBMIT_S:.0f} s",
            "see with squeue whether the job is there before trying again",
        ) from None
    if done.returncode != 0:
        raise StageError(
            f"Slurm did not take the job: {_words(done.stderr) or f'exit code {done.returncode}'}",
            f"the keys are slurm.*, the script is {run.slurm_script}; the run is kept: `llm-wizard resume {run.name} "
            "--submit` tries again",
        )
    job = done.stdout.strip().split(";")[0]  # "id;cluster" where there are several clusters
    now = time.time()
    write_json(run.slurm, {"job": job, "submitted": now, "waiting_since": now, "by": _who()})
    _answers.pop(job, None)
    return job


def _environment(lines: Collection[str], secrets: Collection[str]) -> dict[str, str]:
    """What the job gets of ours: without secrets that it does not need, and without what would change the script's options.

    sbatch takes an SBATCH_ variable before the script's line; SLURM_ variables of a job that we are in belong to that one.
    """
    names = {line.removeprefix("#SBATCH --").partition("=")[0] for line in lines}
    overriding = {f"SBATCH_{_VARIABLES.get(name, name.replace('-', '_').upper())}" for name in names}
    hidden = {name for name in secret_names(os.environ) if name not in secrets}
    hidden |= overriding | {"SBATCH_NO_REQUEUE", MARK}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and (not name.startswith("SLURM_") or name == "SLURM_CONF")
    }


def job_state(job: str) -> JobState:
    """What Slurm says of a job now: squeue, or sacct once squeue has forgotten it."""
    argv = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r"]
    try:
        done = _ask(argv)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = "squeue is not on PATH" if isinstance(error, FileNotFoundError) else "squeue gives no answer"
        return JobState(UNKNOWN, why)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        state, _, reason = lines[-1].partition("|")
        return JobState(one_line(state), "" if reason == "None" else one_line(reason))
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        return JobState(UNKNOWN, _words(done.stderr))
    return _remembered(job)


def _remembered(job: str) -> JobState:
    argv = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State"]
    try:
        done = _ask(argv)
    except (OSError, subprocess.TimeoutExpired):
        return JobState(GONE)
    words = done.stdout.split()  # "CANCELLED by 1000"
    return JobState(one_line(words[0]) if done.returncode == 0 and words else GONE)


def cancel(run: RunDirectory) -> bool:
    """Take a run's job out of the queue. False where it no longer waits there: it has begun, and a stop is asked of the run itself.

    Raises:
        StageError: Slurm does not do so.
    """
    record = read_record(run)
    if record is None:
        return False
    job = record["job"]
    try:
        # Only while it waits: one that has begun saves before it stops, when asked by a request.
        done = _ask(["scancel", "--state=PENDING", job])
    except (OSError, subprocess.TimeoutExpired) as error:
        what = "is not on PATH" if isinstance(error, FileNotFoundError) else "gives no answer"
        hint = f"type `scancel {job}` where Slurm is; if it no longer knows the job, remove {run.slurm}"
        raise StageError(f"scancel {what}, so job {job} stays", hint) from None
    _answers.pop(job, None)
    if done.returncode != 0:
        raise StageError(f"Slurm did not cancel job {job}: {_words(done.stderr)}")
    now = job_state(job)
    if now.state in WAITING:
        raise StageError(f"job {job} is still {now.state} after scancel", f"see `scontrol show job {job}`")
    if now.state not in ("CANCELLED", GONE):
        return False
    write_json(run.slurm, record | {"cancelled": {"by": _who(), "time": time.time()}})
    return True


def leave_queue(run: RunDirectory) -> bool:
    """Take a run that is queued out of the queue. False where it has begun meanwhile, or ended; raises as `cancel`."""
    deadline = time.monotonic() + STARTING_S
    while not cancel(run):
        # Between the job's start and the supervisor's there is nobody yet to whom a request could be left.
        if not _is_starting(run) or time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _is_starting(run: RunDirectory) -> bool:
    record = read_record(run)
    return lock_owner(run) is None and record is not None and job_state(record["job"]).state in ALIVE


def ask_for_requeue(run: RunDirectory, progress: Any) -> str:
    """Record that the time is up; why no other time is asked for, or "". `progress` is anything that changes as the run gets on."""
    before = read_record(run) or {}
    got_on = before.get("progress") != progress
    without = 0 if got_on else int(before.get("without_progress", 0)) + 1
    now = {"progress": progress, "without_progress": without, "waiting_since": time.time()}
    if job := os.environ.get(
        "SLURM_JOB_ID"
    ):  # another than the one submitted, where somebody gave slurm.sh to sbatch by hand
        now["job"] = job
    try:
        write_json(run.slurm, before | now)
    except OSError as error:
        return f"the time is up, and {run.slurm} cannot be written: {error.strerror}"
    if without < MOST_WITHOUT_PROGRESS:
        return ""
    return (
        f"the time limit came {without + 1} times without a new checkpoint or a finished stage in between: give more time "
        "(slurm.time) or save more often (save_interval)"
    )


def as_queued(run: RunDirectory, document: Mapping[str, Any], alive: bool) -> dict[str, Any]:
    """What the queue adds to a run's status: {"state": "queued", "job", "reason"}; {} where its own record says it all.

    `alive` is whether a supervisor holds the lock. Slurm is asked at most every ten seconds, and only about a run that may wait.
    """
    record = read_record(run)
    if record is None:
        return {}
    begun, ended = bool(document["stages"]), document.get("ended") or 0.0
    if alive:
        # It has asked for more time and is about to go.
        waits = document["state"] == "stopped" and record["waiting_since"] >= ended
        return {"state": "queued", "job": record["job"], "reason": "requeue"} if waits else {}
    if "cancelled" in record:
        return {} if begun else {"state": "stopped", "job": record["job"]}
    if document["state"] != "running" and record["waiting_since"] < ended:
        return {}
    now = _fresh_state(record["job"])
    if now.state in WAITING | ALIVE:
        reason = "starting" if now.state == "RUNNING" else now.reason or now.state.lower()
        return {"state": "queued", "job": record["job"], "reason": reason}
    if now.state == UNKNOWN and not (begun and document["state"] == "running"):
        return {"state": "queued", "job": record["job"], "reason": f"Slurm does not say: {now.reason}"}
    if now.state == "CANCELLED" and not begun:
        return {"state": "stopped", "job": record["job"]}
    return {}


def read_record(run: RunDirectory) -> dict[str, Any] | None:
    """slurm.json; None where the run was never submitted."""
    try:
        record = read_json(run.slurm)
        return record if isinstance(record, dict) and record["job"].isdigit() and record["waiting_since"] >= 0 else None
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError, AttributeError, TypeError):
        return None


def _fresh_state(job: str) -> JobState:
    at, answer = _answers.get(job, (0.0, None))
    if answer is None or time.monotonic() - at > FRESH_S:
        answer = job_state(job)
        _answers[job] = (time.monotonic(), answer)
    return answer


def _ask(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=ANSWER_S
    )


def _words(stderr: str) -> str:
    """Slurm's own words in one line, without the program's name before each."""
    lines = (line.partition("error: ")[2] or line for line in stderr.strip().splitlines())
    return one_line("; ".join(line.strip() for line in lines if line.strip()))


def _who() -> str:
    return f"{getpass.getuser()}@{os.uname().nodename}"
