"""The supervisor names the verdict on a stage that failed, and no log can keep it from going on."""

from __future__ import annotations

import time
from pathlib import Path

import orjson
import pytest

from core.runs.directory import RunDirectory
from core.runs.line_view import summary
from core.runs.start import start_supervisor
from core.runs.state import read_status
from core.troubleshoot import failed_stage
from core.troubleshoot.failed_stage import verdict_of

from .conftest import Scripted, wait_for_end

FULL = "OSError: [Errno 28] No space left on device"


def events(run: RunDirectory) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in run.events.read_bytes().splitlines()]


def test_a_failed_stage_has_its_verdict_in_the_state_the_events_and_the_summary(scripted: Scripted) -> None:
    run = scripted(tokenizer=f"print('a'); print('b'); raise {FULL.split(':')[0]}(28, 'No space left on device')")
    start_supervisor(run)
    stage = wait_for_end(run)["stages"]["tokenizer"]
    assert stage["verdict"]["id"] == "disk-full"
    assert stage["verdict"]["text"] == FULL
    assert stage["verdict"]["line"] == len(run.log("tokenizer").read_text().splitlines())
    assert stage["verdict"]["cause"]
    assert [(e["stage"], e["id"]) for e in events(run) if e["kind"] == "verdict"] == [("tokenizer", "disk-full")]
    shown = summary(read_status(run))
    assert "cause (disk-full)" in shown
    assert "what to do" in shown


def test_only_the_last_attempt_is_judged(scripted: Scripted) -> None:
    run = scripted(
        tokenizer="m = run / 'mended'\nif not m.exists(): print('CUDA out of memory'); sys.exit(1)\nprint('Odd: x'); sys.exit(1)"
    )
    start_supervisor(run)
    assert wait_for_end(run)["stages"]["tokenizer"]["verdict"]["id"] == "cuda-oom"
    (run.root / "mended").touch()
    start_supervisor(run)
    verdict = wait_for_end(run)["stages"]["tokenizer"]["verdict"]
    assert (verdict["id"], verdict["text"], verdict["line"]) == ("unknown", "Odd: x", 3)


def test_a_stage_killed_without_a_word_is_told_by_its_signal(scripted: Scripted) -> None:
    run = scripted(tokenizer="print('at work', flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    start_supervisor(run)
    assert wait_for_end(run)["stages"]["tokenizer"]["verdict"]["id"] == "host-oom-sigkill"


def test_the_verdict_takes_no_longer_than_its_limit_and_never_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.txt"
    log.write_text(FULL + "\n")
    assert (verdict_of(log, 0, 1) or {})["id"] == "disk-full"
    assert verdict_of(tmp_path / "none.txt", 0, 1) is None
    monkeypatch.setattr(failed_stage, "TIME_LIMIT_S", 0.01)
    started = time.monotonic()
    assert verdict_of(log, 0, 1) is None
    assert time.monotonic() - started < 5


def test_warnings_of_a_running_stage_reach_events_and_status(scripted: Scripted) -> None:
    body = "m = run / 'stages' / stage / 'metrics.jsonl'\n"
    body += "for step in range(1, 17):\n    with m.open('a') as f: f.write(json.dumps({'step': step, 'loss': None if step > 5 else 4.0}) + '\\n')\n    time.sleep(0.2)\n"
    run = scripted(pretrain=body + "done()")
    start_supervisor(run)
    document = wait_for_end(run)
    assert [e["verdict"] for e in events(run) if e["kind"] == "warning"] == ["loss-nan"]
    assert document["state"] == "done"
