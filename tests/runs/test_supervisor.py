"""The supervisor: nothing is lost, nothing is silent, nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from core.exit_codes import ExitCode
from core.files import read_json
from core.runs import requests
from core.runs.lock import LockTaken, lock_owner, sign_lock, take_lock
from core.runs.process import run_processes
from core.runs.start import start_supervisor
from core.runs.state import read_status

from .conftest import Scripted, supervise, wait_for, wait_for_end

SLEEPY = "print('at work', flush=True)\nsignal.signal(signal.SIGTERM, lambda *a: sys.exit(130))\ntime.sleep(60)\n"


def test_stages_run_in_order_and_the_run_is_done(scripted: Scripted) -> None:
    run = scripted(tokenizer="done(vocab_size=7)", data="assert (run / 'outputs/tokenizer.txt').exists(); done()")
    start_supervisor(run)
    document = wait_for_end(run)
    assert document["state"] == "done"
    assert document["exit_code"] == 0
    assert document["stages"]["tokenizer"]["metrics"] == {"vocab_size": 7}
    assert document["stages"]["pretrain"]["state"] == "skipped"


def test_a_failed_stage_names_the_line_of_the_log(scripted: Scripted) -> None:
    run = scripted(
        tokenizer="print('one')\nprint('error: no such piece\\n  -> use another')\nprint('three')\nsys.exit(2)"
    )
    start_supervisor(run)
    stage = wait_for_end(run)["stages"]["tokenizer"]
    assert stage["state"] == "failed"
    assert stage["evidence"]["line"] == 2
    assert stage["evidence"]["text"] == "no such piece"
    assert stage["evidence"]["hint"] == "use another"


def test_exit_code_0_without_a_result_is_a_failure(scripted: Scripted) -> None:
    run = scripted(tokenizer="pass")
    start_supervisor(run)
    document = wait_for_end(run)
    assert document["stages"]["tokenizer"]["error"] == "it ended without a result"
    assert document["exit_code"] == ExitCode.FAILED


def test_wrong_input_found_by_a_stage_ends_the_run_with_64(scripted: Scripted) -> None:
    run = scripted(tokenizer="sys.exit(64)")
    start_supervisor(run)
    assert wait_for_end(run)["exit_code"] == ExitCode.USAGE


def test_a_stage_killed_by_a_signal_is_never_success(scripted: Scripted) -> None:
    run = scripted(tokenizer="done()\nos.kill(os.getpid(), signal.SIGKILL)")
    start_supervisor(run)
    stage = wait_for_end(run)["stages"]["tokenizer"]
    assert stage["state"] == "failed"
    assert "SIGKILL" in stage["error"]


def test_resume_does_again_only_what_is_not_done(scripted: Scripted, tmp_path: Path) -> None:
    run = scripted(
        tokenizer="open(run / 'count', 'a').write('t'); done()",
        data="open(run / 'count', 'a').write('d')\nif not (run / 'mended').exists(): sys.exit(2)\ndone()",
    )
    start_supervisor(run)
    assert wait_for_end(run)["state"] == "failed"
    (run.root / "mended").touch()
    start_supervisor(run)
    document = wait_for_end(run)
    assert document["state"] == "done"
    assert document["stages"]["tokenizer"]["reused"] is True
    assert (run.root / "count").read_text() == "tdd"


def test_a_stage_whose_output_is_gone_is_done_again_and_so_are_those_that_read_it(scripted: Scripted) -> None:
    run = scripted(tokenizer="open(run / 'count', 'a').write('t'); done()")
    start_supervisor(run)
    wait_for_end(run)
    (run.outputs / "tokenizer.txt").unlink()
    start_supervisor(run)
    wait_for_end(run)
    assert (run.root / "count").read_text() == "tt"


def test_stop_gives_the_stage_time_to_save_and_resume_goes_on(scripted: Scripted) -> None:
    save = "def save(*a):\n    (run / 'saved').touch(); sys.exit(130)\n"
    go_on = "if (run / 'saved').exists(): done(); sys.exit(0)\n"
    run = scripted(
        tokenizer=save + go_on + "signal.signal(signal.SIGTERM, save); print('up', flush=True); time.sleep(60)"
    )
    start_supervisor(run)
    wait_for(lambda: run.log("tokenizer").exists() and b"up" in run.log("tokenizer").read_bytes())
    requests.ask(run, requests.STOP)
    requests.ask(run, requests.STOP)  # a second user presses Stop as well
    document = wait_for_end(run)
    assert (document["state"], document["exit_code"]) == ("stopped", ExitCode.INTERRUPTED)
    start_supervisor(run)
    assert wait_for_end(run)["state"] == "done"


def test_a_stage_that_ignores_the_stop_is_killed_with_all_its_children(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_WIZARD_STOP_GRACE", "1")
    run = scripted(
        tokenizer="signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen([sys.executable, '-c', 'import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'],"
        " start_new_session=True)\nprint('up', flush=True)\ntime.sleep(60)"
    )
    start_supervisor(run)
    wait_for(lambda: len(run_processes(run.root)) == 2)
    requests.ask(run, requests.STOP)
    assert wait_for_end(run)["state"] == "stopped"
    assert run_processes(run.root) == []


def test_stopping_one_run_leaves_its_neighbour_alone(scripted: Scripted) -> None:
    first, second = scripted("a", tokenizer=SLEEPY), scripted("b", tokenizer=SLEEPY)
    start_supervisor(first)
    start_supervisor(second)
    wait_for(lambda: all(len(run_processes(run.root)) == 1 for run in (first, second)))
    neighbour = run_processes(second.root)[0].pid
    requests.ask(first, requests.STOP)
    wait_for_end(first)
    assert read_status(second).state == "running"
    assert psutil.pid_exists(neighbour)
    requests.ask(second, requests.STOP)
    wait_for_end(second)


def test_hangup_of_the_terminal_changes_nothing(scripted: Scripted) -> None:
    run = scripted(tokenizer="time.sleep(1.5); done()")
    start_supervisor(run)
    owner = lock_owner(run)
    assert owner
    os.kill(owner["pid"], signal.SIGHUP)
    assert os.getsid(owner["pid"]) == owner["pid"], "the supervisor has a session of its own"
    assert wait_for_end(run)["state"] == "done"


def test_a_killed_supervisor_leaves_no_process_and_the_run_is_lost_then_resumed(scripted: Scripted) -> None:
    run = scripted(tokenizer="if (run / 'again').exists(): done(); sys.exit(0)\n" + SLEEPY)
    supervisor = supervise(run)
    wait_for(lambda: len(run_processes(run.root)) == 1)
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: run_processes(run.root) == [])  # the kernel told the stage
    status = read_status(run)
    assert status.state == "lost"
    assert status.document["stages"]["tokenizer"]["state"] == "lost"
    (run.root / "again").touch()
    start_supervisor(run)
    assert wait_for_end(run)["state"] == "done"


def test_of_many_supervisors_at_the_same_instant_exactly_one_owns_the_run(scripted: Scripted) -> None:
    run = scripted(tokenizer="open(run / 'count', 'a').write('x'); time.sleep(2); done()")
    supervisors = [supervise(run) for _ in range(6)]
    codes = sorted(supervisor.wait() for supervisor in supervisors)
    assert codes == [0, 64, 64, 64, 64, 64]
    assert (run.root / "count").read_text() == "x"


def test_the_lock_tells_its_owner_and_is_free_when_the_owner_ends(scripted: Scripted) -> None:
    run = scripted(tokenizer="done()")
    assert lock_owner(run) is None
    descriptor = take_lock(run)
    assert lock_owner(run) is not None
    sign_lock(descriptor)
    with pytest.raises(LockTaken) as caught:
        take_lock(run)
    assert caught.value.owner["pid"] == os.getpid()
    os.close(descriptor)
    assert lock_owner(run) is None


def test_secrets_reach_neither_log_nor_state_nor_a_stage_that_does_not_need_them(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "hf_" + "CanaryCanaryCanary0123456789"
    monkeypatch.setenv("HF_TOKEN", canary)
    run = scripted(
        tokenizer="print('has it:', 'HF_TOKEN' in os.environ, flush=True)\n"
        f"sys.stdout.write('x ' + {canary[:10]!r}); sys.stdout.flush(); time.sleep(0.05); print({canary[10:]!r})\ndone()"
    )
    start_supervisor(run)
    wait_for_end(run)
    log = run.log("tokenizer").read_text()
    assert "has it: False" in log
    assert "***" in log
    for path in run.root.rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path


def test_a_run_directory_is_private(scripted: Scripted) -> None:
    run = scripted(tokenizer="done()")
    start_supervisor(run)
    wait_for_end(run)
    for path in (run.root, *run.root.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_stage_keeps_running_while_its_log_cannot_be_written(scripted: Scripted) -> None:
    run = scripted(tokenizer="for i in range(2000): print('x' * 100)\ndone()")
    run.log("tokenizer").symlink_to("/dev/full")
    start_supervisor(run)
    assert wait_for_end(run)["state"] == "done"


def test_events_tell_the_story(scripted: Scripted) -> None:
    run = scripted(tokenizer="done()")
    start_supervisor(run)
    wait_for_end(run)
    time.sleep(0.1)
    import orjson

    kinds = [orjson.loads(line)["kind"] for line in run.events.read_bytes().splitlines()]
    assert kinds == ["run-started", "stage-started", "stage-done", "run-ended"]
    assert read_json(run.state)["state"] == "done"


def test_a_stop_asked_in_the_first_moment_is_not_lost(scripted: Scripted) -> None:
    run = scripted(tokenizer=SLEEPY)
    start_supervisor(run)
    requests.ask(run, requests.STOP)
    assert wait_for_end(run)["state"] == "stopped"
