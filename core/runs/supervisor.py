"""The process that owns a run: carries out the plan stage by stage, keeps state.json, acts on requests.

It is started in a session of its own, holds the run's lock, and nothing it does depends on a terminal. Started again on a
run that ended early, it goes on where the run stopped: a stage that finished with the same inputs is not done again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cluster.collector import Collector, collector_of
from core.cluster.inventory import nodes_given
from core.cluster.reach import reach_of
from core.cluster.section import ClusterSection
from core.cluster.slurm_job import ask_for_requeue
from core.cluster.slurm_script import IN_JOB, REQUEUE
from core.doctor.needs import TRAINING
from core.errors import WizardError
from core.exit_codes import ExitCode
from core.files import read_json, write_json
from core.runs import requests
from core.runs.directory import RunDirectory
from core.runs.driver import checkpoint_folder, driver_of, newest_checkpoint
from core.runs.evidence import failure_line
from core.runs.fingerprint import fingerprint, made_paths
from core.runs.hang import ANSWER_S, Silence, Stacks
from core.runs.lock import LockTaken, sign_lock, take_lock
from core.runs.masking import secret_names
from core.runs.process import Processes, StageProcess, Trouble, kill_run_processes, write_if_possible
from core.runs.restart import GONE, Failure, last_step, why_not_again
from core.stages.base import append_event
from core.troubleshoot.failed_stage import verdict_of
from core.troubleshoot.watch import Watch

if TYPE_CHECKING:
    from core.cluster.launch import NodeLauncher


@dataclass(frozen=True)
class AttemptEnd:
    """How one start of a stage ended: exit code, where its part of the log and of the metrics begins, and what went wrong."""

    code: int
    log_start: int
    metrics_start: int
    trouble: Trouble | None = None
    why: str = ""
    """Said by the stage's driver."""


TIME_LIMIT = "time limit"
"""Who asks for a stop when Slurm says that the job's time is nearly up (SIGUSR1)."""
JOB_PATIENCE_S = 300.0
"""A job that Slurm starts again elsewhere, because its node is gone, waits so long for the lock of the supervisor that was there."""
STOP_GRACE_S = 90.0
"""Time a stage gets to save its work after SIGTERM; `LLM_WIZARD_STOP_GRACE` (seconds) changes it."""


class Supervisor:
    """Owns the lock and the state of one run until it ends."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.plan: dict[str, Any] = read_json(run.plan)
        self.stages: list[dict[str, Any]] = self.plan["stages"]
        self.cluster = ClusterSection.model_validate(self.plan["preset"]["cluster"])
        self.python = next(stage["derived"]["python"] for stage in self.stages if stage["id"] == "environment")
        self.fingerprints: dict[str, str] = {}
        self.stop_asked = False
        self.stop_by: str | None = None
        """Who asked; None for a signal."""
        self.grace = float(os.environ.get("LLM_WIZARD_STOP_GRACE", STOP_GRACE_S))
        self.state = self._first_state()
        self.launcher: NodeLauncher | None = None
        self.collector = self._collector()

    def _collector(self) -> Collector:
        """What watches the nodes of all stages, and this machine."""
        launcher, nodes = launcher_and_nodes(self.stages)
        try:
            reach = reach_of(launcher, os.environ)
            names = [*nodes_given(launcher, nodes, os.environ), *self.cluster.spare_nodes()]
        except WizardError as error:  # the stage itself says so again
            self.event("warning", text=f"the nodes are not watched: {error}")
            return collector_of(self.run, self.event)
        return collector_of(self.run, self.event, names if launcher != "local" else (), reach, self.python)

    def _first_state(self) -> dict[str, Any]:
        try:
            document = read_json(self.run.state)
            before, replaced = document["stages"], document.get("replaced", {})
            for entry in before.values():
                entry.pop("reused", None)  # said of this start only
        except FileNotFoundError:
            before, replaced = {}, {}
        stages = {
            stage["id"]: before.get(stage["id"])
            or {"state": "skipped" if stage["skip"] else "waiting", "started": None, "ended": None}
            | ({"why": stage["skip"]} if stage["skip"] else {})
            for stage in self.stages
        }
        return {
            "schema_version": 1,
            "run": self.run.name,
            "replaced": replaced,
            "preset": self.plan["preset_name"],
            "state": "running",
            "stage": None,
            "started": time.time(),
            "ended": None,
            "exit_code": None,
            "stages": stages,
        }

    def save(self) -> None:
        # The state on disk may be old when the disk is full; the run itself goes on.
        try:
            write_json(self.run.state, self.state)
        except OSError as error:
            print(f"state not written: {error}", file=sys.stderr, flush=True)

    def event(self, kind: str, **values: Any) -> None:
        with contextlib.suppress(OSError):
            append_event(self.run, kind, **values)

    def carry_out(self) -> int:
        """Run all stages; returns the run's exit code."""
        self.collector.start()
        left_over = kill_run_processes(self.run.root, grace=self.grace)
        if left_over:
            self.event("warning", text=f"{left_over} processes of an earlier supervisor were ended first")
        self.event("run-started", pid=os.getpid())
        for stage in self.stages:
            if stage["skip"]:
                continue
            outcome = self._carry_out_stage(stage)
            if outcome != ExitCode.DONE:
                return self._end("stopped" if outcome == ExitCode.INTERRUPTED else "failed", outcome)
        return self._end("done", ExitCode.DONE)

    def _end(self, state: str, code: int) -> int:
        self.collector.stop()  # before the end is told: whoever then resumes must not meet our agents
        self.state |= {"state": state, "ended": time.time(), "exit_code": int(code)}
        process_code = int(code)
        if state == "stopped" and self.stop_by == TIME_LIMIT and os.environ.get(IN_JOB):
            if why := ask_for_requeue(self.run, self._progress()):
                process_code = int(ExitCode.FAILED)
                self.state |= {"state": "failed", "exit_code": process_code, "error": why}
            else:
                process_code = REQUEUE
        self.event("run-ended", state=self.state["state"], exit_code=self.state["exit_code"])
        self.save()
        return process_code

    def _progress(self) -> list[Any]:
        """What a run has got done so far: a time limit that comes again at the same place is no progress."""
        stages = self.state["stages"]
        return [
            [stage["id"], stages[stage["id"]]["state"] == "done", newest_checkpoint(self.run, stage)]
            for stage in self.stages
        ]

    def _carry_out_stage(self, stage: dict[str, Any]) -> int:
        stage_id = stage["id"]
        entry = self.state["stages"][stage_id]
        self.state["stage"] = stage_id
        own = fingerprint(stage, made_paths(self.stages, self.fingerprints))
        if self._is_done(stage, entry, own):
            self.fingerprints[stage_id] = own
            entry["reused"] = True
            self.event("stage-reused", stage=stage_id)
            self.save()
            return ExitCode.DONE
        if self.stop_asked:
            return ExitCode.INTERRUPTED
        attempt, failures = entry.get("attempt", 0), entry.get("failures", []) if goes_on_by_itself() else []
        while True:
            attempt += 1
            entry = {
                "state": "running",
                "started": time.time(),
                "ended": None,
                "attempt": attempt,
                "log": str(self.run.log(stage_id)),
            } | ({"failures": failures} if failures else {})
            self.state["stages"][stage_id] = entry
            self.event("stage-started", stage=stage_id, attempt=attempt)
            self.save()
            self.run.result(stage_id).unlink(missing_ok=True)
            end = self._run_process(stage, attempt)
            self._record_end(stage_id, entry, end, own)
            if entry["state"] != "failed" or not self._starts_again(stage, entry, end, failures):
                break
        self.save()
        return int(entry["exit_code"])

    def _starts_again(
        self, stage: dict[str, Any], entry: dict[str, Any], end: AttemptEnd, failures: list[dict[str, Any]]
    ) -> bool:
        """Whether a stage that failed is started again; what failed is added to `failures` and stays in the state."""
        if stage["id"] not in TRAINING:
            return False
        failure = Failure(
            kind=end.trouble.kind if end.trouble else "exit",
            text=entry["error"],
            step=last_step(self.run.metrics(stage["id"]), end.metrics_start),
            checkpoint=newest_checkpoint(self.run, stage),
            node=end.trouble.node if end.trouble else None,
            final=entry["exit_code"] == ExitCode.USAGE,
        )
        budget = self.cluster.restart_budget(len(stage["nodes"]))
        why = why_not_again(failure, failures, budget)
        failures.append(failure.record(time.time()))
        entry["failures"] = failures
        if why:
            if why != "final":
                entry["error"] += f"; not started again: {why}"
                self.event("warning", stage=stage["id"], text=f"not started again: {why}")
            return False
        if self.launcher and failure.node and failure.kind in GONE:
            self.launcher.lost(failure.node)
        self.event("restart", stage=stage["id"], step=failure.checkpoint, why=entry["error"])
        self.save()
        return True

    def _is_done(self, stage: Mapping[str, Any], entry: Mapping[str, Any], own: str) -> bool:
        if entry["state"] != "done" or entry.get("fingerprint") != own or "always" in stage["settings"]:
            return False
        return self.run.result(stage["id"]).is_file() and all(Path(path).exists() for path in stage["outputs"].values())

    def _run_process(self, stage: Mapping[str, Any], attempt: int) -> AttemptEnd:
        """Start the stage and see it through."""
        log_path, metrics = self.run.log(stage["id"]), self.run.metrics(stage["id"])
        metrics_start = metrics.stat().st_size if metrics.exists() else 0
        with log_path.open("ab", buffering=0) as log:  # a buffer would fail again, at closing, on a full disk
            log_start = log.tell()
            if log_start:
                write_if_possible(log, f"--- attempt {attempt}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            driver = driver_of(self.run, stage, attempt, self.event)
            try:
                process = self._start(driver.prepare(), log)
            except WizardError as error:
                write_if_possible(log, f"error: {error}\n".encode())
                return AttemptEnd(error.exit_code, log_start, metrics_start, getattr(error, "trouble", None))
            except OSError as error:
                words = f"error: {stage['argv'][0]} could not be started: {error.strerror}\n"
                write_if_possible(log, words.encode())
                return AttemptEnd(ExitCode.FAILED, log_start, metrics_start)
            trains = stage["id"] in TRAINING
            asked_at: float | None = None
            killed = False
            watch = Watch(metrics, checkpoint_folder(self.run, stage), time.monotonic())
            silence = Silence(metrics, self.cluster.hang_seconds(len(stage["nodes"])) if trains else None)
            hang: Trouble | None = None
            tripped = ""
            while (code := process.pump(0.2)) is None:
                try:
                    driver.follow()
                except Exception as error:  # whatever in a log a driver trips over, the training goes on
                    if not tripped:
                        tripped = f"{type(error).__name__}: {error}"
                        self.event("warning", stage=stage["id"], text=f"a part of the log could not be read: {tripped}")
                if trains:
                    with contextlib.suppress(Exception):  # whatever a guard trips over, the run goes on
                        self._look(stage["id"], watch, process.pid)
                if self._is_asked_to_stop() and asked_at is None:
                    asked_at = time.monotonic()
                    self.event("stop-requested", stage=stage["id"], by=self.stop_by, grace=self.grace)
                    process.terminate()
                if asked_at is not None and not killed and time.monotonic() - asked_at > self.grace:
                    killed = True  # on nodes it is not done at once
                    self.event("warning", text=f"{stage['id']} did not stop within {self.grace:.0f} s and was killed")
                    process.kill_all()
                elif asked_at is None and hang is None and silence.is_over():
                    hang = self._end_hung(stage, process, silence)
            process.kill_all()  # a rank or loader that outlived the stage's own process
            trouble = hang or next(iter(process.troubles), None)
            return AttemptEnd(code, log_start, metrics_start, trouble, driver.finish(code))

    def _start(self, stage: Mapping[str, Any], log: FileIO) -> Processes:
        environment = self._environment(stage)
        if stage.get("launcher", "local") == "local":
            return StageProcess(stage["argv"], environment, stage["cwd"], self.run.root, log)
        if self.launcher is None:
            from core.cluster.launch import NodeLauncher

            replaced = self.state["replaced"]
            self.launcher = NodeLauncher(
                self.run, self.cluster, self.python, self.event, self._is_asked_to_stop, replaced
            )
        return self.launcher.start(stage, environment, self.grace, log)

    def _is_asked_to_stop(self) -> bool:
        if asked := requests.take(self.run, requests.STOP):
            self.stop_asked, self.stop_by = True, asked.get("by")
        return self.stop_asked

    def _end_hung(self, stage: Mapping[str, Any], process: Processes, silence: Silence) -> Trouble:
        """Save what every rank is doing, then end them all."""
        stacks = Stacks(self.run, stage["id"], int(stage["derived"].get("processes", 1)))
        process.ask_for_stacks()
        deadline = time.monotonic() + ANSWER_S
        while stacks.missing() and time.monotonic() < deadline and process.pump(0.1) is None:
            pass
        text = f"no step for {silence.limit:.0f} s. {stacks.describe()}; whole stacks in {self.run.stacks(stage['id'])}"
        self.event("trouble", stage=stage["id"], trouble="hang", text=text)
        process.kill_all()
        return Trouble("hang", "", text)

    def _look(self, stage_id: str, watch: Watch, pid: int | None) -> None:
        entry = self.state["stages"][stage_id]
        for trouble in watch.look(time.monotonic(), pid):
            self.event("warning", stage=stage_id, verdict=trouble.verdict, text=trouble.text)
        health = [{"id": trouble.verdict, "text": trouble.text} for trouble in watch.troubles]
        if health != entry.get("health", []):
            entry["health"] = health
            self.save()

    def _environment(self, stage: Mapping[str, Any]) -> dict[str, str]:
        allowed = set(stage.get("secrets", []))
        hidden = [name for name in secret_names(os.environ) if name not in allowed]
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        return {**inherited, **stage["env"]}

    def _record_end(self, stage_id: str, entry: dict[str, Any], end: AttemptEnd, own: str) -> None:
        code, log_start = end.code, end.log_start
        entry["ended"] = time.time()
        result = self._read_result(stage_id)
        if code == ExitCode.DONE and result is not None:
            entry |= {"state": "done", "outputs": result["outputs"], "metrics": result["metrics"], "fingerprint": own}
            entry["exit_code"] = int(ExitCode.DONE)
            self.fingerprints[stage_id] = own
            self.event("stage-done", stage=stage_id)
            return
        if self.stop_asked:
            entry |= {"state": "stopped", "exit_code": int(ExitCode.INTERRUPTED)}
            self.event("stage-stopped", stage=stage_id)
            return
        nodes = self.launcher.nodes if self.launcher else ()
        evidence = failure_line(self.run.log(stage_id), log_start, nodes, end.trouble.node if end.trouble else None)
        why = evidence["text"] if evidence else "it wrote nothing"
        if end.trouble:
            why = f"{end.trouble.text}; its last words: {why}" if evidence else end.trouble.text
        elif code < 0:
            name = signal.Signals(-code).name
            why = f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "") + f"; its last words: {why}"
        elif code == ExitCode.DONE:
            why = end.why or "it ended without a result"
        elif end.why:
            why = end.why
        entry |= {"state": "failed", "error": why, "evidence": evidence, "process_exit_code": code}
        entry["exit_code"] = int(ExitCode.USAGE if code == ExitCode.USAGE else ExitCode.FAILED)
        self.event("stage-failed", stage=stage_id, error=why)
        if verdict := verdict_of(self.run.log(stage_id), log_start, code):
            entry["verdict"] = verdict
            self.event("verdict", stage=stage_id, id=verdict["id"], text=verdict["text"])

    def _read_result(self, stage_id: str) -> dict[str, Any] | None:
        try:
            return dict(read_json(self.run.result(stage_id)))
        except (FileNotFoundError, ValueError):
            return None


def launcher_and_nodes(stages: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """How the stages of a plan get to their nodes, and these; the stage with the most has them all."""
    with_nodes = [stage for stage in stages if not stage["skip"] and stage.get("launcher", "local") != "local"]
    if not with_nodes:
        return "local", []
    largest = max(with_nodes, key=lambda stage: len(stage["nodes"]))
    return str(largest["launcher"]), list(largest["nodes"])


def goes_on_by_itself() -> bool:
    """Whether Slurm has started this job again. A person who resumes a run has looked at it, and gets a new budget."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def main(argv: list[str]) -> int:
    run = RunDirectory(Path(argv[0]))
    os.umask(0o077)
    try:
        lock = take_lock(run, JOB_PATIENCE_S if os.environ.get(IN_JOB) else 0.0)
    except LockTaken as taken:
        print(f"{run.name} is already running: {taken}", file=sys.stderr)
        return ExitCode.USAGE
    supervisor = Supervisor(run)
    # Left for a supervisor that is gone. From the next line on the run is seen as running, and a stop is meant for this one.
    requests.take(run, requests.STOP)
    supervisor.save()
    sign_lock(lock)

    def on_term(_signal: int, _frame: object) -> None:
        supervisor.stop_asked, supervisor.stop_by = True, None

    def on_time_limit(_signal: int, _frame: object) -> None:
        if not supervisor.stop_asked:
            supervisor.stop_asked, supervisor.stop_by = True, TIME_LIMIT

    signal.signal(signal.SIGUSR1, on_time_limit)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_term)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        return supervisor.carry_out()
    except Exception as error:
        # The log has the traceback; the state must not say `running` for ever.
        traceback.print_exc()
        supervisor.state["error"] = f"the supervisor failed: {type(error).__name__}: {error}"
        return supervisor._end("failed", ExitCode.FAILED)
    finally:
        os.close(lock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
