"""The job script under a real bash, with a supervisor that says which signals it gets; Slurm itself is in test_slurm_job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_runs import wait_for

from core.cluster.slurm_script import REQUEUE, job_script
from core.cluster.slurm_section import SlurmSection
from core.runs.directory import RunDirectory

STAND_IN = """
import os, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
said = (run / "said").open("a", buffering=1)
def on(number, frame):
    said.write(signal.Signals(number).name + "\\n")
    sys.exit({signal.SIGUSR1: 75, signal.SIGTERM: 130}[number])
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, on)
said.write(f"began {os.environ.get('SLURM_RESTART_COUNT', '0')} {os.getcwd() == str(run)} {os.environ['LLM_WIZARD_JOB']}\\n")
if (run / "code_at_once").exists():
    sys.exit(int((run / "code_at_once").read_text()))
time.sleep(60)
"""
HOSTILE = "r 'q\" $(touch X) `touch X`; touch X & {x} %j"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory whose path a shell would take apart, with the stand-in for a supervisor."""
    run = RunDirectory(tmp_path / HOSTILE)
    run.code.mkdir(parents=True)
    (run.code / "supervise.py").write_text(STAND_IN)
    run.slurm_script.write_text(job_script(run, SlurmSection(), sys.executable))
    return run


def start(run: RunDirectory, tmp_path: Path) -> subprocess.Popen[str]:
    """The script as slurmd runs it, with an scontrol that writes down what it is asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$*" >> "{tmp_path}/scontrol"\n')
    (tools / "scontrol").chmod(0o700)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    return subprocess.Popen(
        ["bash", str(run.slurm_script)],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until_begun(run: RunDirectory) -> None:
    wait_for(lambda: (run.root / "said").is_file() and "began" in (run.root / "said").read_text())


def asked(tmp_path: Path) -> str:
    return (tmp_path / "scontrol").read_text() if (tmp_path / "scontrol").exists() else ""


def test_the_time_limit_reaches_the_supervisor_and_the_job_is_requeued(run: RunDirectory, tmp_path: Path) -> None:
    job = start(run, tmp_path)
    wait_until_begun(run)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=20)
    assert job.returncode == REQUEUE
    assert (run.root / "said").read_text().split("\n")[:2] == ["began 0 True 1", "SIGUSR1"]
    assert asked(tmp_path) == "requeue 7\n"
    assert output == ""


def test_a_cancelled_job_stops_its_supervisor_and_is_not_requeued(run: RunDirectory, tmp_path: Path) -> None:
    job = start(run, tmp_path)
    wait_until_begun(run)
    job.terminate()
    job.communicate(timeout=20)
    assert job.returncode == 130
    assert "SIGTERM" in (run.root / "said").read_text()
    assert asked(tmp_path) == ""


@pytest.mark.parametrize("code", [0, 2])
def test_the_supervisors_exit_code_is_the_jobs(code: int, run: RunDirectory, tmp_path: Path) -> None:
    (run.root / "code_at_once").write_text(str(code))
    job = start(run, tmp_path)
    job.communicate(timeout=20)
    assert job.returncode == code
    assert asked(tmp_path) == ""


def test_a_signal_that_comes_before_the_supervisor_minds_it_does_not_end_it(run: RunDirectory, tmp_path: Path) -> None:
    (run.code / "supervise.py").write_text(
        "import pathlib, sys, time; (pathlib.Path(sys.argv[1]) / 'early').touch(); time.sleep(0.5)\n" + STAND_IN
    )
    job = start(run, tmp_path)
    wait_for(lambda: (run.root / "early").exists())
    job.send_signal(signal.SIGUSR1)
    wait_until_begun(run)
    job.terminate()
    job.communicate(timeout=20)
    assert job.returncode == 130


def test_a_hostile_path_is_only_a_path(run: RunDirectory, tmp_path: Path) -> None:
    (run.root / "code_at_once").write_text("0")
    job = start(run, tmp_path)
    job.communicate(timeout=20)
    assert job.returncode == 0
    assert not list(tmp_path.rglob("X"))


def test_the_stage_may_use_the_time_before_the_limit_to_save(run: RunDirectory) -> None:
    text = job_script(run, SlurmSection(signal_before=600), sys.executable)
    assert 'LLM_WIZARD_STOP_GRACE="${LLM_WIZARD_STOP_GRACE:-570}"' in text
    assert "#SBATCH --signal=B:USR1@600" in text.splitlines()
