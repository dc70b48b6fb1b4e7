"""All ranks of a pretraining, forked from one process that has imported PyTorch and DeepSpeed: what torchrun starts, at once.

Each rank is a process of its own with the variables that torchrun sets; they find each other over Gloo on a free port.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from core.files import read_json
from core.runs.directory import RunDirectory
from core.stages.command import ON_CPU


class ForkedRanks:
    """Starts the pretrain stage of a run on as many ranks as its plan says."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self._end, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,))
        self._process.start()

    def run(self, run: RunDirectory, timeout: float = 120, **env: str) -> list[int]:
        """Exit code of each rank, negative for a signal. `env` comes on top of the planned environment."""
        plan = next(stage for stage in read_json(run.plan)["stages"] if stage["id"] == "pretrain")
        self._end.send((str(run.root), plan["derived"]["processes"], timeout, {**plan["env"], **env}))
        codes: list[int] = self._end.recv()
        return codes

    def close(self) -> None:
        self._end.send(None)
        self._process.join(10)
        self._process.kill()


def output(run: RunDirectory) -> str:
    """What the ranks of the last start printed."""
    return max(run.root.glob("ranks-*.txt"), key=_start).read_text()


def samples(run: RunDirectory) -> list[dict[int, list[int]]]:
    """For each start of the stage: position in the data -> the sequences trained on from there, of all ranks."""
    starts: dict[int, dict[int, list[int]]] = {}
    for file in run.root.glob("ranks-*.samples"):
        for first, numbers in map(json.loads, file.read_text().splitlines()):
            taken = starts.setdefault(_start(file), {})
            assert first not in taken, f"two ranks trained on sample {first}"
            taken[first] = numbers
    return [starts[start] for start in sorted(starts)]


def _start(file: Path) -> int:
    return int(file.name.split("-")[1].split(".")[0])


def _serve(asked: Connection) -> None:
    os.environ.update(ON_CPU)  # DeepSpeed chooses its device when it is imported
    import core.train.deepspeed_engine
    import core.train.training  # noqa: F401

    while (request := asked.recv()) is not None:
        asked.send(_run(*request))


def _run(root: str, world_size: int, timeout: float, env: dict[str, str]) -> list[int]:
    start = len(list(Path(root).glob("ranks-*.txt")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    log = os.open(f"{root}/ranks-{start}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    ranks = []
    for rank in range(world_size):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        process = os.fork()
        if process == 0:
            os.environ.update(meeting | place | env)
            _be_rank(root, log, Path(f"{root}/ranks-{start}-{rank}.samples"))
        ranks.append(process)
    os.close(log)
    return _exit_codes(ranks, time.monotonic() + timeout)


def _be_rank(root: str, log: int, record: Path) -> None:
    code = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        _record_samples(record)
        from core.stages.entry import main

        code = main(["pretrain", root])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _record_samples(file: Path) -> None:
    """Write down what the training loop takes from the order of samples; it still takes it."""
    from core.train import order

    real: Any = order.SampleOrder.samples

    def recorded(self: order.SampleOrder, first: int, count: int) -> Any:
        numbers = real(self, first, count)
        with file.open("a") as lines:
            lines.write(json.dumps([int(first), numbers.tolist()]) + "\n")
        return numbers

    order.SampleOrder.samples = recorded  # type: ignore[method-assign]


def _exit_codes(processes: list[int], deadline: float) -> list[int]:
    codes: dict[int, int] = {}
    while len(codes) < len(processes):
        for process in set(processes) - codes.keys():
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                codes[process] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return [codes[process] for process in processes]
