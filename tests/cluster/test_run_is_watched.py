"""A run is watched while it lasts, and watching never changes it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import orjson
import psutil
import pytest
from scripted_runs import Scripted, supervise, wait_for, wait_for_end

from core.cluster.samples import NodeSamples
from core.runs import requests
from core.runs.directory import RunDirectory
from core.runs.lock import lock_owner
from core.runs.process import run_processes
from core.runs.start import start_supervisor

SLEEPY = "print('at work', flush=True)\nsignal.signal(signal.SIGTERM, lambda *a: sys.exit(130))\ntime.sleep(60)\n"


def agent_of(supervisor: int) -> psutil.Process:
    """The agent that this supervisor started, once it has."""
    found: list[psutil.Process] = []

    def look() -> bool:
        children = psutil.Process(supervisor).children()
        found[:] = [child for child in children if "llm-wizard-agent" in " ".join(child.cmdline())]
        return bool(found)

    wait_for(look)
    return found[0]


def pid_of(run: RunDirectory) -> int:
    owner = lock_owner(run)
    assert owner
    return int(owner["pid"])


def has_sample(run: RunDirectory) -> bool:
    return any(view.sample for view in NodeSamples(run).look(time.time()))


def test_the_samples_of_a_run_are_on_disk_and_private(scripted: Scripted) -> None:
    run = scripted(tokenizer=SLEEPY)
    start_supervisor(run)
    samples = NodeSamples(run)
    wait_for(lambda: any(view.slow and view.slow["processes"] for view in samples.look(time.time())))
    (view,) = samples.look(time.time())
    assert (view.host, view.status, view.error) == (os.uname().nodename, "ok", "")
    assert view.slow
    assert {process["pid"] for process in view.slow["processes"]} == {p.pid for p in run_processes(run.root)}
    requests.ask(run, requests.STOP)
    wait_for_end(run)
    wait_for(lambda: lock_owner(run) is None)
    names = sorted(path.name for path in run.nodes.iterdir())
    assert names == [f"{view.host}.history.jsonl", f"{view.host}.jsonl"]
    assert {path.stat().st_mode & 0o777 for path in run.nodes.iterdir()} == {0o600}
    assert run.nodes.stat().st_mode & 0o777 == 0o700


def test_the_agent_ends_with_the_run(scripted: Scripted) -> None:
    run = scripted(tokenizer="time.sleep(1); done()")
    start_supervisor(run)
    agent = agent_of(pid_of(run))
    wait_for_end(run)
    wait_for(lambda: not agent.is_running())


def test_the_agent_ends_with_a_supervisor_that_is_killed(scripted: Scripted) -> None:
    run = scripted(tokenizer=SLEEPY)
    supervisor = supervise(run)
    agent = agent_of(supervisor.pid)
    wait_for(lambda: has_sample(run))
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: not agent.is_running())
    wait_for(lambda: run_processes(run.root) == [])


def test_an_agent_that_is_killed_comes_back_and_the_run_goes_on(scripted: Scripted) -> None:
    run = scripted(tokenizer="while not (run / 'enough').exists(): time.sleep(0.1)\ndone()")
    start_supervisor(run)
    agent_of(pid_of(run)).kill()
    samples = NodeSamples(run)
    wait_for(lambda: any(view.sample and view.sample["restarts"] == 1 for view in samples.look(time.time())))
    (run.root / "enough").touch()
    document = wait_for_end(run)
    assert (document["state"], document["stages"]["tokenizer"]["attempt"]) == ("done", 1)
    host = os.uname().nodename
    events = [event for event in map(orjson.loads, run.events.open()) if event["kind"] == "agent"]
    assert [(event["node"], event["state"]) for event in events] == [(host, "agent ended"), (host, "back")]
    assert events[0]["text"] == f"the agent of node {host} ended and is started again: killed by SIGKILL"
    assert events[1]["text"].startswith(f"node {host} is heard of again after ")


def test_a_full_disk_costs_samples_and_not_the_run(scripted: Scripted) -> None:
    run = scripted(tokenizer="time.sleep(1); done()")
    run.nodes.mkdir()
    (run.nodes / f"{os.uname().nodename}.jsonl").symlink_to("/dev/full")
    start_supervisor(run)
    assert wait_for_end(run)["state"] == "done"
    assert run.supervisor_log.read_text().count("samples of the nodes are not written: [Errno 28]") == 1


def test_a_folder_that_cannot_be_made_costs_samples_and_not_the_run(scripted: Scripted) -> None:
    run = scripted(tokenizer="time.sleep(1); done()")
    run.nodes.write_text("a file")
    start_supervisor(run)
    assert wait_for_end(run)["state"] == "done"


def test_a_hostile_run_folder_does_nothing_but_be_watched(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = scripted(tokenizer=SLEEPY)
    hostile = run.root.parent / "$(touch X); 'a' \"b\"\n-c"
    run.root.rename(hostile)
    moved = RunDirectory(hostile)
    document = orjson.loads(moved.plan.read_bytes())
    for stage in document["stages"]:
        stage["argv"] = [word.replace(str(run.root), str(hostile)) for word in stage["argv"]]
        stage["cwd"] = str(tmp_path)
    moved.plan.write_bytes(orjson.dumps(document))
    start_supervisor(moved)
    samples = NodeSamples(moved)
    wait_for(lambda: any(view.slow and view.slow["processes"] for view in samples.look(time.time())))
    requests.ask(moved, requests.STOP)
    wait_for_end(moved)
    assert not list(tmp_path.rglob("X"))
    assert not Path("/X").exists()
