"""How soon trouble with a watched node is named, and how soon it is watched again: agents on real hosts over ssh.

    python tests/bench/agents_over_ssh.py [--rounds 10]        # needs root: namespaces, an sshd a host

A table: what was done, seconds until its event (p50, p95, worst), and from its mending until the event that says so.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import orjson  # noqa: E402
from cluster.hosts import Hosts  # noqa: E402

from core.cluster.samples import NodeSamples  # noqa: E402
from core.runs.directory import RunDirectory  # noqa: E402

SCRIPT = TESTS / "cluster" / "watch_nodes.py"


def events(root: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (root / "events.jsonl").read_bytes().splitlines()]


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def after(root: Path, begin: float, node: str, states: tuple[str, ...]) -> Callable[[], dict[str, Any] | None]:
    def look() -> dict[str, Any] | None:
        return next(
            (
                one
                for one in events(root)
                if one["time"] >= begin and one.get("node") == node and one["state"] in states
            ),
            None,
        )

    return look


def measure(hosts: Hosts, root: Path, rounds: int) -> None:
    (root / "events.jsonl").touch()
    names = list(hosts.nodes[:3])
    head = hosts.popen(hosts.head, [sys.executable, str(SCRIPT), str(root), ",".join(names)])
    samples = NodeSamples(RunDirectory(root))
    wait_for(lambda: sum(view.sample is not None for view in samples.look(time.time())) == 1 + len(names))

    def kill_agent(node: str) -> None:
        hosts.run(node, ["pkill", "-9", "-f", "^[^ ]*python.* llm-wizard-agen[t]"])

    nothing: Callable[[str], None] = lambda node: None  # noqa: E731
    deeds = {
        "agent killed": (kill_agent, nothing, ("agent ended",)),
        "link down": (hosts.link_down, hosts.link_up, ("no contact",)),
        "packets dropped": (hosts.drop_packets, hosts.accept_packets, ("no contact",)),
        "node killed": (hosts.kill_node, hosts.revive, ("no contact",)),
    }
    print(f"{'':<18}{'named p50':>10}{'p95':>7}{'worst':>7}{'back p50':>10}{'p95':>7}{'worst':>7}   seconds")
    for deed, (harm, mend, states) in deeds.items():
        named, back, words = [], [], set()
        for number in range(rounds):
            node = names[number % len(names)]
            time.sleep(random.uniform(0.5, 2.5))  # at any phase of the two seconds between samples
            begin = time.time()
            harm(node)
            found = wait_for(after(root, begin, node, ("agent ended", "no contact")))
            assert found["state"] in states, found
            named.append(found["time"] - begin)
            words.add(found["text"].replace(node, "NODE"))
            begin = time.time()
            mend(node)
            back.append(wait_for(after(root, begin, node, ("back",)))["time"] - begin)
            # A node that comes and goes within a minute is believed later each time; here each trouble is the first.
            if number % len(names) == len(names) - 1:
                head.kill()
                head.wait()
                head = hosts.popen(hosts.head, [sys.executable, str(SCRIPT), str(root), ",".join(names)])
                begin = time.time()
                wait_for(
                    lambda begin=begin: all(v.sample and v.sample["time"] > begin for v in samples.look(time.time()))
                )
        print(f"{deed:<18}{_figures(named, 10)}{_figures(back, 10)}   {'; '.join(sorted(words))[:150]}", flush=True)
    (root / "stop").touch()
    head.wait(30)
    time.sleep(1)
    left = sum(
        "llm-wizard-agen" in hosts.run(node, ["sh", "-c", "ps -eo args"]).stdout for node in (hosts.head, *names)
    )
    print(f"hosts with an agent left behind: {left}")


def _figures(values: list[float], width: int) -> str:
    values = sorted(values)
    p95 = values[min(len(values) - 1, int(0.95 * len(values)))]
    return f"{values[len(values) // 2]:>{width}.1f}{p95:>7.1f}{values[-1]:>7.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with Hosts(3) as hosts, tempfile.TemporaryDirectory() as folder:
        measure(hosts, Path(folder), options.rounds)
    print(f"(Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})")


if __name__ == "__main__":
    main()
