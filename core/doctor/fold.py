"""Many nodes in few words: equal values are said once, with the nodes that differ by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from core.doctor.check import Judge, Values
from core.doctor.finding import Status, Verdict
from core.doctor.needs import Needs
from core.language import tr

NAMED = 8
"""How many nodes are named before the rest is counted."""


def nodes_text(nodes: list[str]) -> str:
    """node1, node2 and 14 more."""
    if len(nodes) <= NAMED:
        return ", ".join(nodes)
    return tr("{nodes} and {count} more", nodes=", ".join(nodes[:NAMED]), count=len(nodes) - NAMED)


def fold(values: Mapping[str, str]) -> str:
    """Values by node as `6 nodes 2.2.0; node-007 2.1.2`, the most common first."""
    by_value: dict[str, list[str]] = {}
    for node, value in values.items():
        by_value.setdefault(value, []).append(node)
    parts = []
    for value, nodes in sorted(by_value.items(), key=lambda item: -len(item[1])):
        several = len(nodes) > 2 and nodes is not min(by_value.values(), key=len)
        name = tr("{count} nodes", count=len(nodes)) if several or len(nodes) > NAMED else nodes_text(nodes)
        parts.append(f"{name} {value}")
    return "; ".join(parts)


def each_alone(values: Mapping[str, Values], needs: Needs, judge: Judge) -> dict[str, Verdict]:
    """The verdicts of the nodes that fail or warn, each judged by itself; where none does, one of them for all."""
    verdicts = {node: judge(value, needs) for node, value in values.items()}
    bad = {node: verdict for node, verdict in verdicts.items() if verdict.status in ("fail", "warn")}
    return bad or {"all": next(iter(verdicts.values()))}


def differences(values: Mapping[str, str], expected: str, why: str, status: Status = "fail") -> dict[str, Verdict]:
    """One verdict: a pass under "all" where the values are equal, else the odd nodes against the most common value."""
    counted = Counter(values.values())
    common, often = counted.most_common(1)[0]
    if len(counted) == 1:
        return {"all": Verdict("pass", tr("{count} nodes: {value}", count=len(values), value=common))}
    if often * 2 <= len(values):  # no majority: no node can be called the odd one
        return {"all": Verdict(status, fold(values), expected=expected, found=fold(values), why=why)}
    return {
        node: Verdict(
            status,
            tr("{value}; {count} nodes have {common}", value=value, count=often, common=common),
            expected=expected,
            found=fold(values),
            why=why,
        )
        for node, value in values.items()
        if value != common
    }
