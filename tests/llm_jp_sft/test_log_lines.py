"""What is read in the log of transformers' Trainer."""

from __future__ import annotations

import math

import pytest

from core.llm_jp_sft.log_lines import Bar, Begun, Finished, Logged, NoAnswer, Saving, facts_in, whole_lines

BLOCK = "\u2588"


@pytest.mark.parametrize(
    "line",
    [
        "{'loss': 2.1234, 'learning_rate': 1e-05, 'epoch': 0.01}",
        "{'loss': '2.1234', 'learning_rate': '1e-05', 'epoch': '0.01'}",
        "node2: {'loss': 2.1234, 'learning_rate': 1e-05, 'epoch': 0.01}",
        "[rank0]: {'loss': 2.1234, 'learning_rate': 1e-05, 'epoch': 0.01}",
        f"  3%|{BLOCK}  | 1/30 [00:01<00:31,  1.09s/it]\r          \r{{'loss': 2.1234, 'learning_rate': 1e-05, 'epoch': 0.01}}",
        "{'loss': 2.1234, 'learning_rate': 1e-05, 'epoch': 0.01}node2: another rank's words",
    ],
)
def test_a_logged_step_is_found_wherever_it_stands(line: str) -> None:
    logged = [fact for fact in facts_in(line.encode()) if isinstance(fact, Logged)]
    assert logged == [Logged({"loss": 2.1234, "learning_rate": 1e-05, "epoch": 0.01})]


def test_newer_releases_print_texts_and_the_gradients_norm() -> None:
    line = b"{'loss': '2.123', 'grad_norm': '1.2', 'learning_rate': '1e-05', 'epoch': '0.01'}"
    assert facts_in(line) == [Logged({"loss": 2.123, "grad_norm": 1.2, "learning_rate": 1e-05, "epoch": 0.01})]


@pytest.mark.parametrize("loss", ["nan", "'nan'", "inf"])
def test_a_loss_that_is_no_number_is_read_as_what_it_is(loss: str) -> None:
    (fact,) = facts_in(f"{{'loss': {loss}, 'learning_rate': 0.0, 'epoch': 0.1}}".encode())
    assert isinstance(fact, Logged)
    assert not math.isfinite(fact.loss)


def test_the_end_is_no_logged_step() -> None:
    line = b"{'train_runtime': 40.7, 'train_samples_per_second': 2.9, 'train_steps_per_second': 0.7, 'train_loss': 5.2, 'epoch': 1.0}"
    (fact,) = facts_in(line)
    assert isinstance(fact, Finished)
    assert (fact.values["train_runtime"], fact.values["train_loss"]) == (40.7, 5.2)


def test_bars_are_read_between_carriage_returns() -> None:
    bars = f"  0%|          | 0/308 [00:00<?, ?it/s]\r 10%|{BLOCK}         | 30/308 [00:40<06:12,  1.3s/it]\r"
    assert facts_in(bars.encode()) == [Bar(0, 308), Bar(30, 308)]
    assert facts_in(f"10.0.0.1:  10%|{BLOCK}         | 30/308 [00:40<06:12,  1.3s/it]".encode()) == [Bar(30, 308)]


def test_the_phases_are_those_that_train_py_says() -> None:
    assert facts_in(b"2024-04-15 10:00:00,000 __main__:213: INFO: Training\n") == [Begun()]
    assert facts_in(b"2024-04-15 10:00:00,000 __main__:216: INFO: Saving model\n") == [Saving()]
    assert facts_in(b"__main__:213: INFO: Training with 3 of them\nTraining\n{'epoch': 1}\n") == []


def test_a_conversation_without_a_template_is_seen() -> None:
    words = "UserWarning: Could not find response key `[1, 2]` in the following instance: ### Human: a"
    assert facts_in(words.encode()) == [NoAnswer("response")]


def test_a_line_that_grows_is_left() -> None:
    data = b"one\n 10%|#| 1/10 [\r{'loss': 2."
    assert data[whole_lines(data) :] == b"{'loss': 2."
    assert whole_lines(b"{'loss'") == 0


def test_noise_is_passed_over() -> None:
    noise = "{'loss'\n{'loss': abc, 'learning_rate': 1}\n%| 3/4\n{}\n\xff\u3042".encode()
    assert facts_in(noise + b"\xff\xfe") == []
