"""What is read of a run for the Run screen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.files import write_json
from core.runs import requests
from core.runs.directory import RunDirectory
from core.runs.series import Column
from core.stages.base import append_event
from tui.run_reader import RunReader, run_to_watch
from tui.run_words import head_line, notice, stage_rows
from tui.widgets.events import event_line

from .sample_runs import NOW, failed_run


def test_the_run_as_it_is(run: RunDirectory) -> None:
    snapshot = RunReader(run).look()
    assert (snapshot.status.state, snapshot.stage_id) == ("running", "pretrain")
    assert snapshot.checkpoints == (200, 400)
    assert snapshot.progress is not None
    assert (snapshot.progress.step, snapshot.progress.total) == (640, 4000)
    assert snapshot.progress.share == 0.16
    assert snapshot.progress.seconds_left == pytest.approx(0.2 * 3360, rel=0.01)
    assert "16%" in head_line(snapshot, NOW, 160).plain
    assert {row.id: row.state for row in stage_rows(snapshot, NOW)}["tokenizer"] == "done"


def test_of_a_run_that_is_done_the_last_curves_are_shown(run: RunDirectory) -> None:
    document = json.loads(run.state.read_text())
    write_json(run.state, document | {"state": "done", "stage": "upload-finetuned", "ended": NOW})
    reader = RunReader(run)
    assert reader.look().stage_id == "pretrain"
    reader.chosen = "upload-finetuned"
    assert reader.look().stage_id == "upload-finetuned"


def test_the_curves_of_an_earlier_look_do_not_change(run: RunDirectory) -> None:
    reader = RunReader(run)
    first = reader.look()
    assert reader.look().series_number == first.series_number
    with run.metrics("pretrain").open("a") as file:
        file.write(json.dumps({"step": 641, "loss": 1.0}) + "\n")
    second = reader.look()
    assert second.series_number == first.series_number + 1
    assert first.series.column("loss").steps[-1] == 640
    assert second.series.column("loss").steps[-1] == 641


def test_validations_that_were_searched_for_replace_those_of_the_sample(run: RunDirectory) -> None:
    reader = RunReader(run)
    reader.look()
    found = Column()
    for step in (10, 20, 30):
        found.add(step, 1.0)
    reader.take_validations("pretrain", {"val_loss": found})
    steps = reader.look().series.column("val_loss").steps
    assert list(steps) == [10, 20, 30, *range(100, 601, 100)]


def test_a_stop_is_pending_until_the_supervisor_takes_it(run: RunDirectory) -> None:
    reader = RunReader(run)
    assert reader.look().stop is None
    requests.ask(run, requests.STOP)
    stop = reader.look().stop
    assert stop is not None
    assert stop.grace is None
    assert "@" in stop.by
    by = requests.take(run, requests.STOP)["by"]
    append_event(run, "stop-requested", stage="pretrain", by=by, grace=90.0, time=NOW)
    stop = reader.look().stop
    assert stop is not None
    assert stop.grace == 90.0


def test_a_stop_of_an_earlier_start_is_forgotten(run: RunDirectory) -> None:
    reader = RunReader(run)
    append_event(run, "stop-requested", stage="pretrain", by="a@b", grace=90.0)
    document = json.loads(run.state.read_text())
    write_json(run.state, document | {"started": 1.0})
    assert reader.look().stop is not None
    append_event(run, "run-started", pid=2)
    assert reader.look().stop is None


def test_the_first_who_asks_is_named(run: RunDirectory) -> None:
    run.requests.joinpath("stop").write_text('{"by": "alice@head", "time": 5.0}')
    requests.ask(run, requests.STOP)
    taken = requests.take(run, requests.STOP)
    assert taken == {"by": "alice@head", "time": 5.0}
    assert requests.take(run, requests.STOP) is None


def test_a_request_that_was_left_by_hand_counts(run: RunDirectory) -> None:
    run.requests.joinpath("stop").touch()
    assert requests.take(run, requests.STOP) is not None


def test_a_resumed_attempt_saves_its_checkpoints_anew(run: RunDirectory) -> None:
    append_event(run, "checkpoint", stage="pretrain", step=300, path="x")
    append_event(run, "checkpoint-saved", stage="finetune", step=7)
    assert RunReader(run).look().checkpoints == (200, 300)


def test_the_newest_run_that_runs_is_watched(run: RunDirectory) -> None:
    failed_run(run.root.parent)
    assert run_to_watch(run.root.parent) == run
    assert run_to_watch(run.root.parent / "none") is None


def test_a_failure_says_why_and_what_to_press(tmp_path: Path) -> None:
    text = notice(RunReader(failed_run(tmp_path / "runs")).look(), NOW)
    assert text is not None
    assert "CUDA out of memory" in text.plain
    assert "t: cause and fix" in text.plain


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"kind": "checkpoint", "step": 100}, "checkpoint of step 100 saved"),
        ({"kind": "stop-requested", "by": "alice@head"}, "alice@head asked to stop"),
        ({"kind": "stop-requested", "by": None}, "a signal asked to stop"),
        ({"kind": "warning", "text": "[red]\x1b[31mx"}, "warning: [red]x"),
        ({"kind": "stage-failed", "stage": "data", "error": "a\nb"}, "data failed: a b"),
        ({"kind": "stage-started", "stage": "data", "attempt": 2}, "data started, attempt 2"),
        ({"kind": "of another version", "x": 1}, "of another version: x 1"),
        ({}, "None"),
    ],
)
def test_events_in_words(event: dict[str, object], words: str) -> None:
    assert words in event_line({"time": NOW, **event}).plain
