"""Checks of limits as a process without a terminal has them, of the clock, and of what must be equal on all nodes."""

from __future__ import annotations

from collections.abc import Mapping

from core.doctor.check import Check, Values
from core.doctor.finding import Status, Verdict
from core.doctor.fix import Block, Fix, Step
from core.doctor.fold import differences, fold
from core.doctor.needs import Needs
from core.language import tr, tr_later
from core.quantities import size

SKEW_WARN_S, SKEW_FAIL_S = 1.0, 30.0


def limits(value: Values, needs: Needs) -> Verdict:
    """“Too many open files”, a /dev/shm of Docker's 64 MB and a memory limit end training hours after it began."""
    files, shm, memory = int(value["open_files"]), value["shm"], int(value["memory"])
    summary = tr(
        "{files} open files, /dev/shm {shm}, memory {memory}, {cores} cores",
        files=files if files >= 0 else tr("unlimited"),
        shm=size(shm) if shm is not None else tr("absent"),
        memory=size(memory),
        cores=value["cores"],
    )
    problems: list[tuple[Status, str, str]] = []
    steps: list[Step] = []
    commands: list[str] = []
    if 0 <= files < needs.open_files:
        wanted = tr("{count} open files", count=needs.open_files)
        hard = int(value["open_files_hard"])
        if int(value["open_files_later"]) >= needs.open_files:
            problems.append(("warn", wanted, tr("this shell was started before the limit was raised")))
            commands.append("# " + tr("log out and in again"))
        else:
            problems.append(("fail", wanted, tr("each process opens its data, logs and connections")))
            if hard < 0 or hard >= needs.open_files:
                steps.append(Block(str(value["bashrc"]), "limits", (f"ulimit -n {needs.open_files}",)))
            else:
                commands.append("# " + tr("an administrator raises nofile in /etc/security/limits.conf"))
    if (shm or 0) < needs.shared_memory:
        # Ranks on GPUs exchange their data through it; on a CPU they only do so to be faster.
        wanted = tr("{size} of /dev/shm", size=size(needs.shared_memory))
        problems.append(("fail" if needs.gpus > 1 else "warn", wanted, tr("processes share it")))
        commands.append("docker run --shm-size=1g ...  # " + tr("where this is a container"))
    if memory < needs.memory:
        wanted = tr("about {size} of memory", size=size(needs.memory))
        problems.append(("warn", wanted, tr("the training is estimated to need it")))
        commands.append("llm-wizard plan ...  # " + tr("shows what the memory is for"))
    if value["infiniband"] and int(value["memlock"]) >= 0:
        problems.append(
            (
                "fail" if needs.training else "warn",
                tr("unlimited locked memory"),
                tr("InfiniBand registers its buffers in locked memory"),
            )
        )
        commands.append("# " + tr("an administrator sets memlock to unlimited in /etc/security/limits.conf"))
    if not problems:
        return Verdict("pass", summary)
    return Verdict(
        "fail" if any(status == "fail" for status, _, _ in problems) else "warn",
        summary,
        expected=", ".join(expected for _, expected, _ in problems),
        found=summary,
        why="; ".join(why for _, _, why in problems),
        fix=Fix("limits", "safe", tuple(steps), tuple(commands)),
        stages=needs.training or None,
    )


def clock(value: Values, needs: Needs) -> Verdict:
    """Clocks that differ put logs of several nodes in a wrong order and make file times lie."""
    float(value["time"])
    return Verdict("skip", tr("one machine: there is no clock to compare with"))


def compare_clocks(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """`offset` is the node's time less the head's, seconds, with half of the round trip taken away."""
    offsets = {node: float(value["offset"]) for node, value in values.items()}
    bad: dict[str, Verdict] = {}
    for node, offset in offsets.items():
        if abs(offset) > SKEW_WARN_S:
            bad[node] = Verdict(
                "fail" if abs(offset) > SKEW_FAIL_S else "warn",
                tr("the clock is {seconds} s off", seconds=f"{offset:+.1f}"),
                expected=tr("within {seconds} s of this machine", seconds=SKEW_WARN_S),
                found=f"{offset:+.2f} s",
                why=tr("logs of several nodes cannot be put in order, and file times lie"),
            )
    worst = max((abs(offset) for offset in offsets.values()), default=0.0)
    return bad or {"all": Verdict("pass", tr("clocks within {seconds} s", seconds=f"{worst:.2f}"))}


def stack(value: Values, needs: Needs) -> Verdict:
    """Nodes of one run must have the same driver, Python and packages: an odd one fails late, or computes other numbers."""
    dict(value["stack"])
    return Verdict("skip", tr("one machine: there is nothing to compare with"))


def compare_stacks(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """Every part of the stack that is not equal, with the nodes that have it; a kernel alone is a warning."""
    odd: dict[str, list[str]] = {}
    unequal = []
    names = sorted({name for value in values.values() for name in value["stack"]})
    for name in names:
        column = {node: str(value["stack"].get(name, tr("absent"))) for node, value in values.items()}
        if len(set(column.values())) == 1:
            continue
        unequal.append(f"{name}: {fold(column)}")
        for node, verdict in differences(column, expected="", why="").items():
            odd.setdefault(node, []).append(
                f"{name} {column.get(node, '')}".strip() if node != "all" else verdict.summary
            )
    why = tr("ranks of one run exchange numbers and code: an odd node fails late and far from the cause")
    if odd:
        return {
            node: Verdict(
                "fail",
                tr("differs from the other nodes: {what}", what=", ".join(what)),
                expected=tr("the same stack on every node"),
                found="; ".join(unequal),
                why=why,
            )
            for node, what in odd.items()
        }
    kernels = {node: str(value["kernel"]) for node, value in values.items()}
    return differences(
        kernels, tr("the same kernel on every node"), tr("drivers and limits may differ with it"), "warn"
    )


CHECKS: tuple[Check, ...] = (
    Check(
        "limits", tr_later("open files, shared memory and memory"), "limits", limits, fix="limits", stages="training"
    ),
    Check("clock.skew", tr_later("the clocks"), "limits", clock, scope="fleet", compare=compare_clocks),
    Check("fleet.equal", tr_later("the stack of all nodes"), "limits", stack, scope="fleet", compare=compare_stacks),
)
