"""Every line that the original pipeline's log has, in the forms in which launchers and ranks leave it."""

from __future__ import annotations

import math

import pytest

from core.megatron.log_lines import (
    EngineStep,
    Exiting,
    Fact,
    Iteration,
    Layout,
    Loaded,
    Memory,
    Overflow,
    Parameters,
    Phase,
    PipeStep,
    RankFailed,
    Saved,
    Saving,
    Tracked,
    Validation,
    Vocabulary,
    facts_in,
)

from .log_format import iteration, validation


def one(line: str) -> Fact:
    facts = facts_in(f"before\n{line}\nafter\n".encode())
    assert len(facts) == 1, facts
    return facts[0]


def test_a_step_with_all_its_fields() -> None:
    fact = one(iteration(10, 1144409, loss=7.767975, fp16=True, batch=256, sequence=2048))
    assert isinstance(fact, Iteration)
    assert (fact.step, fact.shown_total, fact.samples, fact.tokens) == (10, 1144409, 2560, 5242880)
    assert (fact.loss, fact.lr, fact.step_ms, fact.global_batch) == (7.767975, 1.017e-4, 30.6, 256)
    assert (fact.tokens_per_gpu_s, fact.samples_per_s, fact.tflops) == (8356.293, 130.567, 0.01)
    assert fact.values == {"loss scale": 2048, "grad norm": 18.604, "num zeros": 0, "actual seqlen": 2048}


def test_rare_fields_and_a_second_loss() -> None:
    line = iteration(10, fp16=True).replace(" loss scale:", " moe loss: 1.250000E-02 | loss scale:")
    line = line.replace(
        " actual", " params norm: 3.125 | curriculum seqlen:    32 | random ltd reserved length:    16 | actual"
    )
    fact = one(line)
    assert isinstance(fact, Iteration)
    assert fact.losses == {"lm loss": 7.5, "moe loss": 0.0125}
    assert fact.values["params norm"] == 3.125
    assert (fact.values["curriculum seqlen"], fact.values["random ltd reserved length"]) == (32, 16)


def test_a_loss_that_has_vanished_is_not_a_number() -> None:
    fact = one(iteration(10, loss=None, fp16=True).replace("18.604", "nan"))
    assert isinstance(fact, Iteration)
    assert fact.loss is not None
    assert math.isnan(fact.loss)
    assert math.isnan(fact.values["grad norm"])
    infinite = one(iteration(10).replace("7.500000E+00", "INF"))
    assert isinstance(infinite, Iteration)
    assert infinite.loss == math.inf


def test_a_loss_that_another_rank_has_written_over_is_not_known() -> None:
    fact = one(iteration(10).replace("lm loss: 7.5", "lm lo[Rank 1] warnss: 7.5"))
    assert isinstance(fact, Iteration)
    assert fact.loss is None


@pytest.mark.parametrize("prefix", ["node2: ", "10.0.0.2: ", "[rank0]: ", "[default0]:", "node-1.local: [rank7]: "])
def test_what_launchers_put_before_a_line_does_not_matter(prefix: str) -> None:
    fact = one(prefix + iteration(10))
    assert isinstance(fact, Iteration)
    assert (fact.step, fact.loss) == (10, 7.5)
    assert one(prefix + validation(200, 4.003139)) == Validation(200, 4.003139, "validation", final=False)
    assert one(f"{prefix}[after training is done] datetime: 2026-11-24 20:47:44 ") == Phase("trained")


def test_a_line_that_was_cut_is_no_step() -> None:
    line = iteration(10)
    for length in range(len(line) - len(" TFLOPs: 0.01 |") + 1):
        assert facts_in(line[:length].encode()) == []
    assert facts_in(validation(10, 7.4)[:-3].encode()) == []


def test_two_ranks_in_one_line() -> None:
    facts = facts_in(
        (iteration(10) + iteration(12) + "steps: 12 loss: 7.4 iter time (s): 0.025 samples/sec: 159.109").encode()
    )
    assert [fact.step for fact in facts if isinstance(fact, Iteration)] == [10, 12]
    assert facts[2] == PipeStep(12, 7.4, 0.025, 159.109)
    saved = "  successfully saved checkpoint at iteration       5 to /x[after training is done] datetime: 2026"
    assert facts_in(saved.encode()) == [Saved(5), Phase("trained")]


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("steps: 10 loss: 7.6365 iter time (s): 26.236 samples/sec: 9.757", PipeStep(10, 7.6365, 26.236, 9.757)),
        (
            "[2024-03-27 19:15:42,647] [INFO] [logging.py:96:log_dist] [Rank 0] step=10, skipped=3, lr=[9.4e-07, 9.4e-07], mom=[]",
            EngineStep(10, 3),
        ),
        (
            "[deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 2048, but hysteresis is 2. Reducing hysteresis to 1",
            Overflow(0, 2048, None),
        ),
        (
            "[deepspeed] OVERFLOW! Rank 3 Skipping step. Attempted loss scale: 2048, reducing to 1024",
            Overflow(3, 2048, 1024),
        ),
        (validation(10, 7.1, "validation"), Validation(10, 7.1, "validation", final=True)),
        (validation(10, 7.2, "test"), Validation(10, 7.2, "test", final=True)),
        ("saving checkpoint at iteration       5 to /data/ckpt", Saving(5)),
        ("  successfully saved checkpoint at iteration       5 to /data/ckpt", Saved(5)),
        ("  successfully loaded checkpoint from /data/ckpt at iteration 10", Loaded(10)),
        ("    will not load any checkpoints and will start from random", Loaded(None)),
        (
            "using world size: 16, data-parallel-size: 4, sequence-parallel size: 1, tensor-model-parallel size: 2, "
            "pipeline-model-parallel size: 2 ",
            Layout(16, 4, 2, 2),
        ),
        (" > padded vocab (size: 2003) with 45 dummy tokens (new size: 2048)", Vocabulary(2003, 2048)),
        (
            " > number of parameters on (tensor, pipeline) model parallel rank (1, 0): 235264",
            Parameters(1, 0, 235264),
        ),
        (
            "[Rank 0] (after 10 iterations) memory (MB) | allocated: 1719.63 | max allocated: 13688.12 | reserved: 14256.0 "
            "| max reserved: 14257.0",
            Memory(0, 13688.12, 14257.0),
        ),
        (
            ">>> done with dataset index builder. Compilation time: 9.740 seconds",
            Phase("index-builder-done", 9.74),
        ),
        ("> compiling and loading fused kernels ...", Phase("fused-kernels")),
        (
            "[exiting program after receiving SIGTERM.] datetime: 2026-11-24 20:47:44 ",
            Exiting("exiting program after receiving SIGTERM"),
        ),
        ("[exiting program after 60.01 minutes] datetime: 2026", Exiting("exiting program after 60.01 minutes")),
        ("[exiting program at iteration 50] datetime: 2026", Exiting("exiting program at iteration 50")),
        (
            "[2026-11-24 21:03:16,053] [ERROR] [launch.py:341:sigkill_handler] ['python', '-u'] exits with return code = -9",
            RankFailed(-9),
        ),
        ("wandb: \U0001f680 View run at https://wandb.ai/a/b/runs/c", Tracked("https://wandb.ai/a/b/runs/c")),
        ("wandb: Run data is saved locally in \x1b[35m/x/wandb/run-1\x1b[0m", Tracked("/x/wandb/run-1")),
    ],
)
def test_every_other_line(line: str, fact: Fact) -> None:
    assert one(line) == fact


def test_what_says_nothing_is_passed_over() -> None:
    log = b"iteration 3\nvalidation loss at iteration\n\xff\xfe consumed samples: \n--- attempt 2, 2026-11-24\n" * 3
    assert facts_in(log) == []


def test_a_line_that_another_rank_wrote_over_is_no_step() -> None:
    line = iteration(10, fp16=True)
    for hit in ("consumed tokens:         2560", "skipped iterations:   0"):
        assert hit in line
        assert facts_in(line.replace(hit, hit[: hit.index(":") + 1] + " nan").encode()) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "beginning", ["[exiting program after ", "successfully loaded checkpoint from ", "View run a ", "consumed samples: ", "iteration 1/ 2 | "]
)  # fmt: skip
def test_a_beginning_repeated_a_hundred_thousand_times_is_read_in_a_moment(beginning: str) -> None:
    assert facts_in(beginning.encode() * 100_000) == []
