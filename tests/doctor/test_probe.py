"""The probe as the process it is: under old Pythons, with looks that hang or crash, and what it says of this machine."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub

from core.doctor.examine import PROBE, observe, parse_line
from core.doctor.finding import Observation
from core.doctor.probe import OBSERVATIONS, compilers_in, look_at_hub


def parse_lines(output: str, node: str) -> dict[str, Observation]:
    """All of the probe's lines, by observation."""
    observations = (parse_line(line, node) for line in output.splitlines())
    return {observation.id: observation for observation in observations if observation}


def probe(tmp_path: Path, python: str = sys.executable, source: str = "", **wanted: Any) -> dict[str, Observation]:
    done = subprocess.run(
        [python, "-", json.dumps(wanted)],
        input=source or PROBE.read_text(),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stderr == ""
    return parse_lines(done.stdout, "n")


SLOW = ("fs.speed", "python.pip_check", "cuda.torch_sees_gpu", "ds.import")
"""Seconds each: 256 MiB, and imports of torch. Other tests make them."""


def test_the_probe_runs_under_the_oldest_python_there_is(tmp_path: Path) -> None:
    """Python 3.8 where pyenv has one; else this one. Nothing but the standard library is on its path."""
    olds = sorted(Path(pwd.getpwuid(os.getuid()).pw_dir, ".pyenv/versions").glob("3.[89].*/bin/python"))
    python = str(olds[0]) if olds else sys.executable
    quick = [name for name, *_ in OBSERVATIONS if name not in SLOW]
    seen = probe(tmp_path, python, observations=quick, packages=["pip", "no-such-package"], folder=str(tmp_path))
    assert set(seen) == set(quick)
    assert all(observation.error == "" for observation in seen.values()), seen
    versions = seen["python.pins"].value
    assert versions is not None
    assert versions["versions"]["no-such-package"] is None


def test_the_probe_uses_the_standard_library_only() -> None:
    import ast

    names = set()
    for node in ast.walk(ast.parse(PROBE.read_text(), feature_version=(3, 8))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    assert names <= set(sys.stdlib_module_names)


HANGS = "time.sleep(1000)"
CRASHES = "os.kill(os.getpid(), signal.SIGSEGV)"
RAISES = "raise PermissionError('/proc/secret')"
PRINTS_AND_DIES = "os.write(2, b'Fatal: no memory\\n'); os._exit(9)"


@pytest.mark.parametrize(
    ("does", "error", "detail"),
    [
        (HANGS, "timeout", "no answer within 0.5 s"),
        (CRASHES, "crash", "killed by signal 11"),
        (RAISES, "crash", "/proc/secret"),
        (PRINTS_AND_DIES, "crash", "ended without an answer: Fatal: no memory"),
    ],
)
def test_one_look_that_fails_costs_one_observation(tmp_path: Path, does: str, error: str, detail: str) -> None:
    source = PROBE.read_text().replace("QUICK_S = 10.0", "QUICK_S = 0.5")
    source = source.replace('    config = shutil.which("python3-config")', f"    {does}")
    seen = probe(tmp_path, source=source, observations=["build.headers", "limits", "net.ib", "python.env"])
    broken = seen.pop("build.headers")
    assert (broken.error, broken.value) == (error, None)
    assert detail in broken.detail
    assert [observation.error for observation in seen.values()] == ["", "", ""]


def test_a_child_that_hangs_is_killed_with_its_own_children(tmp_path: Path) -> None:
    source = PROBE.read_text().replace("QUICK_S = 10.0", "QUICK_S = 0.5")
    look = "    subprocess.run(['sleep', '987654'])"
    source = source.replace('    config = shutil.which("python3-config")', look)
    seen = probe(tmp_path, source=source, observations=["build.headers"])
    assert seen["build.headers"].error == "timeout"
    deadline = time.monotonic() + 5
    while "987654" in _commands() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "987654" not in _commands()


def _with_environment(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PYTHONPATH={word}" in path.read_text(errors="replace"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def _commands() -> str:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text())
        except OSError:
            continue
    return "\n".join(lines)


def test_observations_arrive_before_the_slow_one_ends(tmp_path: Path) -> None:
    """`observe` yields each line as it comes: a screen fills in while torch is still importing."""
    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text("import time; time.sleep(60)")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={tmp_path}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    wanted = {"observations": ["limits", "cuda.torch_sees_gpu"], "torch": True, "timeout": 30}
    looking = observe(str(python), wanted, "n")
    started = time.monotonic()
    assert next(looking).id == "limits"
    assert time.monotonic() - started < 20  # not after torch's time limit
    looking.close()
    deadline = time.monotonic() + 5
    while _with_environment(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _with_environment(str(tmp_path))  # neither the probe, nor the look, nor the Python that imports torch


def test_what_lies_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    for name in ("json", "torch", "socket"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    probe(tmp_path, observations=["cuda.nvcc_vs_torch", "net.hostname", "python.pins"], packages=["torch"])
    assert not (tmp_path / "canary").exists()


def test_credentials_are_reported_by_their_presence_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "hf_canarycanarycanarycanary"
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {canary}\n")
    netrc.chmod(0o644)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HF_TOKEN", canary)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    seen = probe(tmp_path, observations=[name for name, *_ in OBSERVATIONS if name not in SLOW])
    value = seen["creds"].value
    assert value is not None
    assert (value["wandb"], value["hub"], value["readable_by_others"]) == (True, True, [str(netrc)])
    assert canary not in repr(seen)


def test_the_hub_is_asked_who_the_token_is_and_nothing_shows_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub(token="hf_right") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        known = look_at_hub({})
        assert (known["status"], known["name"]) == (200, "tester")
        assert look_at_hub({"hub": False})["status"] is None  # nobody is asked for a plan that uploads nothing
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        assert look_at_hub({})["status"] == 401
        monkeypatch.setenv("HF_TOKEN", "hf_two\nlines")
        assert look_at_hub({})["error"] == "ValueError"
        monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("://", "://me:password@"))
        assert "password" not in str(look_at_hub({}))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    assert "no web address" in look_at_hub({})["error"]
    monkeypatch.setenv("HF_ENDPOINT", hub.url)  # it is closed now
    closed = look_at_hub({})
    assert "refused" in closed["error"]
    assert "hf_right" not in str(closed) + str(known)


def test_other_output_among_the_probes_lines_is_passed_over() -> None:
    lines = [
        "Welcome to the cluster!",
        '{"id": "limits", "value": {"cores": 2}}',
        "[1, 2]",
        '{"id": 5}',
        '{"id": "x"}',
        "{",
    ]
    seen = parse_lines("\n".join(lines), "n")
    assert set(seen) == {"limits", "x"}
    assert seen["x"].error == "unreadable"


def test_a_compiler_at_work_is_told_from_one_that_works_elsewhere(tmp_path: Path) -> None:
    """A lock is stale where nobody builds in its folder, however busy the machine is."""
    ninja = tmp_path / "bin" / "ninja"
    ninja.parent.mkdir()
    ninja.write_bytes(Path("/bin/sleep").resolve().read_bytes())
    ninja.chmod(0o755)
    cache = tmp_path / "cache"
    (cache / "fused_adam").mkdir(parents=True)
    for folder, count in ((cache / "fused_adam", 1), (tmp_path, 0)):
        with subprocess.Popen([str(ninja), "60"], cwd=folder) as working:
            try:
                while Path(f"/proc/{working.pid}/comm").read_text() != "ninja\n":  # its name comes an instant later
                    time.sleep(0.01)
                assert compilers_in(cache) == count
            finally:
                working.kill()
