"""How long `diagnose` takes for a large log, and how much memory: one core, the whole command as a user types it.

    python scripts/diagnose_speed.py [--gigabytes 1] [--folder /tmp]

The log is what such logs are: training steps of several ranks, NCCL's lines with addresses, progress bars, warnings, file names
with hashes, and lines of 200,000 characters; three quarters of the way in rank 5 runs out of memory, the others follow, and from
then on there are no more training steps.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
CAUSE = (
    "node-2: [rank5]: Traceback (most recent call last):\n"
    'node-2: [rank5]:   File "/work/pretrain_gpt.py", line 362, in <module>\n'
    "node-2: [rank5]:     pretrain(model_provider, forward_step)\n"
    "node-2: [rank5]: torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 280.00 MiB. GPU 1 has a total capacty of 79.33 GiB\n"
    "node-1: [rank0]:[E321 02:07:08.408 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=15)\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    path = options.folder / f"diagnose-speed-{os.getpid()}.log"
    try:
        size = write_log(path, int(options.gigabytes * 1e9))
        measure(path, size)
    finally:
        path.unlink(missing_ok=True)


def write_log(path: Path, size: int) -> int:
    """Write about `size` bytes; returns how many."""
    chance = random.Random(1)
    blocks = [_block(chance, steps=True) for _ in range(24)]
    written, caused = 0, False
    with path.open("wb") as file:
        while written < size:
            written += file.write(chance.choice(blocks))
            if not caused and written > 0.75 * size:
                written += file.write(CAUSE.encode())
                blocks = [_block(chance, steps=False) for _ in range(8)]
                caused = True
    return written


def _block(chance: random.Random, steps: bool) -> bytes:
    """About 4 MB of healthy lines."""
    lines: list[str] = []
    size = 0
    while size < 4_000_000:
        line = _line(chance, steps)
        lines.append(line)
        size += len(line) + 1
    lines.insert(len(lines) // 2, "x" * 100_000 + " " + "args " * 20_000)
    return ("\n".join(lines) + "\n").encode()


def _line(chance: random.Random, steps: bool) -> str:
    node, rank, step = chance.randint(1, 16), chance.randint(0, 127), chance.randint(1, 500_000)
    kind = chance.uniform(0.0 if steps else 0.75, 1.0)
    if kind < 0.55:
        return (
            f"node-{node}:  iteration {step:8d}/  572204 | consumed samples: {step * 512:12d} | elapsed time per iteration (ms): {chance.random() * 9000:.1f} | "
            f"learning rate: {chance.random() * 1e-4:.6E} | global batch size:   512 | lm loss: {chance.random() * 9:.6E} | loss scale: 4096.0 | "
            f"grad norm: {chance.random():.3f} | number of skipped iterations:   0 | number of nan iterations:   0 | "
        )
    if kind < 0.75:
        return f"node-{node}: [2024-03-27 19:15:{step % 60:02d},{step % 1000:03d}] [INFO] [logging.py:96:log_dist] [Rank {rank}] step={step}, skipped=0, lr=[{chance.random():.8e}]"
    if kind < 0.85:
        return f"node-{node}: gpu{node}:{step}:{step + 9} [{rank % 8}] NCCL INFO comm 0x{chance.getrandbits(48):x} rank {rank} nranks 128 cudaDev {rank % 8} busId {chance.getrandbits(20):x}"
    if kind < 0.92:
        return f"\r{step % 100:3d}%|{'█' * (step % 10):<10}| {step}/500000 [00:{step % 60:02d}<01:00, {chance.random() * 9:.2f}it/s]"
    if kind < 0.97:
        return f"[rank{rank}]: loading shard /data/pile/{chance.getrandbits(64):016x}.bin with {step} documents"
    return f"[rank{rank}]: /opt/python3.10/site-packages/torch/utils/checkpoint.py:{step % 999}: UserWarning: please pass in use_reentrant explicitly"


def measure(path: Path, size: int) -> None:
    """Run the command once, pinned to one core, and print what it took."""
    core = min(os.sched_getaffinity(0))
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "core.cli", "diagnose", "--json", str(path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait()
    wall = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{size / 1e9:.2f} GB: wall {wall:.1f} s, CPU {used.ru_utime + used.ru_stime:.1f} s, peak RSS {used.ru_maxrss / 1024:.0f} MB"
    )
    print(output.decode().splitlines()[2].strip())


if __name__ == "__main__":
    main()
