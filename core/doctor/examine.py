"""Looking at this machine and judging it: the probe under the training Python, its answers judged as they come."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.doctor.check import Check, judge
from core.doctor.finding import Finding, Observation
from core.doctor.needs import Needs
from core.runs.masking import Masker

PROBE = Path(__file__).with_name("probe.py")
SHIM = Path(__file__).parent.parent / "megatron" / "shim"
TIMEOUT_S = 120.0
"""For importing torch, which takes a minute from a cold network disk; LLM_WIZARD_PROBE_TIMEOUT (seconds) changes it."""
ALWAYS_LISTED = ("torch", "numpy", "transformers", "deepspeed", "flash-attn", "apex")
"""Packages whose versions are looked up in any case."""


def probe_timeout() -> float:
    """Seconds for what imports torch."""
    return float(os.environ.get("LLM_WIZARD_PROBE_TIMEOUT", TIMEOUT_S))


def wanted_of(needs: Needs, checks: Iterable[Check], imports: bool = False) -> dict[str, Any]:
    """What the probe is asked: the observations of these checks, and the names and paths they are about."""
    return {
        "observations": sorted({check.observation for check in checks}),
        "packages": sorted({*needs.packages, *ALWAYS_LISTED}),
        "folder": needs.folder,
        "torch": needs.torch,
        "hub": needs.hub,
        "open_files": needs.open_files,
        "imports": imports,
        "megatron": needs.megatron or None,
        "shim": str(SHIM) if needs.profile.name == "megatron-modern" else None,
        "gpus": needs.gpus,
        "nodes": list(needs.nodes),
        "timeout": probe_timeout(),
    }


def examine(needs: Needs, checks: Iterable[Check], node: str, imports: bool = False) -> Iterator[Finding]:
    """The findings of these checks on this machine, each as soon as the probe has answered."""
    waiting = list(checks)
    for observation in observe(needs.python, wanted_of(needs, waiting, imports), node):
        for check in [check for check in waiting if check.observation == observation.id]:
            waiting.remove(check)
            yield judge(check, observation, node, needs)
    for check in waiting:
        yield judge(check, None, node, needs)


def observe(python: str, wanted: Mapping[str, Any], node: str) -> Iterator[Observation]:
    """What the probe sees under the training Python.

    Where that one does not run, `python.env` says so, and what concerns the machine is looked at under our own.
    """
    answered = False
    words: list[str] = []
    try:
        for line in _lines([python, "-", json.dumps(wanted)], python):
            observation = parse_line(line, node)
            if observation:
                answered = True
                yield observation
            elif line.strip():
                words.append(masked(line.strip()))
    except OSError as error:
        words = [str(error)]
    if answered:
        return
    reason = words[-1] if words else "it printed nothing"
    for line in _lines([sys.executable, "-", json.dumps({**wanted, "instead_of": python}), reason], python):
        if observation := parse_line(line, node):
            yield observation


def _lines(argv: list[str], python: str) -> Iterator[str]:
    """Lines of the probe as it prints them; it is ended where it hangs as a whole. Raises OSError."""
    deadline = time.monotonic() + probe_timeout() + 660  # the deep tier's looks take up to ten minutes each
    # The training Python's own tools first, as the stages will have them.
    environment = {**os.environ, "PATH": f"{Path(python).parent}:{os.environ.get('PATH', os.defpath)}"}
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # Piped in as over ssh, so that nothing of ours lies on the training Python's path.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(PROBE.read_bytes())
            process.stdin.close()
        held = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    break
                *lines, held = (held + chunk).split(b"\n")
                for line in lines:
                    yield line.decode("utf-8", "replace")
        if held:
            yield held.decode("utf-8", "replace")
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def parse_line(line: str, node: str) -> Observation | None:
    """One line of the probe, secrets masked; None for anything else on its output (a site hook's greeting, a warning)."""
    try:
        document: Any = json.loads(line)
    except ValueError:
        return None
    if masked(line) != line:
        document = _without_secrets(document)
    if not isinstance(document, Mapping) or not isinstance(document.get("id"), str):
        return None
    value = document.get("value")
    return Observation(
        document["id"],
        node,
        value if isinstance(value, Mapping) else None,
        str(document.get("error", "" if isinstance(value, Mapping) else "unreadable")),
        str(document.get("detail", "")),
    )


def masked(text: str) -> str:
    """The text without what looks like a secret, or is one of this process's: a start-up file may print anything."""
    return Masker().mask(text.encode()).decode()


def _without_secrets(value: Any) -> Any:
    """A document of JSON, each text in it masked."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, list):
        return [_without_secrets(part) for part in value]
    return {key: _without_secrets(part) for key, part in value.items()} if isinstance(value, dict) else value
