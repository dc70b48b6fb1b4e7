"""Break a training on real hosts again and again, at random moments, and see that it is named right, goes on and leaves nothing.

    python scripts/cluster_faults.py [--count 20] [--kinds rank node link packets supervisor] [--seed 1] [--minutes 60]

`rank` and `node` are SIGKILL of one rank and of all processes of a host; `link` takes an interface down, `packets` lets them vanish,
both until the run goes on without that host; after `supervisor` (SIGKILL) the script types `llm-wizard resume`. Two hosts train, two are spares; the hosts are
namespaces of this machine (tests/hosts.py: root is needed), and another user's processes run on each. Kinds take turns, so that a run
that is cut short by --minutes has equally many of each. Prints a table and what was wrong; exit code 1 where something was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

from cluster.hosts import Hosts  # noqa: E402
from cluster_parity import KERNELS, SETTINGS, write_corpus  # noqa: E402

EXPECTED = {"rank": {"rank"}, "node": {"node"}, "link": {"link"}, "packets": {"link"}}


@dataclass
class Broken:
    """One fault: when, where, and what came of it (seconds; None where it never came)."""

    kind: str
    node: str
    at: float
    named: float | None = None
    recovered: float | None = None
    wrong: str = ""
    left: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)


class Training:
    """One long run, its files, and the hosts under it."""

    def __init__(self, hosts: Hosts, folder: Path, timeout: float) -> None:
        self.hosts, self.folder, self.timeout = hosts, folder, timeout
        self.run = folder / "runs" / "faults"
        self.random = random.Random()

    def start(self) -> None:
        settings = {
            **dict(one.split("=") for one in SETTINGS), "corpus.files": f"{self.folder}/corpus.jsonl",
            "pretrain.steps": "1000000", "pretrain.save_interval": "10", "pretrain.valid_interval": "1000000",
            "cluster.nodes": ",".join(self.hosts.nodes[:2]), "cluster.spares": ",".join(self.hosts.nodes[2:]),
            "cluster.restarts": "3",
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        self.verb("run", "quickstart", "--name", "faults", "--until", "pretrain", "--detach", *words)

    def verb(self, *words: str) -> None:
        argv = [sys.executable, "-m", "core.cli", *words, "--runs-dir", str(self.run.parent)]
        done = self.hosts.run(self.hosts.head, argv, KERNELS, cwd=self.folder)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")

    def records(self) -> list[dict[str, Any]]:
        return _lines(self.run / "stages/pretrain/metrics.jsonl")

    def events(self, since: float) -> list[dict[str, Any]]:
        return [event for event in _lines(self.run / "events.jsonl") if event["time"] >= since]

    def state(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.run / "state.json").read_text())
        return document

    def wait_for_step(self, since: float) -> float | None:
        """When the first step after `since` was reported."""
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            if self.records() and (last := self.records()[-1])["time"] > since and last["step"] > 0:
                return next(one["time"] for one in self.records() if one["time"] > since)
            if since and self.state()["state"] not in ("running", "stopped"):
                return None
            time.sleep(0.1)
        return None

    def nodes(self) -> list[str]:
        launched = [event for event in self.events(0) if event["kind"] == "launched"]
        return list(launched[-1]["nodes"])

    def left(self) -> int:
        return sum(len(self.hosts.pids(host, str(self.run))) for host in self.hosts.names)

    def break_it(self, kind: str, node: str | None = None) -> Broken:
        """Break it (at `node`, or at any), watch it come back, and mend what was broken."""
        node = node or self.random.choice(self.nodes())
        time.sleep(self.random.uniform(0, 6))
        fault = Broken(kind, node, time.time())
        if kind == "rank":
            os.kill(self.random.choice(list(self.hosts.rank_pids(node, str(self.run)).values())), signal.SIGKILL)
        elif kind == "node":
            self.hosts.kill_node(node)
        elif kind == "link":
            self.hosts.link_down(node)
        elif kind == "packets":
            self.hosts.drop_packets(node)
        else:
            self._kill_supervisor(fault)
        step_after = self._first_step_of_a_later_attempt(fault)
        if step_after is not None:
            fault.recovered = step_after - fault.at
        fault.events = self.events(fault.at)
        self._judge(fault)
        self._mend(fault)
        return fault

    def _kill_supervisor(self, fault: Broken) -> None:
        on_head = self.hosts.processes(self.hosts.head)
        pids = [one.machine_pid for one in on_head if any("supervise.py" in word for word in one.argv)]
        os.kill(pids[0], signal.SIGKILL)
        fault.at = time.time()
        while self.left() and time.time() < fault.at + 60:
            time.sleep(0.1)
        fault.named = time.time() - fault.at  # here: until nothing of the run is left anywhere
        fault.left = self.left()
        self.verb("resume", "faults", "--detach")

    def _first_step_of_a_later_attempt(self, fault: Broken) -> float | None:
        before = max((one["attempt"] for one in self.records() if one["time"] <= fault.at), default=0)
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            for one in reversed(self.records()):
                if one["time"] <= fault.at:
                    break
                if one["attempt"] > before:
                    return next(r["time"] for r in self.records() if r["attempt"] > before and r["time"] > fault.at)
            if self.state()["state"] in ("failed", "done"):
                return None
            time.sleep(0.1)
        return None

    def _judge(self, fault: Broken) -> None:
        if fault.kind == "supervisor":
            fault.wrong = f"{fault.left} processes left" if fault.left else ""
        else:
            named = [event for event in fault.events if event["kind"] == "trouble"]
            if named:
                fault.named = named[0]["time"] - fault.at
                if named[0]["trouble"] not in EXPECTED[fault.kind] or named[0]["node"] != fault.node:
                    fault.wrong = f"named {named[0]['trouble']} on {named[0]['node']}: {named[0]['text']}"
            else:
                fault.wrong = "not named"
        if fault.recovered is None:
            fault.wrong += f"; did not come back: {self.state()['stages']['pretrain'].get('error')}"

    def _mend(self, fault: Broken) -> None:
        if fault.kind == "node":
            self.hosts.revive(fault.node)
        elif fault.kind == "link":
            self.hosts.link_up(fault.node)
        elif fault.kind == "packets":
            self.hosts.accept_packets(fault.node)
        if fault.kind in ("link", "packets"):
            # What ran there was cut off from its head: it must have ended by itself.
            deadline = time.time() + 40
            while (
                self.hosts.pids(fault.node, str(self.run)) and fault.node not in self.nodes() and time.time() < deadline
            ):
                time.sleep(0.2)
            if fault.node not in self.nodes():
                fault.left = len(self.hosts.rank_pids(fault.node, str(self.run)))
                fault.wrong += f"; {fault.left} ranks still run on {fault.node}" if fault.left else ""


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except OSError:
        return []
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def replayed_differently(records: list[dict[str, Any]]) -> list[int]:
    """Steps that several attempts took, with another loss: resuming must give what never stopping gives."""
    losses: dict[int, set[str]] = {}
    for record in records:
        if "loss" in record:
            losses.setdefault(record["step"], set()).add(float(record["loss"]).hex())
    return sorted(step for step, values in losses.items() if len(values) > 1)


def row(kind: str, faults: list[Broken]) -> str:
    def spread(values: list[float | None]) -> str:
        known = sorted(value for value in values if value is not None)
        if not known:
            return f"{'-':>8} {'-':>8}"
        return f"{statistics.median(known):>8.1f} {known[min(len(known) - 1, int(0.95 * len(known)))]:>8.1f}"

    wrong = sum(bool(fault.wrong) for fault in faults)
    return (
        f"{kind:<11} {len(faults):>5} {spread([one.named for one in faults])} "
        f"{spread([one.recovered for one in faults])} {wrong:>6}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ["rank", "node", "link", "packets", "supervisor"]
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--minutes", type=float, default=120)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="cluster-faults-"))
    write_corpus(folder / "corpus.jsonl")
    faults: list[Broken] = []
    end = time.monotonic() + 60 * options.minutes
    with Hosts(4) as hosts:
        before = hosts.dot_ssh()
        others = {
            host: hosts.popen(host, ["sleep", "100000"], {"LLM_WIZARD_RUN": "/another/run", "RANK": "0"})
            for host in hosts.nodes
        }
        training = Training(hosts, folder, timeout=240)
        training.random.seed(options.seed)
        training.start()
        training.wait_for_step(0)
        for number in range(options.count * len(options.kinds)):
            kind = options.kinds[number % len(options.kinds)]
            if time.monotonic() > end:
                print(f"cut short after {options.minutes:.0f} minutes")
                break
            fault = training.break_it(kind)
            if kind == "node":
                others[fault.node] = hosts.popen(
                    fault.node, ["sleep", "100000"], {"LLM_WIZARD_RUN": "/another/run", "RANK": "0"}
                )
            faults.append(fault)
            said = f" WRONG: {fault.wrong}" if fault.wrong else ""
            named = "-" if fault.named is None else f"{fault.named:.1f}"
            back = "-" if fault.recovered is None else f"{fault.recovered:.1f}"
            print(
                f"{number + 1:>4} {kind:<11} {fault.node:<8} named {named:>5} s, steps again {back:>6} s{said}",
                flush=True,
            )
            if fault.recovered is None:
                break
        touched = [host for host, process in others.items() if not hosts.pids(host, "/another/run")]
        training.verb("stop", "faults")
        time.sleep(1)
        left = training.left()
        differing = replayed_differently(training.records())
        same = hosts.dot_ssh() == before
    print(f"\n{'fault':<11} {'times':>5} {'named after, s':>17} {'steps again after, s':>17}")
    print(f"{'':<11} {'':>5} {'p50':>8} {'p95':>8} {'p50':>8} {'p95':>8} {'wrong':>6}")
    for kind in options.kinds:
        print(row(kind, [fault for fault in faults if fault.kind == kind]))
    print("(supervisor: the first two are until no process of the run is left on any host)")
    print(f"left over after a stop: {left}; another user's processes ended: {touched or 'none'}")
    print(
        f"steps replayed with another loss: {differing[:5] or 'none'}; ~/.ssh {'byte-identical' if same else 'CHANGED'}"
    )
    if not left and not touched and not differing and same and not any(fault.wrong for fault in faults):
        shutil.rmtree(folder)
        return 0
    print(f"the run is in {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
