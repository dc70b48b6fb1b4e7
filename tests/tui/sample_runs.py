"""Run directories as a supervisor leaves them, with fixed times and numbers: what the pictures of the screens show."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.facts import Facts
from core.files import write_json
from core.plan import make_plan
from core.preset_source import load_preset
from core.runs.create import reserve
from core.runs.directory import RunDirectory
from core.runs.lock import sign_lock, take_lock

NOW = 1_800_000_000.0
FACTS = Facts(
    python="/opt/llm-wizard/bin/python", host="node-001", cores=2, memory=24 << 30, disk_free=200 << 30, path="/usr/bin"
)
ORDER = ("environment", "corpus", "tokenizer", "data", "pretrain")


def running_run(runs_dir: Path, name: str = "quickstart", step: int = 640) -> RunDirectory:
    """A quickstart in the middle of its pretraining, on two nodes of which one has not answered for a while.

    It counts as running only inside `alive(run)`.
    """
    run = _reserved(runs_dir, name)
    _write_state(run, "running", pretrain={"state": "running", "started": NOW - 200, "ended": None, "attempt": 1})
    _write_metrics(run, step)
    _lines(
        run.events,
        {"time": NOW - 300, "kind": "run-started", "pid": 4242},
        {"time": NOW - 200, "kind": "stage-started", "stage": "pretrain", "attempt": 1},
        {"time": NOW - 120, "kind": "checkpoint", "stage": "pretrain", "step": 200, "path": "checkpoints/step-200"},
        {"time": NOW - 60, "kind": "checkpoint", "stage": "pretrain", "step": 400, "path": "checkpoints/step-400"},
        {"time": NOW - 30, "kind": "warning", "text": "the loss rose by 0.8 within 10 steps"},
    )
    run.log("pretrain").write_text(
        "".join(
            f"step {at}/4,000  loss {_loss(at):.4f}  lr 1.50e-03  grad 0.95  15,119 tokens/s\n"
            for at in range(step - 60, step + 1)
        )
        + "\x1b[31m[rank1]: a coloured line\x1b[0m [bold]not markup[/bold]\n"
    )
    _write_nodes(run)
    return run


def failed_run(runs_dir: Path, name: str = "out-of-memory") -> RunDirectory:
    """A run whose pretraining ran out of GPU memory."""
    run = _reserved(runs_dir, name)
    words = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB "
        "of which 1.05 GiB is free."
    )
    run.log("pretrain").write_text(
        "step 12/4,000  loss 6.1012\nTraceback (most recent call last):\n"
        '  File "/opt/run/code/core/train/loop.py", line 120, in train\n    loss.backward()\n' + words + "\n"
    )
    failed = {
        "state": "failed",
        "started": NOW - 4000,
        "ended": NOW - 3600,
        "attempt": 1,
        "log": str(run.log("pretrain")),
        "error": words,
        "evidence": {"line": 5, "text": words, "hint": ""},
        "process_exit_code": 1,
        "exit_code": 2,
    }
    _write_state(run, "failed", pretrain=failed, started=NOW - 4100, ended=NOW - 3600, exit_code=2)
    _write_metrics(run, 12)
    _lines(run.events, {"time": NOW - 3600, "kind": "stage-failed", "stage": "pretrain", "error": words})
    return run


def append_metrics(run: RunDirectory, *records: dict[str, object]) -> None:
    with run.metrics("pretrain").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


@contextlib.contextmanager
def alive(run: RunDirectory) -> Iterator[RunDirectory]:
    """Hold the run's lock, as its supervisor does."""
    import os

    lock = take_lock(run)
    sign_lock(lock)
    try:
        yield run
    finally:
        os.close(lock)


def _reserved(runs_dir: Path, name: str) -> RunDirectory:
    """Everything of a run's folder but the copy of the code, which no screen reads."""
    run = reserve(runs_dir, name)
    loaded = load_preset("quickstart")
    plan = make_plan(loaded.preset, loaded.name, FACTS, run)
    for folder in (run.requests, run.checkpoints, run.outputs, *(run.stage(stage.id) for stage in plan.stages)):
        folder.mkdir(parents=True)
    write_json(run.plan, plan.document())
    return run


def _write_state(run: RunDirectory, state: str, pretrain: dict[str, object], **values: object) -> None:
    stages: dict[str, object] = {}
    for place, stage_id in enumerate(ORDER[:-1]):
        stages[stage_id] = {
            "state": "done",
            "started": NOW - 300 + 20 * place,
            "ended": NOW - 280 + 20 * place,
            "attempt": 1,
            "outputs": {},
            "metrics": {"tokens": 1_471_447, "documents": 4528, "unigram_entropy_nats": 5.107}
            if stage_id == "data"
            else {},
            "exit_code": 0,
        }
    stages["pretrain"] = pretrain
    for stage_id in ("convert", "upload-pretrained", "finetune", "upload-finetuned"):
        stages[stage_id] = {"state": "waiting", "started": None, "ended": None}
    document = {
        "schema_version": 1,
        "run": run.name,
        "preset": "quickstart",
        "state": state,
        "stage": "pretrain",
        "started": NOW - 300,
        "ended": None,
        "exit_code": None,
        "stages": stages,
    }
    write_json(run.state, document | values)


def _loss(step: int) -> float:
    return 2.2 + 4.8 * math.exp(-step / 150) + 0.12 * math.sin(step * 1.7) * math.exp(-step / 900)


def _write_metrics(run: RunDirectory, last: int) -> None:
    records = []
    for step in range(last + 1):
        record: dict[str, object] = {
            "time": NOW - 0.2 * (last - step),
            "total": 4000,
            "step": step,
            "tokens": 1024 * step,
        }
        if step:
            lost = 300 <= step < 306  # a stretch without a number: the curve has a gap there
            record |= {
                "loss": None if lost else _loss(step),
                "lr": 2e-3 * min(1, step / 100),
                "grad_norm": 0.9 + 0.1 * math.sin(step / 9),
                "tokens_per_s": 15_000 + 900 * math.sin(step / 15),
                "mfu": None,
                "step_ms": 68.0,
                "attempt": 1,
            }
        if step % 100 == 0:
            record |= {"val_loss": _loss(step) + 0.1, "val_bits_per_byte": (_loss(step) + 0.1) / 1.6}
        records.append(record)
    _lines(run.metrics("pretrain"), *records)


def _write_nodes(run: RunDirectory) -> None:
    nodes = run.root / "nodes"
    nodes.mkdir()
    for number, age in ((1, 1.0), (2, 95.0)):
        samples = [node_sample(f"node-{number:03d}", seq, NOW - age - 2.0 * (59 - seq)) for seq in range(60)]
        _lines(nodes / f"node-{number:03d}.jsonl", *samples)


def node_sample(host: str, seq: int, at: float) -> dict[str, Any]:
    """What the collector writes of a node with eight GPUs."""
    gpus = [
        {
            "index": index,
            "name": "NVIDIA H100 80GB HBM3",
            "util": max(0, 98 - 11 * index - seq % 7),
            "memory_used": (60 + index) << 30,
            "memory_total": 80 << 30,
            "temperature": 55 + 3 * index,
            "power": 640.0 - 20 * index,
            "power_limit": 700.0,
            "clock": 1980,
        }
        for index in range(8)
    ]
    processes = [
        {
            "pid": 5000 + i,
            "rank": i,
            "local_rank": i,
            "gpu": i,
            "cpu": 99.0,
            "rss": 9 << 30,
            "gpu_memory": 60 << 30,
            "name": "python",
        }
        for i in range(8)
    ]
    slow = {"processes": processes, "gpus": [{"index": i, "ecc": 0, "throttle": "", "xid": None} for i in range(8)]}
    return {
        "time": at,
        "host": host,
        "seq": seq,
        "period": 2.0,
        "gpus": gpus,
        "nvml": "ok",
        "nvml_blocked_s": 0.0,
        "cpu": 37.5,
        "cores": 96,
        "load": 12.5,
        "memory_used": 300 << 30,
        "memory_total": 1 << 40,
        "disk_free": 2 << 40,
        "disk_total": 4 << 40,
        "net_rx": 1.5e6,
        "net_tx": 1.2e6,
        "ib_rx": 4.1e9,
        "ib_tx": 4.0e9,
        "slow": slow if seq % 15 == 0 else None,
    }


def _lines(path: Path, *records: dict[str, object]) -> None:
    # Without spaces, as the supervisor and the collector write them: readers search the bytes.
    path.write_text("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records))
