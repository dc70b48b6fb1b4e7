"""Train one small model on real hosts by every launcher, and compare the losses with those of as many processes on one host.

    python scripts/cluster_parity.py [--nodes 2 4] [--launchers ssh slurm submit deepspeed]

The hosts are namespaces of this machine with their own sshd and Slurm (tests/hosts.py): root is needed. Prints a table; exit code 1
where a loss differs by more than 1e-6 or a process is left over.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cluster.hosts import Hosts  # noqa: E402

from core.files import read_json  # noqa: E402

SETTINGS = (
    "pretrain.steps=12", "pretrain.global_batch=16", "pretrain.micro_batch=2", "pretrain.valid_interval=6",
    "pretrain.valid_batches=2", "pretrain.save_interval=4", "model.layers=2", "cluster.threads=1",
    "tokenizer.vocab_size=600", "model.sequence_length=64",
)  # fmt: skip


KERNELS = {
    "TORCH_EXTENSIONS_DIR": str(
        Path.home() / f".cache/torch_extensions/py{sys.version_info.major}{sys.version_info.minor}_cpu"
    )
}
"""Where DeepSpeed keeps what it compiles at its first start, for a minute: each host has a home of its own."""


def write_corpus(path: Path) -> None:
    chosen = random.Random(1)
    words = ["".join(chosen.choices("abcdefghijklmnop", k=chosen.randint(2, 7))) for _ in range(400)]
    lines = (json.dumps({"text": " ".join(chosen.choices(words, k=200))}) for _ in range(600))
    path.write_text("\n".join(lines) + "\n")


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "stages/pretrain/metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def command(launcher: str, nodes: int, runs: Path, corpus: Path, hosts: Hosts) -> list[str]:
    settings = [*SETTINGS, f"corpus.files={corpus}"]
    settings += {
        "local": ["cluster.launcher=local", f"cluster.processes={nodes}"],
        "slurm": ["cluster.launcher=slurm"],
        "submit": [f"slurm.nodes={nodes}", "slurm.cpus_per_task=1"],
    }.get(
        launcher, [f"cluster.launcher={launcher}", f"cluster.nodes={hosts.nodes[0]},{','.join(hosts.nodes[1:nodes])}"]
    )
    verb = [
        sys.executable,
        "-m",
        "core.cli",
        "run",
        "quickstart",
        "--runs-dir",
        str(runs),
        "--name",
        f"{launcher}{nodes}",
    ]
    verb += ["--until", "pretrain", *(word for one in settings for word in ("--set", one))]
    if launcher == "submit":
        return [*verb, "--submit"]
    return ["salloc", "-Q", f"-N{nodes}", *verb] if launcher == "slurm" else verb


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--launchers", nargs="+", default=["ssh", "slurm", "submit", "deepspeed"])
    options = parser.parse_args()
    good = True
    folder = Path(tempfile.mkdtemp(prefix="cluster-parity-"))
    write_corpus(folder / "corpus.jsonl")
    print(
        f"{'launcher':<10} {'hosts':>5} {'seconds':>8} {'loss of the last step':>24} {'largest difference':>19} {'left over':>10}"
    )
    with Hosts(4, slurm=True) as hosts:
        before = hosts.dot_ssh()
        for nodes in options.nodes:
            expected: list[float] = []
            for launcher in ("local", *options.launchers):
                run, began = folder / "runs" / f"{launcher}{nodes}", time.monotonic()
                argv = command(launcher, nodes, folder / "runs", folder / "corpus.jsonl", hosts)
                done = hosts.run(hosts.head, argv, KERNELS, cwd=folder, timeout=None)
                if launcher == "submit" and done.returncode == 0:
                    while (document := read_json(run / "state.json") if (run / "state.json").exists() else {}).get(
                        "state"
                    ) not in ("done", "failed", "stopped"):
                        time.sleep(0.5)
                    done.returncode = int(document["exit_code"])
                seconds = time.monotonic() - began
                if done.returncode:
                    print(f"{launcher:<10} {nodes:>5} failed\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
                    good = False
                    continue
                found = losses(run)
                expected = expected or found
                apart = max(abs(a - b) for a, b in zip(expected, found, strict=True))
                time.sleep(1)
                left = sum(len(hosts.pids(host, str(run))) for host in (hosts.head, *hosts.nodes))
                good &= apart <= 1e-6 and not left
                print(
                    f"{launcher:<10} {nodes:>5} {seconds:>8.1f} {found[-1]:>24.9f} {apart:>19.1e} {left:>10}",
                    flush=True,
                )
        same = hosts.dot_ssh() == before
    print(f"~/.ssh is {'byte-identical' if same else 'CHANGED'}")
    if good and same:
        shutil.rmtree(folder)
        return 0
    print(f"the runs are in {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
