"""The judges: pure functions from an observation and the plan's needs to a finding. One entry in CHECKS a check.

The ids are those of the doctor's full list (`python.pins`, `limits`, ...). To add a check: let the probe print an
observation under the check's id, write a judge here, add it to CHECKS, and add its four recorded observations to
tests/doctor/test_checks.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.doctor.finding import Finding, Fix, Observation, Status
from core.doctor.needs import MINIMUM, PYTHON, Needs
from core.quantities import size


@dataclass(frozen=True)
class Verdict:
    """What a judge says; `judge` adds the check and the node."""

    status: Status
    summary: str
    expected: str = ""
    found: str = ""
    why: str = ""
    fix: Fix | None = None


Values = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One check. `title` is what it looks at; `judge` may raise KeyError, TypeError or ValueError for a value it can't read."""

    id: str
    title: str
    judge: Callable[[Values, Needs], Verdict]


def judge(check: Check, observation: Observation | None, node: str, needs: Needs) -> Finding:
    """The finding of one check; what was not observed, or cannot be read, is unknown and never a pass."""
    if observation is None:
        return Finding(check.id, node, "unknown", f"{check.title}: the probe did not get to it")
    if observation.error or observation.value is None:
        reason = f"{observation.error}: {observation.detail}" if observation.detail else observation.error or "no value"
        return Finding(check.id, node, "unknown", f"{check.title} could not be observed", found=reason)
    try:
        verdict = check.judge(observation.value, needs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"{observation.value!r:.300} ({type(error).__name__}: {error})"
        return Finding(check.id, node, "unknown", f"{check.title}: the probe's answer could not be read", found=found)
    return Finding(check.id, node, **vars(verdict))


def python_env(value: Values, needs: Needs) -> Verdict:
    another = Fix("python.env", "safe", ("llm-wizard run ... --set cluster.python=/path/to/a/newer/python",))
    if "error" in value:
        return Verdict(
            "fail",
            f"{value['executable']} does not run",
            expected="a Python that runs a small script",
            found=str(value["error"]),
            why="every stage runs under it",
            fix=another,
        )
    version = version_of(value["version"])
    summary = f"Python {value['version']} at {value['executable']}"
    if version < PYTHON:
        return Verdict(
            "fail",
            f"{summary} is too old",
            expected=f"Python {'.'.join(map(str, PYTHON))} or later",
            found=value["version"],
            why="the stages' own code does not run under it",
            fix=another,
        )
    return Verdict("pass", summary)


def python_pins(value: Values, needs: Needs) -> Verdict:
    versions = value["versions"]
    missing = [name for name in needs.packages if versions[name] is None]
    old = [
        name
        for name in needs.packages
        if versions[name] and name in MINIMUM and version_of(versions[name]) < version_of(MINIMUM[name])
    ]
    if not missing and not old:
        # A nightly's "2.13.0.dev" still says enough.
        return Verdict("pass", ", ".join(f"{name} {versions[name]}" for name in needs.packages))
    wanted = sorted(missing + old)
    return Verdict(
        "fail",
        "; ".join(
            part
            for part in (
                f"not installed: {', '.join(missing)}" if missing else "",
                f"too old: {', '.join(f'{name} {versions[name]}' for name in old)}" if old else "",
            )
            if part
        ),
        expected=", ".join(_requirement(name) for name in wanted),
        found=", ".join(f"{name} {versions[name] or 'absent'}" for name in wanted),
        why="; ".join(f"{name}: {', '.join(needs.packages[name])}" for name in wanted),
        fix=Fix(
            "python.pins", "safe", (f"{needs.python} -m pip install {' '.join(_quoted(name) for name in wanted)}",)
        ),
    )


def python_encoding(value: Values, needs: Needs) -> Verdict:
    named = {key: str(value[key]) for key in ("filesystem", "preferred")}
    odd = {key: name for key, name in named.items() if name.lower().replace("-", "") != "utf8"}
    if odd:
        return Verdict(
            "warn",
            "text is not UTF-8 by default: " + ", ".join(f"{key} {name}" for key, name in odd.items()),
            expected="utf-8",
            found=", ".join(f"{key}={name}" for key, name in value["variables"].items()) or "no LANG",
            why="file names and log lines that are not ASCII may come out garbled",
            fix=Fix("python.encoding", "safe", ("export LANG=C.UTF-8",)),
        )
    return Verdict("pass", "UTF-8")


def torch_sees_gpu(value: Values, needs: Needs) -> Verdict:
    if not needs.torch or not value["asked"]:
        return Verdict("skip", "no stage of this plan uses torch")
    if not value["imported"]:
        return Verdict(
            "fail",
            "torch does not import",
            expected="`import torch` works",
            found=str(value["error"]),
            why=f"needed by {', '.join(needs.packages['torch'])}",
            fix=Fix("cuda.torch_sees_gpu", "safe", (f"{needs.python} -m pip install --force-reinstall torch",)),
        )
    devices = list(value["devices"])
    summary = f"torch {value['version']}, CUDA {value['cuda'] or 'none'}, {len(devices)} GPU{'' if len(devices) == 1 else 's'}"
    if len(devices) < needs.gpus:
        return Verdict(
            "fail",
            f"{summary}; the plan trains on {needs.gpus}",
            expected=f"{needs.gpus} GPUs for torch",
            found=f"{len(devices)} ({', '.join(devices) or 'none'}), torch built for CUDA {value['cuda'] or 'none'}",
            why="a torch without CUDA, or one newer than the driver, sees no GPU",
            fix=Fix("cuda.torch_sees_gpu", "safe", ("nvidia-smi", f"{needs.python} -m torch.utils.collect_env")),
        )
    if needs.bf16 and value["bf16"] is False:
        return Verdict(
            "fail",
            f"{summary}, without bf16",
            expected="GPUs with bf16 (compute capability 8.0 or later)",
            found=", ".join(devices),
            why="the plan trains in bf16",
            fix=Fix("cuda.torch_sees_gpu", "safe", ("llm-wizard run ... --set pretrain.precision=fp32",)),
        )
    return Verdict("pass", summary)


def build_cxx(value: Values, needs: Needs) -> Verdict:
    absent = [name for name in ("cc", "c++") if value[name] is None]
    broken = [name for name in ("cc", "c++") if value[name] and value[name]["version"].startswith("error")]
    if absent or broken:
        return _for_kernels(
            needs,
            "build.cxx",
            f"no working {' or '.join(absent + broken)}",
            "a C and a C++ compiler",
            "apt-get install g++",
        )
    return Verdict("pass", value["c++"]["version"])


def build_ninja(value: Values, needs: Needs) -> Verdict:
    if value["path"] is None or value["version"].startswith("error"):
        what = "no ninja" if value["path"] is None else f"ninja does not run: {value['version']}"
        return _for_kernels(needs, "build.ninja", what, "ninja", f"{needs.python} -m pip install ninja")
    return Verdict("pass", f"ninja {value['version']} at {value['path']}")


def build_headers(value: Values, needs: Needs) -> Verdict:
    if not value["present"]:
        return _for_kernels(
            needs, "build.headers", f"no {value['python_h']}", "the headers of Python", "apt-get install python3-dev"
        )
    return Verdict("pass", value["python_h"])


def limits(value: Values, needs: Needs) -> Verdict:
    files, shm, memory = int(value["open_files"]), value["shm"], int(value["memory"])
    summary = (
        f"{files} open files, /dev/shm {size(shm) if shm is not None else 'absent'}, "
        f"memory {size(memory)}, {value['cores']} cores"
    )
    problems: list[tuple[Status, str, str]] = []
    commands: list[str] = []
    if 0 <= files < needs.open_files:
        problems.append(("fail", f"{needs.open_files} open files", "each process opens its data, logs and connections"))
        commands.append(f"ulimit -n {needs.open_files}")
    if (shm or 0) < needs.shared_memory:
        # Ranks on GPUs exchange their data through it; on a CPU they only do so to be faster.
        problems.append(
            ("fail" if needs.gpus > 1 else "warn", f"{size(needs.shared_memory)} of /dev/shm", "processes share it")
        )
        commands.append("docker run --shm-size=1g ... (where this is a container)")
    if memory < needs.memory:
        problems.append(("warn", f"about {size(needs.memory)} of memory", "the training is estimated to need it"))
        commands.append("llm-wizard plan ... (shows what the memory is for)")
    if not problems:
        return Verdict("pass", summary)
    return Verdict(
        "fail" if any(status == "fail" for status, _, _ in problems) else "warn",
        summary,
        expected=", ".join(expected for _, expected, _ in problems),
        found=summary,
        why="; ".join(why for _, _, why in problems),
        fix=Fix("limits", "safe", tuple(commands)),
    )


def fs_space(value: Values, needs: Needs) -> Verdict:
    free, inodes = int(value["free"]), value["inodes"]
    summary = f"{size(free)} free for {value['folder']}"
    if not value["writable"]:
        return Verdict("fail", f"{value['folder']} is not writable", expected="a folder that can be written")
    if free < needs.disk or (inodes is not None and inodes < 1000):
        return Verdict(
            "fail",
            summary if free < needs.disk else f"{summary}, but only {inodes} more files",
            expected=f"{size(needs.disk)} and 1000 files",
            found=f"{size(free)}, {inodes if inodes is not None else 'any number of'} files",
            why="the checkpoints of the pretraining would fill the disk",
            fix=Fix("fs.space", "safe", ("llm-wizard run ... --runs-dir /a/larger/disk",)),
        )
    if free < 2 * needs.disk:
        return Verdict(
            "warn",
            summary,
            expected=f"twice the {size(needs.disk)} that the checkpoints take",
            found=size(free),
            why="the model folders and others' files need room too",
            fix=Fix("fs.space", "safe", ("llm-wizard run ... --runs-dir /a/larger/disk",)),
        )
    return Verdict("pass", summary)


CHECKS: tuple[Check, ...] = (
    Check("python.env", "the training Python", python_env),
    Check("python.pins", "the Python packages", python_pins),
    Check("python.encoding", "the text encoding", python_encoding),
    Check("cuda.torch_sees_gpu", "torch and the GPUs", torch_sees_gpu),
    Check("build.cxx", "the compilers", build_cxx),
    Check("build.ninja", "ninja", build_ninja),
    Check("build.headers", "the headers of Python", build_headers),
    Check("limits", "open files, shared memory and memory", limits),
    Check("fs.space", "the disk", fs_space),
)


def version_of(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.13.0+cpu -> (2, 13, 0). Raises ValueError where it begins with none."""
    match = re.match(r"\d+(\.\d+)*", text)
    if match is None:
        raise ValueError(f"{text!r} is no version")
    return tuple(int(part) for part in match[0].split("."))


def _for_kernels(needs: Needs, check_id: str, problem: str, expected: str, command: str) -> Verdict:
    """A missing build tool: a failure only where something is compiled."""
    if not needs.builds_kernels:
        return Verdict("skip", f"{problem}; this plan compiles nothing")
    return Verdict(
        "fail",
        problem,
        expected=expected,
        found="absent",
        why="DeepSpeed or torch.compile builds code for this machine at the first step",
        fix=Fix(check_id, "safe", (command,)),
    )


def _requirement(name: str) -> str:
    return f"{name}>={MINIMUM[name]}" if name in MINIMUM else name


def _quoted(name: str) -> str:
    requirement = _requirement(name)
    return f"'{requirement}'" if ">" in requirement else requirement
