"""The same failure in other words, under other launchers, and lines that only look like one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from core.troubleshoot.signature import Signature
from core.troubleshoot.signatures import load_signatures

from .conftest import DiagnoseText

HERE = Path(__file__).parent
WORDINGS: dict[str, list[str]] = yaml.safe_load((HERE / "wordings.yaml").read_text(encoding="utf-8"))
HARMLESS = (HERE / "harmless.txt").read_text(encoding="utf-8").splitlines()
OOM = (
    'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n    main()\n'
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB\n"
)
STRANGE = OOM[: OOM.rindex("torch.")] + "KeyError: 'x'\n"
FOLLOWERS = {
    "ranks": [
        "[E ProcessGroupNCCL.cpp:475] [Rank 7] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=15, OpType=ALLREDUCE)",
        "[E ProcessGroupNCCL.cpp:495] To avoid data inconsistency, we are taking the entire process down.",
        "Traceback (most recent call last):",
        '  File "/w/pretrain_gpt.py", line 362, in <module>',
        "    pretrain(provider)",
        "RuntimeError: NCCL communicator was aborted on rank 7.",
    ],
    "launcher": [
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
        "============================================================",
        "pretrain_gpt.py FAILED",
        "Root Cause (first observed failure):",
        "  exitcode  : 1 (pid: 3311)",
        "============================================================",
    ],
    "deepspeed": [
        "[ERROR] [launch.py:321:sigkill_handler] ['python', 'a.py', '--local_rank=7'] exits with return code = 1"
    ],
    "slurm": ["srun: error: node-2: task 5: Exited with exit code 1"],
}
MARKS = {
    "torch": "[rank{rank}]: ",
    "pdsh": "gpu-{node:02d}: ",
    "pdsh and torch": "gpu-{node:02d}: [rank{rank}]: ",
    "mpirun": "[1,{rank}]<stderr>:",
    "srun": "{rank}: ",
    "torchrun": "[default{rank}]:",
    "own": "[gpu-{node:02d}][rank {rank}] ",
    "compose": "gpu-{node:02d}  | ",
}


@pytest.mark.parametrize("signature_id", WORDINGS)
def test_other_wordings_of_a_failure_are_it_too(signature_id: str, diagnose_text: DiagnoseText) -> None:
    for text in WORDINGS[signature_id]:
        assert diagnose_text(text + "\n").verdict == signature_id, text


@pytest.mark.parametrize("line", HARMLESS, ids=range(len(HARMLESS)))
def test_a_harmless_line_changes_nothing(line: str, diagnose_text: DiagnoseText) -> None:
    assert diagnose_text(f"{line}\n").verdict == "healthy"
    for log in (f"{line}\n{OOM}", f"{OOM}{line}\n"):
        assert diagnose_text(log).verdict == "cuda-oom"
    for log in (f"{line}\n{STRANGE}", f"{STRANGE}{line}\n"):
        assert diagnose_text(log).verdict == "unknown"


def interleaved(signature: Signature, mark: str, chance: random.Random) -> str:
    """The sample on one rank, noise on three others, and what follows from the failure on one of them: before, after or between."""
    ranks = chance.sample(range(64), 4)

    def line(rank: int, text: str) -> str:
        return mark.format(rank=rank, node=rank // 8) + text

    noise = [line(chance.choice(ranks), chance.choice(HARMLESS)) for _ in range(chance.randint(5, 20))]
    cause = [line(ranks[0], text) for text in signature.sample.splitlines()]
    after = [line(ranks[2], text) for name in chance.sample(list(FOLLOWERS), 2) for text in FOLLOWERS[name]]
    order = chance.choice(("before", "behind", "between"))
    if order == "before":
        return "\n".join([*noise, *after, *cause, ""])
    if order == "behind":
        return "\n".join([*noise, *cause, *after, ""])
    mixed = noise
    while cause or after:
        mixed.append((cause if cause and (not after or chance.random() < 0.5) else after).pop(0))
    return "\n".join([*mixed, ""])


@pytest.mark.parametrize("launcher", MARKS)
def test_a_cause_is_found_among_other_ranks_under_every_launcher(launcher: str, diagnose_text: DiagnoseText) -> None:
    chance = random.Random(launcher)
    roots = [s for s in load_signatures() if s.role == "root" and s.match_when.stalled_for is None]
    misses = []
    for signature in roots:
        text = interleaved(signature, MARKS[launcher], chance)
        verdict = diagnose_text(text).verdict
        if verdict != signature.id:
            misses.append((signature.id, verdict))
    assert len(misses) <= 0.02 * len(roots), misses
