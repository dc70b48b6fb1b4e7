"""A Megatron-DeepSpeed checkout as it lies on the disk: which commit it is at, and what would keep it from starting."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

TAGS = {
    "1c68b0e": "ucllm_nedo_v20240415.1.0",
    "d9134c8": "ucllm_nedo_v20240516.1.0",
    "61bac1d": "ucllm_nedo_add_support_for_mpi_v20240527.1.0",
}
"""The original pipeline's own tags by the beginning of their commits."""


def commit_of(checkout: Path) -> str:
    """The commit that is checked out, as 40 digits; empty where the folder is no git checkout. git itself is not asked: it refuses
    a folder of another user."""
    git = checkout / ".git"
    try:
        if git.is_file():  # a worktree or submodule
            git = (checkout / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = git
        if (git / "commondir").is_file():
            common = (git / (git / "commondir").read_text().strip()).resolve()
        for place in (git, common):
            if (place / name).is_file():
                return (place / name).read_text().strip()
        for line in (common / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return line.split(" ")[0]
    except OSError:
        return ""
    return ""


def describe(checkout: Path) -> str:
    """`at 1c68b0e (ucllm_nedo_v20240415.1.0)`, with what of it is known."""
    commit = commit_of(checkout)[:7]
    if not commit:
        return "of an unknown commit (no .git)"
    return f"at {commit} ({TAGS[commit]})" if commit in TAGS else f"at {commit}"


def stale_kernel_lock(checkout: Path) -> Path | None:
    """The lock that a compilation of the fused kernels leaves when it is interrupted: the next one waits for it without end."""
    lock = checkout / "megatron" / "fused_kernels" / "build" / "lock"
    return lock if lock.exists() else None


def what_cannot_be_compiled(checkout: Path, python: str, path: str) -> list[str]:
    """Why rank 0 will not be able to compile or load megatron/data/helpers.cpp, which it does with `make` at its start, in words.

    `python` is that of the ranks, `path` their PATH: the checkout's Makefile asks the first python3-config on it for the suffix, which
    may be another Python's; the ranks then find no `helpers`.
    """
    data = checkout / "megatron" / "data"
    suffix = _first_line([python, "-I", "-S", "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"])
    if not suffix or (data / f"helpers{suffix}").is_file():
        return []
    missing = [tool for tool in ("make", "g++", "python3", "python3-config") if not shutil.which(tool, path=path)]
    if missing:
        return [
            f"the checkout's index builder {data / 'helpers.cpp'} is not compiled, and what compiles it is not on PATH: "
            + ", ".join(missing)
        ]
    found = _first_line([str(shutil.which("python3-config", path=path)), "--extension-suffix"])
    if found == suffix:
        return []
    return [
        f"the first python3-config on PATH is of another Python ({found or 'no answer'}; the ranks' has {suffix}): the ranks "
        f"will find no `helpers`. Compile it first: make -C {data} LIBEXT={suffix}"
    ]


def _first_line(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().split("\n")[0]
