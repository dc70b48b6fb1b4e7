"""Looks at the machine it runs on and prints one JSON line an observation. It judges nothing.

    python probe.py '{"packages": ["torch"], "folder": "/data", "torch": true, "timeout": 60}'

runs under the training Python, which may be an old or a broken one: only the standard library, Python 3.8 and later, one
file, so that it can be piped to `python -` over ssh. Each line is {"id", "value"} or, where something could not be
observed, {"id", "error", "detail"} with error "timeout" or "crash". What may hang or crash (importing torch) happens in
a child process with a time limit of its own.
"""

from __future__ import annotations

import contextlib
import json
import locale
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

MARK = "llm-wizard-probe:"

TORCH = """
import json, sys
value = {"imported": False}
try:
    import torch
    value = {"imported": True, "version": str(torch.__version__), "cuda": torch.version.cuda, "file": torch.__file__}
    value["cuda_available"] = bool(torch.cuda.is_available())
    value["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    value["bf16"] = bool(torch.cuda.is_bf16_supported()) if value["cuda_available"] else None
except BaseException as error:
    lines = str(error).strip().splitlines()
    value["error"] = type(error).__name__ + ": " + (lines[-1] if lines else "")
    value["missing"] = isinstance(error, ModuleNotFoundError) and error.name == "torch"
print("MARK" + json.dumps(value))
"""


def look_at_python(wanted: dict[str, Any]) -> dict[str, Any]:
    return {
        "executable": sys.executable,
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "prefix": sys.prefix,
        "machine": platform.machine(),
        "host": platform.node(),
    }


def look_at_packages(wanted: dict[str, Any]) -> dict[str, Any]:
    """Versions by their metadata, without importing anything; null for a package that is not installed."""
    import importlib.metadata

    found: dict[str, str | None] = {}
    for name in wanted.get("packages", []):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
        except Exception as error:  # metadata can be damaged in many ways; the other packages still count
            found[name] = None
            found[name + " error"] = repr(error)
    return {"versions": found}


def look_at_torch(wanted: dict[str, Any]) -> dict[str, Any]:
    if not wanted.get("torch"):
        return {"asked": False}
    code, output = run([sys.executable, "-c", TORCH.replace("MARK", MARK)], wanted.get("timeout", 120))
    for line in reversed(output.splitlines()):
        if line.startswith(MARK):
            return dict(json.loads(line[len(MARK) :]), asked=True)
    words = output.strip().splitlines()
    ended = f"killed by signal {-code}" if code < 0 else f"ended with {code}"
    return {"asked": True, "imported": False, "error": f"{ended}: {words[-1] if words else 'no output'}"}


def look_at_compilers(wanted: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name in ("cc", "c++"):
        path = shutil.which(os.environ.get({"cc": "CC", "c++": "CXX"}[name]) or name)
        found[name] = path and {"path": path, "version": first_line([path, "--version"])}
    return found


def look_at_ninja(wanted: dict[str, Any]) -> dict[str, Any]:
    path = shutil.which("ninja")
    return {"path": path, "version": first_line([path, "--version"]) if path else None}


def look_at_headers(wanted: dict[str, Any]) -> dict[str, Any]:
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return {"python_h": str(header), "present": header.is_file()}


def look_at_limits(wanted: dict[str, Any]) -> dict[str, Any]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [memory]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such cgroup version, or "max"
            limits.append(int(Path(name).read_text()))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        shm = shutil.disk_usage("/dev/shm").total  # noqa: S108 (it is only measured)
    except OSError:
        shm = None
    return {"open_files": soft, "open_files_hard": hard, "memory": min(limits), "cores": cores, "shm": shm}


def look_at_space(wanted: dict[str, Any]) -> dict[str, Any]:
    folder = wanted.get("folder", ".")
    status = os.statvfs(folder)
    return {
        "folder": folder,
        "free": status.f_bavail * status.f_frsize,
        "inodes": status.f_favail if status.f_files else None,  # file systems such as btrfs count none
        "writable": os.access(folder, os.W_OK),
    }


def look_at_encoding(wanted: dict[str, Any]) -> dict[str, Any]:
    return {
        "filesystem": sys.getfilesystemencoding(),
        "stdout": (sys.__stdout__ and sys.__stdout__.encoding) or "",
        "preferred": locale.getpreferredencoding(False),
        "variables": {
            name: os.environ[name] for name in ("LANG", "LC_ALL", "LC_CTYPE", "PYTHONUTF8") if name in os.environ
        },
    }


OBSERVATIONS = (
    ("python.env", look_at_python),
    ("python.pins", look_at_packages),
    ("python.encoding", look_at_encoding),
    ("build.cxx", look_at_compilers),
    ("build.ninja", look_at_ninja),
    ("build.headers", look_at_headers),
    ("limits", look_at_limits),
    ("fs.space", look_at_space),
    ("cuda.torch_sees_gpu", look_at_torch),
)


class TimedOut(Exception):  # noqa: N818 (an answer of its own, not a failure of ours)
    """A child did not answer in time."""


def run(argv: list[str], timeout: float) -> tuple[int, str]:
    """Exit code and output of a child, which is killed with all its children after `timeout` seconds."""
    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",  # what lies in the working folder must not be imported instead of a package
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        raise TimedOut(f"no answer within {timeout} s") from None
    return child.returncode, output.decode("utf-8", "replace")


def first_line(argv: list[str]) -> str:
    try:
        code, output = run(argv, 10)
    except (OSError, TimedOut) as error:
        return f"error: {error}"
    lines = output.strip().splitlines()
    return lines[0] if lines and code == 0 else f"error: exit code {code}"


def main(argv: list[str]) -> int:
    wanted = json.loads(argv[0]) if argv else {}
    # Piped in, or started as a file: neither the working folder nor this file's may hide a package.
    here = {"", str(Path.cwd()), str(Path(sys.argv[0]).resolve().parent)}
    sys.path[:] = [entry for entry in sys.path if entry not in here]
    for name, look in OBSERVATIONS:
        try:
            line = {"id": name, "value": look(wanted)}
        except TimedOut as error:
            line = {"id": name, "error": "timeout", "detail": str(error)}
        except BaseException as error:  # one thing that cannot be seen must not hide the others
            line = {"id": name, "error": "crash", "detail": repr(error)}
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
