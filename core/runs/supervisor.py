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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.cluster.collector import collector_of
from core.doctor.needs import TRAINING
from core.exit_codes import ExitCode
from core.files import read_json, write_json
from core.runs import requests
from core.runs.directory import RunDirectory
from core.runs.evidence import failure_line
from core.runs.fingerprint import fingerprint, made_paths
from core.runs.lock import LockTaken, sign_lock, take_lock
from core.runs.masking import secret_names
from core.runs.process import StageProcess, kill_run_processes, write_if_possible
from core.stages.base import append_event
from core.troubleshoot.failed_stage import verdict_of
from core.troubleshoot.watch import Watch

STOP_GRACE_S = 90.0
"""Time a stage gets to save its work after SIGTERM; `LLM_WIZARD_STOP_GRACE` (seconds) changes it."""


class Supervisor:
    """Owns the lock and the state of one run until it ends."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.plan: dict[str, Any] = read_json(run.plan)
        self.stages: list[dict[str, Any]] = self.plan["stages"]
        self.fingerprints: dict[str, str] = {}
        self.stop_asked = False
        self.stop_by: str | None = None
        """Who asked; None for a signal."""
        self.grace = float(os.environ.get("LLM_WIZARD_STOP_GRACE", STOP_GRACE_S))
        self.state = self._first_state()
        self.collector = collector_of(run, lambda text: self.event("warning", text=text))

    def _first_state(self) -> dict[str, Any]:
        try:
            before = read_json(self.run.state)["stages"]
            for entry in before.values():
                entry.pop("reused", None)  # said of this start only
        except FileNotFoundError:
            before = {}
        stages = {
            stage["id"]: before.get(stage["id"])
            or {"state": "skipped" if stage["skip"] else "waiting", "started": None, "ended": None}
            | ({"why": stage["skip"]} if stage["skip"] else {})
            for stage in self.stages
        }
        return {
            "schema_version": 1,
            "run": self.run.name,
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
        self.event("run-ended", state=state, exit_code=int(code))
        self.save()
        return code

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
        attempt = entry.get("attempt", 0) + 1
        entry = {
            "state": "running",
            "started": time.time(),
            "ended": None,
            "attempt": attempt,
            "log": str(self.run.log(stage_id)),
        }
        self.state["stages"][stage_id] = entry
        self.event("stage-started", stage=stage_id, attempt=attempt)
        self.save()
        self.run.result(stage_id).unlink(missing_ok=True)
        code, log_start = self._run_process(stage, attempt)
        self._record_end(stage_id, entry, code, log_start, own)
        self.save()
        return int(entry["exit_code"])

    def _is_done(self, stage: Mapping[str, Any], entry: Mapping[str, Any], own: str) -> bool:
        if entry["state"] != "done" or entry.get("fingerprint") != own or "always" in stage["settings"]:
            return False
        return self.run.result(stage["id"]).is_file() and all(Path(path).exists() for path in stage["outputs"].values())

    def _run_process(self, stage: Mapping[str, Any], attempt: int) -> tuple[int, int]:
        """Start the stage and see it through; returns its exit code and where its part of the log begins."""
        log_path = self.run.log(stage["id"])
        with log_path.open("ab", buffering=0) as log:  # a buffer would fail again, at closing, on a full disk
            log_start = log.tell()
            if log_start:
                write_if_possible(log, f"--- attempt {attempt}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            try:
                process = StageProcess(stage["argv"], self._environment(stage), stage["cwd"], self.run.root, log)
            except OSError as error:
                words = f"error: {stage['argv'][0]} could not be started: {error.strerror}\n"
                write_if_possible(log, words.encode())
                return ExitCode.FAILED, log_start
            asked_at: float | None = None
            watch = Watch(self.run.metrics(stage["id"]), self.run.checkpoints, time.monotonic())
            while (code := process.pump(0.2)) is None:
                if stage["id"] in TRAINING:
                    with contextlib.suppress(Exception):  # whatever a guard trips over, the run goes on
                        self._look(stage["id"], watch, process.pid)
                if asked := requests.take(self.run, requests.STOP):
                    self.stop_asked, self.stop_by = True, asked.get("by")
                if self.stop_asked and asked_at is None:
                    asked_at = time.monotonic()
                    self.event("stop-requested", stage=stage["id"], by=self.stop_by, grace=self.grace)
                    process.terminate()
                if asked_at is not None and time.monotonic() - asked_at > self.grace:
                    self.event("warning", text=f"{stage['id']} did not stop within {self.grace:.0f} s and was killed")
                    process.kill_all()
            process.kill_all()  # a rank or loader that outlived the stage's own process
            return code, log_start

    def _look(self, stage_id: str, watch: Watch, pid: int) -> None:
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

    def _record_end(self, stage_id: str, entry: dict[str, Any], code: int, log_start: int, own: str) -> None:
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
        evidence = failure_line(self.run.log(stage_id), log_start)
        why = evidence["text"] if evidence else "it wrote nothing"
        if code < 0:
            name = signal.Signals(-code).name
            why = f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "") + f"; its last words: {why}"
        elif code == ExitCode.DONE:
            why = "it ended without a result"
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


def main(argv: list[str]) -> int:
    run = RunDirectory(Path(argv[0]))
    os.umask(0o077)
    try:
        lock = take_lock(run)
    except LockTaken as taken:
        print(f"{run.name} is already running: {taken}", file=sys.stderr)
        return ExitCode.USAGE
    supervisor = Supervisor(run)
    # Left for a supervisor that is gone. From the next line on the run is seen as running, and a stop is meant for this one.
    requests.take(run, requests.STOP)
    supervisor.save()
    sign_lock(lock)

    def on_term(_signal: int, _frame: object) -> None:
        supervisor.stop_asked = True

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
