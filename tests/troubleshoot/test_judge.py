"""What is believed over what: the rules of the judge, one log each."""

from __future__ import annotations

from .conftest import DiagnoseText

OOM = (
    "Traceback (most recent call last):\n"
    '  File "/w/train.py", line 9, in <module>\n'
    "    main()\n"
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
)
STEPS = "".join(f"step {step}/900  loss 4.{step}  lr 1.00e-03\n" for step in range(10, 20))
WATCHDOG = (
    "[rank0]:[E1 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=15)\n"
)


def of_rank(rank: int, text: str) -> str:
    return "".join(f"[rank{rank}]: {line}\n" for line in text.splitlines())


def test_a_cause_wins_over_what_follows_whichever_line_came_first(diagnose_text: DiagnoseText) -> None:
    found = diagnose_text(WATCHDOG + of_rank(3, OOM))
    assert found.verdict == "cuda-oom"
    assert [finding.signature.id for finding in found.findings] == ["cuda-oom", "nccl-watchdog-timeout"]
    assert found.findings[0].origin == "rank 3"
    assert found.findings[0].line == 5


def test_a_follower_alone_is_the_verdict(diagnose_text: DiagnoseText) -> None:
    assert diagnose_text(WATCHDOG).verdict == "nccl-watchdog-timeout"


def test_the_earliest_cause_of_all_ranks_wins(diagnose_text: DiagnoseText) -> None:
    full = "OSError: [Errno 28] No space left on device"
    text = of_rank(7, f"Traceback (most recent call last):\n  File 'x', line 1\n{full}") + of_rank(2, OOM)
    assert diagnose_text(text).verdict == "disk-full"


def test_a_cause_that_brings_the_other_about_wins_although_it_comes_later(diagnose_text: DiagnoseText) -> None:
    text = (
        "RuntimeError: DataLoader worker (pid 1817) is killed by signal: Killed.\n"
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=19.0 cgroup.\n"
    )
    assert diagnose_text(text).verdict == "slurm-oom-kill"


def test_the_text_of_source_lines_is_not_evidence(diagnose_text: DiagnoseText) -> None:
    text = (
        "Traceback (most recent call last):\n"
        '  File "/w/a.py", line 3, in f\n'
        '    raise RuntimeError("CUDA out of memory. Tried to allocate")\n'
        "    ^^^^^^^^^^^^^^^^^^^^^^^\n"
        "KeyError: 'text'\n"
    )
    assert diagnose_text(text).verdict == "unknown"


def test_an_exception_that_nobody_described_in_the_rank_that_failed_is_unknown(diagnose_text: DiagnoseText) -> None:
    strange = 'Traceback (most recent call last):\n  File "/w/a.py", line 3, in f\n    g()\nmy.pkg.Odd: shard 7\n'
    found = diagnose_text(STEPS + of_rank(5, strange) + WATCHDOG + "srun: error: n1: task 5: Exited with exit code 1\n")
    assert found.verdict == "unknown"
    assert found.excerpt[-1] == "my.pkg.Odd: shard 7"
    assert found.excerpt_place.endswith(":14 (rank 5)")


def test_what_was_caught_and_went_on_is_no_failure(diagnose_text: DiagnoseText) -> None:
    assert diagnose_text(OOM + "retrying with half the batch\n" + STEPS).verdict == "healthy"
    assert diagnose_text("RuntimeError: CUDA out of memory. Retrying with batch 4\n" + STEPS).verdict == "healthy"


def test_a_loss_that_is_not_a_number_stays_a_failure_while_steps_go_on(diagnose_text: DiagnoseText) -> None:
    text = STEPS + "step 20/900  loss nan  lr 1.00e-03\n" + STEPS.replace("loss 4.", "loss 9.")
    assert diagnose_text(text).verdict == "loss-nan"


def test_notices_of_another_try_count_only_where_nothing_else_explains_the_end(diagnose_text: DiagnoseText) -> None:
    notice = "n1:9:9 [0] NCCL INFO Call to connect returned Connection refused, retrying\n"
    assert diagnose_text(notice * 3 + OOM).verdict == "cuda-oom"
    assert diagnose_text(notice * 3 + STEPS).verdict == "healthy"
    assert diagnose_text(notice * 3 + WATCHDOG).verdict == "nccl-wrong-interface"
    assert diagnose_text(notice * 3 + STEPS + WATCHDOG).verdict == "nccl-watchdog-timeout"


def test_compiling_kernels_is_a_finding_only_when_it_hangs(diagnose_text: DiagnoseText) -> None:
    text = "> initializing torch distributed ...\n> compiling and loading fused kernels ...\nninja: no work to do.\n"
    assert diagnose_text(text).verdict == "healthy"
    assert diagnose_text(text, stalled_for=90).verdict == "healthy"
    assert diagnose_text(text, stalled_for=600).verdict == "fused-kernels-stuck"
    ended = text + ">>> done with compiling and loading fused kernels. Compilation time: 2.1 seconds\n"
    assert diagnose_text(ended, stalled_for=600).verdict == "unknown"


def test_a_few_overflows_are_the_search_for_a_scale(diagnose_text: DiagnoseText) -> None:
    line = "[deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 64.0, reducing to 32.0\n"
    assert diagnose_text(line * 3).verdict == "healthy"
    assert diagnose_text(line * 8 + STEPS).verdict == "healthy"
    assert diagnose_text(STEPS + line * 8).verdict == "fp16-overflow-skip"


def test_a_missing_latest_file_counts_where_a_resume_was_asked_for(diagnose_text: DiagnoseText) -> None:
    line = "[WARNING] [engine.py:2796:load_checkpoint] Unable to find latest file at out/latest, if trying to load\n"
    first = line + "    will not load any checkpoints and will start from random\n"
    assert diagnose_text(first + STEPS).verdict == "healthy"
    assert diagnose_text("resuming from out\n" + line + STEPS).verdict == "ds-latest-missing"


def test_an_exit_code_or_a_stall_without_a_word_is_not_healthy(diagnose_text: DiagnoseText) -> None:
    assert diagnose_text(STEPS).verdict == "healthy"
    assert diagnose_text(STEPS, exit_code=0).verdict == "healthy"
    assert diagnose_text(STEPS, exit_code=1).verdict == "unknown"
    assert diagnose_text(STEPS, stalled_for=900).verdict == "unknown"


def test_exceptions_in_destructors_are_no_failure(diagnose_text: DiagnoseText) -> None:
    text = STEPS + (
        "Exception ignored in: <function Engine.__del__ at 0x7f>\nTraceback (most recent call last):\n"
        '  File "/w/e.py", line 3, in __del__\n    self.x.close()\nAttributeError: x\n'
    )
    assert diagnose_text(text).verdict == "healthy"


def test_a_rank_that_fell_silent_after_its_cause_explains_a_bad_end(diagnose_text: DiagnoseText) -> None:
    """Lines of other ranks that were held back are no sign that this rank went on."""
    late = "".join(of_rank(0, line) for line in STEPS.splitlines())
    launcher = (
        "E1103 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: 1) local_rank: 3 (pid: 11)\n"
    )
    assert diagnose_text(of_rank(3, OOM) + late + launcher).verdict == "cuda-oom"
    assert diagnose_text(of_rank(3, OOM + STEPS) + late + launcher).verdict != "cuda-oom"
    assert diagnose_text(of_rank(3, OOM) + late).verdict == "healthy"


def test_a_cancelled_job_is_not_healthy(diagnose_text: DiagnoseText) -> None:
    line = "slurmstepd: error: *** STEP 411223.0 ON c1 CANCELLED AT 2025-09-11T12:00:17 ***\n"
    assert diagnose_text(STEPS + line).verdict == "unknown"
    assert diagnose_text(OOM + line).verdict == "cuda-oom"
    assert diagnose_text(STEPS + line + line.replace("***\n", "DUE TO TIME LIMIT ***\n")).verdict == "slurm-time-limit"


def test_a_run_that_was_interrupted_is_not_healthy(diagnose_text: DiagnoseText) -> None:
    head = 'Traceback (most recent call last):\n  File "/w/a.py", line 9, in f\n    g()\n'
    for last in (
        "KeyboardInterrupt\n",
        "torch.distributed.elastic.multiprocessing.api.SignalException: Process 5 got signal: 15\n",
    ):
        assert diagnose_text(STEPS + head + last).verdict == "unknown"
        assert diagnose_text(head + last + STEPS).verdict == "healthy"
        assert diagnose_text(OOM + head + last).verdict == "cuda-oom"


def test_an_inner_exception_nobody_knows_leaves_the_failure_that_announces_it(diagnose_text: DiagnoseText) -> None:
    text = (
        'Traceback (most recent call last):\n  File "/w/a.py", line 9, in f\n    g()\n'
        "torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:\n"
    )
    assert (
        diagnose_text(text + "AttributeError: 'NoneType' object has no attribute 'meta'\n").verdict
        == "inductor-backend-failed"
    )
    assert diagnose_text(text + "torch.OutOfMemoryError: CUDA out of memory.\n").verdict == "cuda-oom"
