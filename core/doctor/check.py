"""What a check is: a title, where and when it is made, and a pure judge of what the probe saw."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.doctor.finding import Finding, Observation, Verdict
from core.doctor.needs import Needs
from core.language import tr, tr_later

Values = Mapping[str, Any]
Scope = Literal["head", "node", "pair", "fleet"]
Tier = Literal["quick", "full", "deep"]
Judge = Callable[[Values, Needs], Verdict]
Compare = Callable[[Mapping[str, Values], Needs], Mapping[str, Verdict]]

TIERS: tuple[Tier, ...] = ("quick", "full", "deep")
GROUPS: dict[str, str] = {
    "python": tr_later("Python"),
    "cuda": tr_later("CUDA"),
    "build": tr_later("Compilers"),
    "deepspeed": tr_later("DeepSpeed"),
    "kernels": tr_later("apex, flash-attn, Megatron"),
    "gpu": tr_later("GPU health"),
    "network": tr_later("Network"),
    "ssh": tr_later("SSH"),
    "files": tr_later("File systems"),
    "limits": tr_later("Limits and clock"),
    "credentials": tr_later("Log-ins and scheduler"),
}


@dataclass(frozen=True)
class Check:
    """One check. The judge's docstring says why it is made.

    `judge` looks at one node's value and may raise KeyError, TypeError or ValueError for one it can't read. `compare` looks at the
    values of all nodes that answered (by node) where there are several; it returns verdicts by node, or one under "all". `observes`
    names the observation, where several checks share one. `fix` is the id of the fix that it may offer. `stages` are those that
    it stands in the way of: names, or "training", "uploading", "every".
    """

    id: str
    title: str
    group: str
    judge: Judge
    scope: Scope = "node"
    tier: Tier = "quick"
    observes: str = ""
    compare: Compare | None = None
    fix: str | None = None
    stages: Literal["every", "training", "uploading"] = "every"

    @property
    def observation(self) -> str:
        return self.observes or self.id

    @property
    def why(self) -> str:
        return (self.judge.__doc__ or "").strip()

    def document(self) -> dict[str, Any]:
        """One entry of `doctor --list --json`."""
        return {
            "id": self.id,
            "title": tr(self.title),
            "group": self.group,
            "scope": self.scope,
            "tier": self.tier,
            "fix": self.fix,
        }


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """The hint for a name that is none of `known`."""
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"did you mean {near[0]}?" if near else otherwise


UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def judge(check: Check, observation: Observation | None, node: str, needs: Needs) -> Finding:
    """The finding of one check; what was not observed, or cannot be read, is unknown and never a pass."""
    problem = unobserved(check, observation)
    if problem is None:
        assert observation is not None
        assert observation.value is not None
        try:
            return Finding(check.id, node, check.group, check.judge(observation.value, needs))
        except UNREADABLE as error:
            problem = _unreadable(check, observation.value, error)
    return Finding(check.id, node, check.group, problem)


def compare(check: Check, observations: Mapping[str, Observation | None], needs: Needs) -> list[Finding]:
    """The findings of one check over several nodes: each node that did not answer is unknown, the others are compared."""
    assert check.compare is not None
    values: dict[str, Values] = {}
    findings = []
    for node, observation in observations.items():
        problem = unobserved(check, observation)
        if problem is not None:
            findings.append(Finding(check.id, node, check.group, problem))
        else:
            assert observation is not None
            assert observation.value is not None
            values[node] = observation.value
    readable = {}
    for node, value in values.items():
        try:  # alone, so that one strange answer does not hide the others
            check.compare({node: value}, needs)
            readable[node] = value
        except UNREADABLE as error:
            findings.append(Finding(check.id, node, check.group, _unreadable(check, value, error)))
    verdicts = check.compare(readable, needs) if readable else {}
    return findings + [Finding(check.id, node, check.group, verdict) for node, verdict in verdicts.items()]


def unobserved(check: Check, observation: Observation | None) -> Verdict | None:
    """The verdict where there is nothing to judge, else None."""
    title = tr(check.title)
    if observation is None:
        return Verdict("unknown", tr("{title}: the probe did not get to it", title=title))
    if observation.error or observation.value is None:
        detail = f"{observation.error}: {observation.detail}" if observation.detail else observation.error
        return Verdict("unknown", tr("{title} could not be observed", title=title), found=detail or "no value")
    return None


def _unreadable(check: Check, value: object, error: Exception) -> Verdict:
    found = f"{value!r:.300} ({type(error).__name__}: {error})"
    return Verdict("unknown", tr("{title}: the probe's answer could not be read", title=tr(check.title)), found=found)
