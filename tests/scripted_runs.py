"""A run whose stages are small scripts of the test instead of real ones: the supervisor and its processes are real."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import MakeRun
from core.files import read_json, write_json
from core.runs.directory import RunDirectory
from core.runs.state import ENDED, read_status

# What every scripted stage may use; it ends with its own end record, as real stages do.
PRELUDE = """
import json, os, pathlib, signal, subprocess, sys, time
stage, run = sys.argv[1], pathlib.Path(sys.argv[2])
def done(**metrics):
    out = run / 'outputs' / (stage + '.txt'); out.write_text(stage)
    (run / 'stages' / stage / 'result.json').write_text(json.dumps(
        {'stage': stage, 'outputs': {'file': str(out)}, 'metrics': metrics}))
"""

Scripted = Callable[..., RunDirectory]


@pytest.fixture
def scripted(make_run: MakeRun, tmp_path: Path) -> Scripted:
    """`scripted(tokenizer="done()", data="sys.exit(3)")`: a run with just these stages, in the usual order."""

    def make(name: str = "r", **scripts: str) -> RunDirectory:
        run = make_run({"corpus": {"script": str(tmp_path / "none.py")}}, name)
        document = read_json(run.plan)
        for stage in document["stages"]:
            script = scripts.get(stage["id"].replace("-", "_"))
            stage["skip"] = "" if script else "not in this test"
            stage["inputs"] = {}
            stage["outputs"] = {"file": str(run.outputs / f"{stage['id']}.txt")} if script else {}
            if script:
                path = tmp_path / f"{name}-{stage['id']}.py"
                path.write_text(PRELUDE + script)
                stage["argv"] = [sys.executable, str(path), stage["id"], str(run.root)]
        write_json(run.plan, document)
        return run

    return make


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is true; fail when it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def wait_for_end(run: RunDirectory, seconds: float = 60) -> dict[str, object]:
    """The status document once the run has ended."""
    wait_for(lambda: read_status(run).state in ENDED, seconds)
    return read_status(run).document


def supervise(run: RunDirectory, **kwargs: object) -> subprocess.Popen[bytes]:
    """The supervisor as a child, for tests that kill it."""
    return subprocess.Popen([sys.executable, str(run.code / "supervise.py"), str(run.root)], start_new_session=True)
