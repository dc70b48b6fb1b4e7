"""Looks at the machine it runs on and prints one JSON line an observation. It judges nothing.

    python probe.py '{"observations": ["limits"], "packages": ["torch"], "folder": "/data"}'

runs under the training Python, which may be an old or a broken one: only the standard library, Python 3.8 and later, one
file, so that it can be piped to `python -` over ssh. Each line is {"id", "value"} or, where something could not be
observed, {"id", "error", "detail"} with error "timeout" or "crash". Every look happens in a forked child in a session of its
own, several at once, each with a time limit: a file system or a driver that hangs costs one observation and nothing else.
"""

# ruff: noqa: E402 (the path is cleaned before anything else is imported)
from __future__ import annotations

import sys

# Piped to `python -`, the working folder stands first on the path: a json.py there must not be imported here.
sys.path[:] = [entry for entry in sys.path if entry or __name__ != "__main__"]

import ast
import contextlib
import ctypes
import fcntl
import importlib.metadata
import importlib.util
import json
import locale
import os
import platform
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "llm-wizard-probe:"
AT_ONCE = 6
QUICK_S = 10.0
"""For a look that takes an instant; a `timeout` below it holds for every look."""


# Python


def look_at_python(wanted: dict[str, Any]) -> dict[str, Any]:
    return {
        "executable": sys.executable,
        "version": platform.python_version(),
        "prefix": sys.prefix,
        "machine": platform.machine(),
        "host": platform.node(),
    }


def look_at_packages(wanted: dict[str, Any]) -> dict[str, Any]:
    """Versions by their metadata, without importing anything; null for a package that is not installed."""
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


def look_at_encoding(wanted: dict[str, Any]) -> dict[str, Any]:
    return {
        "filesystem": sys.getfilesystemencoding(),
        "preferred": locale.getpreferredencoding(False),
        "variables": {
            name: os.environ[name] for name in ("LANG", "LC_ALL", "LC_CTYPE", "PYTHONUTF8") if name in os.environ
        },
    }


def look_at_pip(wanted: dict[str, Any]) -> dict[str, Any]:
    code, output = run([sys.executable, "-m", "pip", "--version"], 20)
    if code:
        return {"pip": None, "conflicts": [], "error": last_line(output)}
    checked, conflicts = run([sys.executable, "-m", "pip", "check", "--disable-pip-version-check"], 60)
    lines = [line for line in conflicts.splitlines() if line.strip()] if checked else []
    return {"pip": output.split()[1], "conflicts": lines[:50]}


def look_at_libraries(wanted: dict[str, Any]) -> dict[str, Any]:
    """Which copies of the libraries that are often shadowed the loader takes, and where a second one lies."""
    torch = package_folder("torch")
    resolved: dict[str, str] = {}
    library = torch and torch / "lib" / "libtorch_cuda.so"
    if library and is_file(library) and shutil.which("ldd"):
        _, output = run(["ldd", str(library)], 8)
        for line in output.splitlines():
            match = re.match(r"\s*(lib(?:cudart|nccl|stdc\+\+)\S*) => (\S+)", line)
            if match:
                resolved[match[1]] = match[2]
    folders = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    return {
        "prefix": sys.prefix,
        "torch": str(torch) if torch else None,
        "path": folders,
        "resolved": resolved,
        "hooks": sorted(path.name for path in (Path(sys.prefix) / "etc" / "conda" / "activate.d").glob("*.sh")),
    }


SET_UP = re.compile(
    r"(source|\.|conda activate|ulimit|module)\s|export\s+((LD_LIBRARY_|PYTHON|MAN)?PATH|(CUDA|NCCL|TORCH|OMP)_\w+)="
)
"""Lines that set-up puts into a start-up file. What else is exported may be a secret: it is not even looked at."""


def look_at_shell(wanted: dict[str, Any]) -> dict[str, Any]:
    """Lines that stand twice in ~/.bashrc, and what a shell prints that was started the way sshd starts one."""
    path = at_home(".bashrc")
    repeated: list[list[Any]] = []
    seen = set()
    if is_file(path):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            words = line.strip()
            if not SET_UP.match(words):
                continue
            if words in seen:
                repeated.append([number, line])
            seen.add(words)
    printed, complained = in_new_shell("true") if shutil.which("bash") else ("", "")
    return {
        "path": str(path),
        "repeated": repeated,
        "prints": printed.strip()[:500],
        # bash says a locale that is missing once for each of its categories.
        "complains": "\n".join(dict.fromkeys(complained.strip().splitlines()))[:500],
    }


def in_new_shell(command: str) -> tuple[str, str]:
    """Output and errors of a command in a bash that is started the way sshd starts it: with ~/.bashrc, without a terminal."""
    environment = dict(os.environ, SSH_CLIENT="127.0.0.1 1 22", SSH_CONNECTION="127.0.0.1 1 127.0.0.1 22", SHLVL="0")
    environment.pop("BASH_ENV", None)
    _, output, errors = run_apart(["bash", "-c", command], 8, environment)
    return output, errors


# CUDA


def look_at_toolkit(wanted: dict[str, Any]) -> dict[str, Any]:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or ""
    found = []
    folders = [str(Path(sys.prefix) / "bin"), *os.environ.get("PATH", "").split(":")]
    if home:
        folders.insert(0, home + "/bin")
    real = set()
    for folder in folders:
        path = Path(folder or ".") / "nvcc"
        if is_file(path) and os.access(str(path), os.X_OK) and os.path.realpath(str(path)) not in real:
            real.add(os.path.realpath(str(path)))
            found.append({"path": str(path), "version": nvcc_version(str(path))})
    return {"nvcc": found, "cuda_home": home, "torch": torch_build()}


OR_ERROR = """
except BaseException as error:
    lines = str(error).strip().splitlines()
    value["imported"] = value["ok"] = False
    value["error"] = type(error).__name__ + ": " + (lines[-1] if lines else "")
print("MARK" + json.dumps(value))
"""
"""The end of a script for `in_python` that tries imports: what it made of `value`, or why it could not."""

TORCH = """
import json
value = {"imported": False}
try:
    import torch
    value = {"imported": True, "version": str(torch.__version__), "cuda": torch.version.cuda, "file": torch.__file__}
    value["cuda_available"] = bool(torch.cuda.is_available())
    n = torch.cuda.device_count()
    value["devices"] = [torch.cuda.get_device_name(i) for i in range(n)]
    value["bf16"] = bool(torch.cuda.is_bf16_supported()) if value["cuda_available"] else None
    value["archs"] = list(torch.cuda.get_arch_list()) if value["cuda"] else []
    value["capabilities"] = ["%d.%d" % torch.cuda.get_device_capability(i) for i in range(n)]
    value["unusable"] = {}
    for i in range(n):
        try:
            float((torch.ones(1, device="cuda:%d" % i) + 1).sum())
        except Exception as error:
            value["unusable"][str(i)] = str(error).strip().splitlines()[0][:300]
"""


def look_at_torch(wanted: dict[str, Any]) -> dict[str, Any]:
    if not wanted.get("torch"):
        return {"asked": False}
    return dict(in_python(TORCH + OR_ERROR, float(wanted.get("timeout", 120)) - 0.5), asked=True)


def look_at_nccl(wanted: dict[str, Any]) -> dict[str, Any]:
    torch = package_folder("torch")
    wheels: dict[str, str] = {}
    for entry in sys.path:  # by their folders' names: reading all metadata takes seconds on a network disk
        for path in sorted(Path(entry).glob("nvidia_nccl*.dist-info")):
            name, _, version = path.name[: -len(".dist-info")].partition("-")
            wheels.setdefault(name.replace("_", "-"), version)
    copies = []
    for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        if folder:
            copies += [str(path) for path in sorted(Path(folder).glob("libnccl.so*"))]
    return {
        "torch": bool(torch),
        "torch_cuda": torch_build()["cuda"],
        "wheels": wheels,
        "preload": os.environ.get("LD_PRELOAD", ""),
        "copies": copies,
    }


# Compilers


def look_at_compilers(wanted: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, variable in (("cc", "CC"), ("c++", "CXX")):
        path = shutil.which(os.environ.get(variable) or name)
        found[name] = path and {"path": path, "version": first_line([path, "--version"])}
    nvcc = shutil.which("nvcc")
    found["nvcc"] = nvcc and nvcc_version(nvcc)
    return found


def look_at_ninja(wanted: dict[str, Any]) -> dict[str, Any]:
    path = shutil.which("ninja")
    return {"path": path, "version": first_line([path, "--version"]) if path else None}


def look_at_headers(wanted: dict[str, Any]) -> dict[str, Any]:
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    config = shutil.which("python3-config")
    pybind11 = package_folder("pybind11")
    return {
        "python_h": str(header),
        "present": is_file(header),
        "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
        "config": config,
        "config_suffix": first_line([config, "--extension-suffix"]) if config else None,
        "pybind11": bool(pybind11 and is_file(pybind11 / "include" / "pybind11" / "pybind11.h")),
    }


def look_at_extension_cache(wanted: dict[str, Any]) -> dict[str, Any]:
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or at_home(".cache/torch_extensions"))
    now = time.time()
    locks = []
    if is_folder(folder):
        for pattern in ("*/lock", "*/*/lock"):
            for path in sorted(folder.glob(pattern)):
                locks.append({"path": str(path), "age": int(now - path.stat().st_mtime)})
    return {
        "folder": str(folder),
        "locks": locks,
        "compiling": compilers_in(folder),
        "file_system": file_system(str(folder)),
    }


# DeepSpeed


def look_at_deepspeed(wanted: dict[str, Any]) -> dict[str, Any]:
    code = """
import json
value = {"imported": False}
try:
    import deepspeed
    value = {"imported": True, "version": deepspeed.__version__, "file": deepspeed.__file__}
"""
    return in_python(code + OR_ERROR, float(wanted.get("timeout", 120)) - 0.5)


def look_at_ops(wanted: dict[str, Any]) -> dict[str, Any]:
    """What ds_report prints, as data: which ops are built, and which could be built here."""
    code = """
import contextlib, io, json
value = {"imported": False}
try:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        import deepspeed
        from deepspeed.git_version_info import installed_ops
        from deepspeed.ops.op_builder.all_ops import ALL_OPS
        compatible = {}
        for name, builder in ALL_OPS.items():
            try:
                compatible[name] = bool(builder.is_compatible(verbose=False) if hasattr(builder, "is_compatible") else False)
            except TypeError:
                compatible[name] = bool(builder.is_compatible())
            except Exception:
                compatible[name] = False
    value = {"imported": True, "installed": {k: bool(v) for k, v in installed_ops.items()}, "compatible": compatible}
"""
    return in_python(code + OR_ERROR, float(wanted.get("timeout", 120)) - 0.5)


def look_at_deepspeed_build(wanted: dict[str, Any]) -> dict[str, Any]:
    """With which torch DeepSpeed's ops were built: read from its own record, without importing it."""
    folder = package_folder("deepspeed")
    record = folder and folder / "git_version_info_installed.py"
    built: dict[str, Any] = {}
    if record and is_file(record):
        for node in ast.parse(record.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                with contextlib.suppress(ValueError):
                    built[node.targets[0].id] = ast.literal_eval(node.value)
    installed = [name for name, there in (built.get("installed_ops") or {}).items() if there]
    return {
        "present": bool(folder),
        "ops": sorted(installed),
        "torch_info": built.get("torch_info") or {},
        "torch": torch_build(),
    }


def look_at_launcher(wanted: dict[str, Any]) -> dict[str, Any]:
    return {
        "pdsh": shutil.which("pdsh"),
        "rcmd": os.environ.get("PDSH_RCMD_TYPE", ""),
        "ssh_arguments": os.environ.get("PDSH_SSH_ARGS_APPEND", ""),
    }


def look_at_env_file(wanted: dict[str, Any]) -> dict[str, Any]:
    """Names of the variables that DeepSpeed's launcher hands on, and of those that it would lose. Never a value."""
    named = []
    files = []
    for path in (at_home(".deepspeed_env"), Path.cwd() / ".deepspeed_env"):
        if is_file(path) and str(path) not in files:
            files.append(str(path))
            named += [
                line.split("=", 1)[0].strip() for line in path.read_text(errors="replace").splitlines() if "=" in line
            ]
    prefixes = ("HF_", "WANDB_", "LD_LIBRARY_PATH", "TORCH_EXTENSIONS_DIR", "CUDA_HOME", "GLOO_")
    here = sorted(name for name in os.environ if name.startswith(prefixes))
    return {"files": files, "named": sorted(set(named)), "set_here": here}


# apex, flash-attn, Megatron


def look_at_apex(wanted: dict[str, Any]) -> dict[str, Any]:
    return dict(
        extensions(("apex_C", "amp_C", "fused_layer_norm_cuda")), apex=installed("apex"), folder=folder_text("apex")
    )


def look_at_flash(wanted: dict[str, Any]) -> dict[str, Any]:
    value = extensions(("flash_attn_2_cuda",))
    value.update(version=installed("flash-attn"), torch=torch_build(), imported=None)
    if wanted.get("imports") and value["version"]:
        code = """
import json
value = {"ok": False}
try:
    import torch, flash_attn_2_cuda
    value = {"ok": True}
"""
        value["imported"] = in_python(code + OR_ERROR, float(wanted.get("timeout", 120)) - 0.5)
    return value


def look_at_megatron(wanted: dict[str, Any]) -> dict[str, Any]:
    checkout = wanted.get("megatron")
    value: dict[str, Any] = {"checkout": checkout, "present": False, "wins": None, "core": installed("megatron-core")}
    value["installed"] = place_of_megatron("")
    if not checkout or not is_folder(Path(checkout, "megatron")):
        return value
    value["present"] = True
    value["wins"] = place_of_megatron(checkout)
    git = ["git", "-C", checkout]
    for name, arguments in (
        ("tag", ["describe", "--tags", "--exact-match", "HEAD"]),
        ("commit", ["rev-parse", "HEAD"]),
        ("changes", ["status", "--porcelain", "--untracked-files=no"]),
    ):
        code, output = run(git + arguments, 8)
        value[name] = output.strip() if code == 0 else None
    return value


def place_of_megatron(path: str) -> str | None:
    """The folder that `import megatron` finds with `path` on PYTHONPATH, as a run puts the checkout there; None for nothing."""
    code = """
import importlib.util
found = importlib.util.find_spec("megatron")
if found is not None:
    print("MARK" + (list(found.submodule_search_locations or []) or [found.origin or ""])[0])
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = path
    _, output = run([sys.executable, "-c", code.replace("MARK", MARK)], 6, environment)
    return next((line[len(MARK) :] for line in output.splitlines() if line.startswith(MARK)), None)


def look_at_megatron_start(wanted: dict[str, Any]) -> dict[str, Any]:
    """Whether what a training imports of the checkout can be imported, with our stand-ins where the plan uses them."""
    checkout, shim = wanted.get("megatron"), wanted.get("shim")
    code = """
import json, sys
value = {"ok": False, "stand_ins": []}
try:
    import megatron.training, megatron.model, megatron.optimizer
    files = {name.partition(".")[0]: str(getattr(module, "__file__", "")) for name, module in list(sys.modules.items())}
    value = {"ok": True, "stand_ins": sorted(name for name, file in files.items() if "/shim/stand_ins/" in file)}
"""
    if not checkout:
        return {"checkout": None, "ok": False, "stand_ins": [], "error": ""}
    folders = [checkout] + ([shim] if shim and is_folder(Path(shim)) else [])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(folders), PYTHONWARNINGS="ignore")
    if not wanted.get("gpus"):
        environment["DS_ACCELERATOR"] = "cpu"
    value = in_python(code + OR_ERROR, float(wanted.get("timeout", 120)) - 0.5, environment)
    return dict(value, checkout=checkout)


def look_at_helpers(wanted: dict[str, Any]) -> dict[str, Any]:
    checkout, suffix = wanted.get("megatron"), sysconfig.get_config_var("EXT_SUFFIX")
    value = {"checkout": checkout, "suffix": suffix, "source": False, "built": None, "others": [], "error": ""}
    folder = Path(checkout or "/nonexistent") / "megatron" / "data"
    source = folder / "helpers.cpp"
    if not is_file(source):
        return value
    built = folder / ("helpers" + str(suffix))
    value["source"] = True
    value["others"] = [path.name for path in sorted(folder.glob("helpers*.so")) if path != built]
    if is_file(built):
        value["built"] = str(built)
        value["newer"] = built.stat().st_mtime >= source.stat().st_mtime
        code, output = run([sys.executable, "-c", "import helpers"], 20, dict(os.environ, PYTHONPATH=str(folder)))
        value["error"] = (last_line(output) or ended(code)) if code else ""
    return value


FINGERPRINT = "llm-wizard-fingerprint.json"


def look_at_fused_kernels(wanted: dict[str, Any]) -> dict[str, Any]:
    checkout = wanted.get("megatron")
    folder = Path(checkout or "/nonexistent") / "megatron" / "fused_kernels"
    build = folder / "build"
    value: dict[str, Any] = {
        "checkout": checkout,
        "present": is_folder(folder),
        "build": str(build),
        "built": is_folder(build),
    }
    if not is_folder(folder):
        return value
    now = time.time()
    value["here"] = kernel_fingerprint(folder)
    value["compiling"] = compilers_in(build)
    lock = build / "lock"
    value["lock_age"] = int(now - lock.stat().st_mtime) if exists(lock) else None
    value["libraries"] = [path.name for path in sorted(build.glob("*.so"))] if is_folder(build) else []
    try:
        value["fingerprint"] = json.loads((build / FINGERPRINT).read_text())
    except (OSError, ValueError):
        value["fingerprint"] = None
    return value


def kernel_fingerprint(folder: Path) -> dict[str, Any]:
    """Everything that the compiled kernels depend on."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.*")):
        if path.suffix in (".cpp", ".cu", ".h", ".cuh", ".py"):
            digest.update(path.name.encode() + path.read_bytes())
    nvcc, compiler = shutil.which("nvcc"), shutil.which(os.environ.get("CXX") or "c++")
    torch = torch_build()
    return {
        "torch": torch["version"],
        "cuda": torch["cuda"],
        "nvcc": nvcc_version(nvcc) if nvcc else None,
        "gcc": first_line([compiler, "--version"]) if compiler else None,
        "python": sysconfig.get_config_var("EXT_SUFFIX"),
        "machine": platform.machine(),
        "glibc": "-".join(platform.libc_ver()),
        "gpus": " ".join(sorted(set(pci_gpus()))),
        "sources": digest.hexdigest(),
    }


# GPUs


def look_at_gpus(wanted: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = {"pci": len(pci_gpus()), "kernel_module": kernel_module(), "library": None, "gpus": []}
    value["torch_cuda"] = torch_build()["cuda"]
    try:
        nvml = Nvml()
    except OSError as error:
        value["detail"] = str(error)
        return value
    value["library"] = True
    code = nvml.call("Init_v2")
    value["init"] = code
    if code:
        value["detail"] = nvml.error(code)
        return value
    value["driver"] = nvml.text("SystemGetDriverVersion")
    version = nvml.number("SystemGetCudaDriverVersion_v2", kind=ctypes.c_int)
    value["cuda_driver"] = None if version is None else f"{version // 1000}.{version % 1000 // 10}"
    count = nvml.number("DeviceGetCount_v2") or 0
    value["gpus"] = [nvml.gpu(index) for index in range(count)]
    nvml.call("Shutdown")
    return value


class ProcessInfo(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute", ctypes.c_uint),
    ]


class MemoryInfo(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Nvml:
    """The NVIDIA management library by ctypes. What it can't say is None: not every GPU knows everything."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libnvidia-ml.so.1")

    def call(self, name: str, *arguments: Any) -> int:
        function = getattr(self.library, "nvml" + name, None)
        return 13 if function is None else int(function(*arguments))  # 13: the function was not found

    def error(self, code: int) -> str:
        with contextlib.suppress(AttributeError):
            self.library.nvmlErrorString.restype = ctypes.c_char_p
            return (self.library.nvmlErrorString(code) or b"").decode("utf-8", "replace")
        return f"error {code}"

    def number(self, name: str, *arguments: Any, kind: Any = ctypes.c_uint) -> int | None:
        result = kind()
        return None if self.call(name, *arguments, ctypes.byref(result)) else int(result.value)

    def first(self, name: str, *arguments: Any) -> int | None:
        """The first of two numbers: the mode now, where the second is the one after a reboot."""
        one, two = ctypes.c_uint(), ctypes.c_uint()
        return None if self.call(name, *arguments, ctypes.byref(one), ctypes.byref(two)) else int(one.value)

    def text(self, name: str, *arguments: Any) -> str | None:
        buffer = ctypes.create_string_buffer(96)
        return None if self.call(name, *arguments, buffer, 96) else buffer.value.decode("utf-8", "replace")

    def gpu(self, index: int) -> dict[str, Any]:
        handle = ctypes.c_void_p()
        code = self.call("DeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        if code:
            return {"index": index, "error": self.error(code)}
        memory = MemoryInfo()
        code = self.call("DeviceGetMemoryInfo", handle, ctypes.byref(memory))
        name = self.text("DeviceGetName", handle)
        if code and name is None:
            return {"index": index, "error": self.error(code)}
        wide = ctypes.c_ulonglong
        reasons = self.number("DeviceGetCurrentClocksEventReasons", handle, kind=wide)
        if reasons is None:
            reasons = self.number("DeviceGetCurrentClocksThrottleReasons", handle, kind=wide)
        major, minor = ctypes.c_int(), ctypes.c_int()
        code = self.call("DeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
        return {
            "index": index,
            "name": name,
            "uuid": self.text("DeviceGetUUID", handle),
            "capability": None if code else f"{major.value}.{minor.value}",
            "memory_total": memory.total,
            "memory_used": memory.used,
            "utilization": self.number("DeviceGetUtilizationRates", handle, kind=wide),
            "mig": self.first("DeviceGetMigMode", handle),
            "temperature": self.number("DeviceGetTemperature", handle, 0),
            "slowdown": self.number("DeviceGetTemperatureThreshold", handle, 1),
            "power": self.number("DeviceGetPowerUsage", handle),
            "power_limit": self.number("DeviceGetEnforcedPowerLimit", handle),
            "power_default": self.number("DeviceGetPowerManagementDefaultLimit", handle),
            "clock": self.number("DeviceGetClockInfo", handle, 1),
            "clock_max": self.number("DeviceGetMaxClockInfo", handle, 1),
            "clock_application": self.number("DeviceGetApplicationsClock", handle, 1),
            "clock_default": self.number("DeviceGetDefaultApplicationsClock", handle, 1),
            "reasons": reasons,
            "ecc_mode": self.first("DeviceGetEccMode", handle),
            "ecc_corrected": self.number("DeviceGetTotalEccErrors", handle, 0, 0, kind=wide),
            "ecc_uncorrected": self.number("DeviceGetTotalEccErrors", handle, 1, 0, kind=wide),
            "remapped": self.remapped(handle),
            "retired_pending": self.number("DeviceGetRetiredPagesPendingStatus", handle),
            "persistence": self.number("DeviceGetPersistenceMode", handle),
            "pcie": self.pcie(handle),
            "nvlinks": self.nvlinks(handle),
            "processes": self.processes(handle),
        }

    def remapped(self, handle: Any) -> dict[str, int] | None:
        numbers = [ctypes.c_uint() for _ in range(4)]
        if self.call("DeviceGetRemappedRows", handle, *map(ctypes.byref, numbers)):
            return None
        corrected, uncorrected, pending, failed = (number.value for number in numbers)
        return {"corrected": corrected, "uncorrected": uncorrected, "pending": pending, "failed": failed}

    def pcie(self, handle: Any) -> dict[str, int | None]:
        return {
            "width": self.number("DeviceGetCurrPcieLinkWidth", handle),
            "width_max": self.number("DeviceGetMaxPcieLinkWidth", handle),
            "generation": self.number("DeviceGetCurrPcieLinkGeneration", handle),
            "generation_max": self.number("DeviceGetMaxPcieLinkGeneration", handle),
        }

    def nvlinks(self, handle: Any) -> list[dict[str, Any]]:
        links = []
        for link in range(18):
            active = self.number("DeviceGetNvLinkState", handle, link)
            if active is None:
                break
            crc = self.number("DeviceGetNvLinkErrorCounter", handle, link, 1, kind=ctypes.c_ulonglong)
            links.append({"active": bool(active), "crc": crc})
        return links

    def processes(self, handle: Any) -> list[dict[str, Any]] | None:
        count = ctypes.c_uint(64)
        table = (ProcessInfo * 64)()
        if self.call("DeviceGetComputeRunningProcesses_v3", handle, ctypes.byref(count), table):
            return None
        return [dict(owner_of(row.pid), pid=row.pid, memory=row.memory) for row in table[: count.value]]


def owner_of(pid: int) -> dict[str, Any]:
    try:
        uid = Path(f"/proc/{pid}").stat().st_uid
        command = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # a container does not see it, or it ended
        return {"uid": None, "command": None, "mine": False}
    return {"uid": uid, "command": command, "mine": uid == os.getuid()}


def look_at_xid(wanted: dict[str, Any]) -> dict[str, Any]:
    """Errors that the NVIDIA driver wrote to the kernel's log since boot."""
    if not pci_gpus() and kernel_module() is None:
        return {"gpus": 0, "readable": None, "lines": []}
    for argv in (["dmesg", "--notime"], ["journalctl", "-k", "-b", "--no-pager", "-o", "cat"]):
        if shutil.which(argv[0]):
            code, output = run(argv, 8)
            # journalctl says nothing at all to a user who may not read it, with exit code 0.
            if code == 0 and output.strip():
                lines = [line for line in output.splitlines() if "NVRM: Xid" in line]
                return {"gpus": len(pci_gpus()), "readable": True, "lines": lines[-100:]}
    return {"gpus": len(pci_gpus()), "readable": False, "lines": []}


def look_at_fabric_manager(wanted: dict[str, Any]) -> dict[str, Any]:
    switches = len(list(Path("/dev").glob("nvidia-nvswitch[0-9]*")))
    state = ""
    if switches and shutil.which("systemctl"):
        _, state = run(["systemctl", "is-active", "nvidia-fabricmanager"], 8)
    running = processes_named("nv-fabricmanage")  # the kernel keeps 15 characters
    return {"switches": switches, "state": state.strip(), "running": running > 0}


def look_at_burn(wanted: dict[str, Any]) -> dict[str, Any]:
    """Half a minute of bf16 matrix products on every GPU: speed, and whether the numbers stay right."""
    code = """
import json, time
value = {"gpus": []}
try:
    import torch
    seconds, n = SECONDS, 8192
    for i in range(torch.cuda.device_count()):
        a = torch.randn(n, n, device=i, dtype=torch.bfloat16)
        b = torch.randn(n, n, device=i, dtype=torch.bfloat16)
        first = a @ b
        torch.cuda.synchronize(i)
        start, count = time.time(), 0
        while time.time() - start < seconds:
            for _ in range(10):
                last = a @ b
            torch.cuda.synchronize(i)
            count += 10
        value["gpus"].append({
            "index": i, "tflops": count * 2 * n ** 3 / (time.time() - start) / 1e12,
            "finite": bool(torch.isfinite(last).all()), "same": bool((first == last).all()),
        })
except BaseException as error:
    value["error"] = type(error).__name__ + ": " + str(error)[:300]
print("MARK" + json.dumps(value))
"""
    if not pci_gpus():
        return {"gpus": [], "absent": True}
    return in_python(code.replace("SECONDS", str(float(wanted.get("burn_seconds", 30)))), 590)


def look_at_dcgm(wanted: dict[str, Any]) -> dict[str, Any]:
    path = shutil.which("dcgmi")
    if not path:
        return {"path": None}
    code, output = run([path, "diag", "-r", "2", "--json"], 580)
    start = output.find("{")
    document = json.loads(output[start:]) if start >= 0 else None
    return {"path": path, "code": code, "document": document, "output": output[-500:]}


def pci_gpus() -> list[str]:
    """The models (PCI device ids) of NVIDIA's display and 3D controllers on the bus, whether or not a driver drives them."""
    models = []
    for device in sorted(Path("/sys/bus/pci/devices").glob("*")):
        if text_in(device / "vendor") == "0x10de" and text_in(device / "class")[:6] in ("0x0300", "0x0302"):
            models.append(text_in(device / "device"))
    return models


def kernel_module() -> str | None:
    try:
        match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return match[1] if match else "unreadable"


# Network


def look_at_names(wanted: dict[str, Any]) -> dict[str, Any]:
    own = socket.gethostname()
    return {"host": own, "own": resolve(own), "peers": {name: resolve(name) for name in wanted.get("nodes", [])}}


def look_at_interfaces(wanted: dict[str, Any]) -> dict[str, Any]:
    interfaces = []
    for path in sorted(Path("/sys/class/net").glob("*")):
        name = path.name
        if not is_folder(path):  # bonding_masters is a file
            continue
        interfaces.append(
            {"name": name, "up": interface_up(name), "address": address_of(name), "mtu": number_in(path / "mtu")}
        )
    routes = {}
    for node in wanted.get("nodes", []):
        routes[node] = route_to(node)
    variables = {name: os.environ.get(name, "") for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_HCA")}
    return {"interfaces": interfaces, "routes": routes, "variables": variables}


def look_at_port(wanted: dict[str, Any]) -> dict[str, Any]:
    """Whether the rendezvous port is free here, and whether the head's listener can be reached from here."""
    port = int(wanted.get("port", 29500))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
            bound, error = True, ""
        except OSError as problem:
            bound, error = False, problem.strerror or str(problem)
    value: dict[str, Any] = {"port": port, "free": bound, "error": error, "reached": None}
    # The head by the address that its ssh came from: names may be known on one side only. Behind a jump host it can't be told.
    head = os.environ.get("SSH_CLIENT", "").split(" ")[0]
    if wanted.get("listener") and head in wanted["head"]:
        try:
            with socket.create_connection((head, int(wanted["listener"])), timeout=4):
                value["reached"] = True
        except OSError as problem:
            value["reached"], value["error"] = False, f"{head}:{wanted['listener']}: {problem}"
    return value


def look_at_mtu(wanted: dict[str, Any]) -> dict[str, Any]:
    """Whether a packet as large as the interface allows reaches each peer whole."""
    paths = {}
    for node in wanted.get("nodes", []):
        route = route_to(node)
        mtu = number_in(Path("/sys/class/net") / (route.get("interface") or "none") / "mtu")
        if route.get("local") or not mtu or not shutil.which("ping"):
            continue
        small, _ = run(["ping", "-c", "1", "-W", "2", "-s", "56", "--", node], 5)
        large, _ = run(["ping", "-c", "1", "-W", "2", "-M", "do", "-s", str(mtu - 28), "--", node], 5)
        paths[node] = {"mtu": mtu, "answers": small == 0, "large": large == 0}
        if len(paths) >= 2:  # two peers show a black hole; all of them would be a ping storm
            break
    return {"paths": paths, "peers": len(wanted.get("nodes", []))}


def look_at_infiniband(wanted: dict[str, Any]) -> dict[str, Any]:
    ports = []
    for port in sorted(Path("/sys/class/infiniband").glob("*/ports/*")):
        ports.append(
            {
                "device": port.parent.parent.name,
                "port": port.name,
                "state": text_in(port / "state"),
                "rate": text_in(port / "rate"),
                "link_layer": text_in(port / "link_layer"),
                "link_downed": number_in(port / "counters" / "link_downed"),
            }
        )
    return {"ports": ports}


def look_at_gloo(wanted: dict[str, Any]) -> dict[str, Any]:
    return collective(wanted, "gloo")


def look_at_collective(wanted: dict[str, Any]) -> dict[str, Any]:
    return collective(wanted, "nccl")


def collective(wanted: dict[str, Any], backend: str) -> dict[str, Any]:
    """One rank of an all-reduce over all nodes (`wanted["ranks"]`: address, port, rank, world, and seconds to wait)."""
    ranks = wanted.get("ranks")
    if not ranks:
        return {"asked": False}
    seconds = int(ranks["limit"])
    code = """
import datetime, json, sys, time
value = {"ok": False, "stage": "import"}
try:
    import torch, torch.distributed as dist
    value["stage"] = "rendezvous"
    dist.init_process_group(BACKEND, init_method="tcp://ADDRESS:PORT", rank=RANK, world_size=WORLD, timeout=datetime.timedelta(seconds=LIMIT))
    value["stage"] = "all-reduce"
    device = "cuda:0" if BACKEND == "nccl" else "cpu"
    tensor = torch.full(((1 << 28) if BACKEND == "nccl" else 1024,), float(RANK + 1), device=device)
    dist.all_reduce(tensor)
    if BACKEND == "nccl":
        torch.cuda.synchronize()
    want = WORLD * (WORLD + 1) / 2
    value["right"] = bool((tensor == want).all())
    start = time.time()
    dist.all_reduce(tensor)
    if BACKEND == "nccl":
        torch.cuda.synchronize()
    took = time.time() - start
    value["gb_per_s"] = tensor.numel() * 4 / took / 1e9 * 2 * (WORLD - 1) / WORLD
    value["ok"] = value["right"]
except BaseException as error:
    lines = str(error).strip().splitlines()
    value["error"] = type(error).__name__ + ": " + (lines[0][:300] if lines else "")
print("MARK" + json.dumps(value))
sys.stdout.flush()
import os
os._exit(0)
"""
    for name, text in (
        ("BACKEND", repr(backend)),
        ("ADDRESS", str(ranks["address"])),
        ("PORT", str(int(ranks["port"]) + (backend == "nccl"))),
        ("RANK", str(int(ranks["rank"]))),
        ("WORLD", str(int(ranks["world"]))),
        ("LIMIT", str(seconds)),
    ):
        code = code.replace(name, text)
    return dict(in_python(code, float(wanted.get("timeout", 120)) + seconds - 1), asked=True, rank=int(ranks["rank"]))


def resolve(name: str) -> str | None:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None


def route_to(node: str) -> dict[str, Any]:
    """The address and interface that packets to a node leave by; nothing is sent."""
    address = resolve(node)
    if address is None:
        return {"address": None}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
            source = probe.getsockname()[0]
        except OSError as error:
            return {"address": address, "error": str(error)}
    names = [path.name for path in sorted(Path("/sys/class/net").glob("*")) if address_of(path.name) == source]
    return {"address": address, "source": source, "interface": names[0] if names else None, "local": source == address}


def own_addresses() -> list[str]:
    return sorted(filter(None, (address_of(path.name) for path in Path("/sys/class/net").glob("*"))))


def interface_up(name: str) -> bool:
    flags = text_in(Path("/sys/class/net") / name / "flags")
    return bool(flags) and bool(int(flags, 16) & 1)


def address_of(name: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


# SSH, file systems


def look_at_connections(wanted: dict[str, Any]) -> dict[str, Any]:
    """On the one machine that the probe runs on there is nothing to connect to; the fleet's own connections are observed there."""
    return {"asked": False}


def look_at_identity(wanted: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": text_in(Path("/etc/machine-id")),
        "boot": text_in(Path("/proc/sys/kernel/random/boot_id")),
        "host": socket.gethostname(),
        "addresses": own_addresses(),
    }


def look_at_shared(wanted: dict[str, Any]) -> dict[str, Any]:
    """Read what the head wrote into each folder that must be shared, and answer beside it."""
    folders = {}
    for folder, nonce in (wanted.get("shared") or {}).items():
        entry: dict[str, Any] = {"seen": False, "written": False, "error": ""}
        try:
            for _ in range(10):  # a network file system may show a new file late
                entry["seen"] = text_in(Path(folder) / (".llm-wizard-" + nonce)) == nonce
                if entry["seen"]:
                    break
                time.sleep(0.5)
            answer = Path(folder) / f".llm-wizard-{nonce}-{socket.gethostname()}"
            answer.write_text(nonce)
            entry["written"] = True
            answer.unlink()
        except OSError as error:
            entry["error"] = str(error)
        folders[folder] = entry
    return {"folders": folders}


def look_at_space(wanted: dict[str, Any]) -> dict[str, Any]:
    folder = existing(wanted.get("folder", "."))
    others = {}
    caches = {"tmp": tempfile.gettempdir(), "cache": os.environ.get("HF_HOME") or str(at_home(".cache"))}
    for name, path in caches.items():
        with contextlib.suppress(OSError):
            others[name] = dict(free_space(existing(path)), folder=existing(path))
    return dict(
        free_space(folder), folder=wanted.get("folder", "."), writable=os.access(folder, os.W_OK), others=others
    )


def free_space(folder: str) -> dict[str, Any]:
    status = os.statvfs(folder)
    return {
        "free": status.f_bavail * status.f_frsize,
        "inodes": status.f_favail if status.f_files else None,  # file systems such as btrfs count none
    }


def look_at_speed(wanted: dict[str, Any]) -> dict[str, Any]:
    """A quarter of a GiB written and synced, read again, and 1,000 small files."""
    folder = Path(tempfile.mkdtemp(prefix=".llm-wizard-speed-", dir=existing(wanted.get("folder", "."))))
    block, blocks = os.urandom(1 << 20), 256
    try:
        start = time.time()
        with (folder / "large").open("wb") as file:
            for _ in range(blocks):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            write = time.time() - start
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # the read is of the disk, not of the memory
        start = time.time()
        with (folder / "large").open("rb") as file:
            while file.read(1 << 20):
                pass
        read = time.time() - start
        start = time.time()
        for number in range(1000):
            (folder / str(number)).write_bytes(b"x")
        small = time.time() - start
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)
    size = blocks * len(block)
    return {
        "write": size / write,
        "read": size / read,
        "files_per_s": 1000 / small,
        "file_system": file_system(str(folder.parent)),
    }


# Limits, clock, the stack


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
    later = ""
    if 0 <= soft < wanted.get("open_files", soft + 1) and shutil.which("bash"):
        with contextlib.suppress(TimedOut):  # shell.bashrc_dup says so
            later = last_line(in_new_shell("ulimit -n")[0])
    return {
        "open_files": soft,
        "open_files_later": int(later) if later.isdigit() else soft,
        "open_files_hard": hard,
        "memory": min(limits),
        "cores": cores,
        "shm": shm,
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "processes": resource.getrlimit(resource.RLIMIT_NPROC)[0],
        "infiniband": any(Path("/sys/class/infiniband").glob("*")),
        "bashrc": str(at_home(".bashrc")),
    }


def look_at_clock(wanted: dict[str, Any]) -> dict[str, Any]:
    return {"time": time.time()}


def look_at_stack(wanted: dict[str, Any]) -> dict[str, Any]:
    versions = look_at_packages(wanted)["versions"]
    return {
        "kernel": platform.release(),
        "stack": dict(
            {name: version for name, version in versions.items() if version},
            python=platform.python_version(),
            driver=kernel_module() or "none",
            glibc="-".join(platform.libc_ver()),
            machine=platform.machine(),
        ),
    }


# Credentials, scheduler


def look_at_credentials(wanted: dict[str, Any]) -> dict[str, Any]:
    """Whether there are credentials, never what they are."""
    netrc = Path(os.environ.get("NETRC") or at_home(".netrc"))
    host = re.sub(r"^\w+://|[/:].*$", "", os.environ.get("WANDB_BASE_URL", "")) or "api.wandb.ai"
    in_netrc = False
    if is_file(netrc):
        words = netrc.read_text(errors="replace").split()
        in_netrc = any(word == "machine" and words[at + 1 : at + 2] == [host] for at, word in enumerate(words))
    hub_token, token_file = hub_login()
    return {
        "wandb": bool(os.environ.get("WANDB_API_KEY")) or in_netrc,
        "wandb_mode": os.environ.get("WANDB_MODE", ""),
        "hub": bool(hub_token) or is_file(token_file),
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0", "false", "False"),
        "readable_by_others": [
            str(path) for path in (netrc, token_file) if is_file(path) and path.stat().st_mode & 0o077
        ],
    }


def hub_login() -> tuple[str, Path]:
    """The token of a variable, which is never to be printed (empty without one), and the file where `hf auth login` keeps one."""
    home = Path(os.environ.get("HF_HOME") or at_home(".cache/huggingface"))
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    return token, Path(os.environ.get("HF_TOKEN_PATH") or home / "token")


def look_at_hub(wanted: dict[str, Any]) -> dict[str, Any]:
    """Whether the Hub can be reached from here, and what its answer says the token may do; the token goes nowhere else."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    token, token_file = hub_login()
    if not token and is_file(token_file):
        token = token_file.read_text(errors="replace")
    # An address may carry a password: only its host is told.
    value: dict[str, Any] = {
        "host": re.sub(r"^\w+://([^/@]*@)?|[/].*$", "", endpoint),
        "name": None,
        "role": None,
        "status": None,
    }
    if not token.strip() or not wanted.get("hub", True):  # a plan that uploads nothing needs no answer
        return value
    from http.client import HTTPException
    from urllib import error, request

    class Stay(request.HTTPRedirectHandler):
        """Another address would get the token too."""

        def redirect_request(self, *_: Any) -> None:
            return None

    try:
        if not endpoint.startswith(("https://", "http://")):
            raise OSError("HF_ENDPOINT is no web address")
        headers = {"Authorization": "Bearer " + token.strip()}
        asked = request.Request(endpoint + "/api/whoami-v2", headers=headers)  # noqa: S310 (checked above)
        with request.build_opener(Stay).open(asked, timeout=15) as answer:
            document = json.loads(answer.read(1 << 20).decode("utf-8", "replace"))
            value["status"] = answer.status
    except error.HTTPError as refused:
        value["status"] = refused.code
        return value
    except (OSError, HTTPException, ValueError) as failed:
        # Python names a header that it refuses with its value: that would be the token.
        value["error"] = (
            type(failed).__name__ if isinstance(failed, ValueError) else str(getattr(failed, "reason", failed))
        )
        return value
    value["name"] = document.get("name")
    value["role"] = ((document.get("auth") or {}).get("accessToken") or {}).get("role")
    return value


def look_at_slurm(wanted: dict[str, Any]) -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID", "")
    value: dict[str, Any] = {"job": job, "available": bool(shutil.which("scontrol")), "nodes": [], "step": ""}
    if not job:
        return value
    value["step"] = os.environ.get("SLURM_STEP_ID", "")
    value["terminal"] = bool(os.environ.get("SLURM_PTY_PORT"))
    if value["available"]:
        nodes = os.environ.get("SLURM_JOB_NODELIST") or os.environ.get("SLURM_NODELIST") or ""
        code, output = run(["scontrol", "show", "hostnames", nodes], 8)
        value["nodes"] = output.split() if code == 0 else []
        code, output = run(["scontrol", "show", "job", job, "-o"], 8)
        match = re.search(r"EndTime=(\S+)", output)
        value["ends"] = match[1] if match and code == 0 else None
        value["now"] = time.strftime("%Y-%m-%dT%H:%M:%S")
    return value


# What is shared


def run(argv: list[str], timeout: float, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output, errors among it, of a child; see `run_apart`."""
    status, output, _ = run_apart(argv, timeout, environment, subprocess.STDOUT)
    return status, output


def run_apart(
    argv: list[str], timeout: float, environment: dict[str, str] | None = None, errors: int = subprocess.PIPE
) -> tuple[int, str, str]:
    """Exit code, output and errors of a child, which is killed with all its children after `timeout` seconds."""
    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        cwd="/",  # what lies in the working folder must not be imported instead of a package
        env=environment,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        output, complaint = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # Politely first: what a start-up file runs may hold a lock that it takes away at its end (pyenv does).
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(OSError):
                os.killpg(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.communicate(timeout=0.5 if number == signal.SIGTERM else None)
                break
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)  # whoever of them stayed
        raise TimedOut(f"no answer within {timeout:g} s: {argv[0]}") from None
    return child.returncode, output.decode("utf-8", "replace"), (complaint or b"").decode("utf-8", "replace")


def at_home(name: str) -> Path:
    """A path in the home folder; Path.expanduser raises where HOME is not set and the user has no entry."""
    return Path(os.path.expanduser("~"), name)  # noqa: PTH111


def is_file(path: Path) -> bool:
    """False too in a folder that may not be looked into, where Path.is_file raises."""
    return os.path.isfile(str(path))  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """As `is_file`."""
    return os.path.isdir(str(path))  # noqa: PTH112


def exists(path: Path) -> bool:
    """As `is_file`."""
    return os.path.exists(str(path))  # noqa: PTH110


def end_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends (PR_SET_PDEATHSIG): a probe that is cut off leaves nothing behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def in_python(code: str, timeout: float, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What a script under this Python prints after the mark; how it ended where it printed nothing."""
    status, output = run([sys.executable, "-c", code.replace("MARK", MARK)], timeout, environment)
    for line in reversed(output.splitlines()):
        if line.startswith(MARK):
            return dict(json.loads(line[len(MARK) :]))
    return {"imported": False, "ok": False, "error": f"{ended(status)}: {last_line(output) or 'no output'}"}


def ended(status: int) -> str:
    """How a process ended, by subprocess's return code."""
    return f"killed by signal {-status}" if status < 0 else f"ended with {status}"


def first_line(argv: list[str]) -> str:
    try:
        code, output = run(argv, 8)
    except (OSError, TimedOut) as error:
        return f"error: {error}"
    lines = output.strip().splitlines()
    return lines[0] if lines and code == 0 else f"error: exit code {code}"


def last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1] if lines else ""


def nvcc_version(path: str) -> str:
    try:
        code, output = run([path, "-V"], 8)
    except (OSError, TimedOut) as error:
        return f"error: {error}"
    match = re.search(r"release (\d+\.\d+)", output)
    return match[1] if match and code == 0 else f"error: {last_line(output) or code}"


def package_folder(name: str) -> Path | None:
    """Where a package lies, without importing it."""
    try:
        specification = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = list(specification.submodule_search_locations or []) if specification else []
    return Path(places[0]) if places else None


def folder_text(name: str) -> str | None:
    folder = package_folder(name)
    return str(folder) if folder else None


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_build() -> dict[str, Any]:
    """torch's version and CUDA from its version.py, without importing it."""
    folder = package_folder("torch")
    found: dict[str, Any] = {"version": None, "cuda": None}
    if folder and is_file(folder / "version.py"):
        text = (folder / "version.py").read_text(errors="replace")
        for key, name in (("version", "__version__"), ("cuda", "cuda")):
            match = re.search(rf"^{name}(?::[^=]*)? = ['\"]([^'\"]+)['\"]", text, re.MULTILINE)
            found[key] = match[1] if match else None
    return found


def extensions(names: tuple[str, ...]) -> dict[str, Any]:
    """Compiled modules by name: the files on the module path, and which of them this very Python would load."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    loadable = [suffix, ".abi3.so", ".so"]
    found: dict[str, Any] = {"suffix": suffix, "modules": {}}
    for name in names:
        files = []
        for entry in sys.path:
            if entry and is_folder(Path(entry)):
                files += [str(path) for path in sorted(Path(entry).glob(name + "*.so"))]
        fitting = [path for path in files if any(Path(path).name == name + str(end) for end in loadable)]
        found["modules"][name] = {"files": files, "fitting": fitting}
    return found


def processes_named(*names: str) -> int:
    count = 0
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            count += path.read_text().strip() in names
    return count


COMPILERS = ("ninja", "nvcc", "cicc", "ptxas", "cc1plus", "c++", "g++", "ld")


def compilers_in(folder: Path) -> int:
    """How many compilers are at work below a folder: torch starts ninja, and ninja the others, in the build's own folder."""
    count = 0
    real = os.path.realpath(str(folder)) + "/"
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended, or another user's
            named = (path / "comm").read_text().strip() in COMPILERS
            count += named and (os.readlink(str(path / "cwd")) + "/").startswith(real)  # noqa: PTH115 (Path's is of 3.9)
    return count


def file_system(folder: str) -> str:
    """The type of the file system that a folder lies on (or will)."""
    best, kind = "", ""
    real = os.path.realpath(folder)
    for line in Path("/proc/mounts").read_text(errors="replace").splitlines():
        words = line.split()
        if len(words) > 2 and (real + "/").startswith(words[1].rstrip("/") + "/") and len(words[1]) >= len(best):
            best, kind = words[1], words[2]
    return kind


def existing(folder: str) -> str:
    path = Path(folder)
    return str(next((entry for entry in [path, *path.parents] if exists(entry)), Path("/")))


def text_in(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def number_in(path: Path) -> int | None:
    text = text_in(path)
    return int(text) if text.isdigit() else None


class TimedOut(Exception):  # noqa: N818 (an answer of its own, not a failure of ours)
    """A child did not answer in time."""


# id, what looks, whether it looks at the Python rather than at the machine, seconds (0: wanted["timeout"])
OBSERVATIONS: tuple[tuple[str, Callable[[dict[str, Any]], dict[str, Any]], bool, float], ...] = (
    ("python.env", look_at_python, True, QUICK_S),
    ("python.pins", look_at_packages, True, 15),
    ("python.encoding", look_at_encoding, True, QUICK_S),
    ("cuda.torch_sees_gpu", look_at_torch, True, 0),
    ("ds.import", look_at_deepspeed, True, 0),
    ("ds.ops", look_at_ops, True, 0),
    ("python.pip_check", look_at_pip, True, 90),
    ("python.ld_library_path", look_at_libraries, True, QUICK_S),
    ("shell.bashrc_dup", look_at_shell, False, QUICK_S),
    ("cuda.nvcc_vs_torch", look_at_toolkit, True, QUICK_S),
    ("cuda.nccl_version", look_at_nccl, True, 15),
    ("build.cxx", look_at_compilers, False, QUICK_S),
    ("build.ninja", look_at_ninja, False, QUICK_S),
    ("build.headers", look_at_headers, True, QUICK_S),
    ("build.ext_cache", look_at_extension_cache, False, QUICK_S),
    ("ds.built_with", look_at_deepspeed_build, True, QUICK_S),
    ("ds.launcher", look_at_launcher, False, QUICK_S),
    ("ds.env_file", look_at_env_file, False, QUICK_S),
    ("apex.so", look_at_apex, True, QUICK_S),
    ("flash.so", look_at_flash, True, 0),
    ("megatron.import", look_at_megatron, True, 15),
    ("megatron.start", look_at_megatron_start, True, 0),
    ("megatron.helpers", look_at_helpers, True, 25),
    ("megatron.fused_kernels", look_at_fused_kernels, True, 20),
    ("gpu", look_at_gpus, False, QUICK_S),
    ("gpu.xid", look_at_xid, False, 20),
    ("gpu.fabricmanager", look_at_fabric_manager, False, QUICK_S),
    ("gpu.burn", look_at_burn, True, 600),
    ("gpu.dcgm", look_at_dcgm, False, 600),
    ("net.hostname", look_at_names, False, 20),
    ("net.iface", look_at_interfaces, False, QUICK_S),
    ("net.port", look_at_port, False, QUICK_S),
    ("net.mtu", look_at_mtu, False, 25),
    ("net.ib", look_at_infiniband, False, QUICK_S),
    ("net.gloo", look_at_gloo, True, 240),
    ("net.nccl", look_at_collective, True, 300),
    ("ssh.batch", look_at_connections, False, QUICK_S),
    ("ssh.same_host", look_at_identity, False, QUICK_S),
    ("fs.shared", look_at_shared, False, 20),
    ("fs.space", look_at_space, False, QUICK_S),
    ("fs.speed", look_at_speed, False, 120),
    ("limits", look_at_limits, False, QUICK_S),
    ("clock.skew", look_at_clock, False, QUICK_S),
    ("fleet.equal", look_at_stack, True, 15),
    ("creds", look_at_credentials, False, QUICK_S),
    ("creds.hub", look_at_hub, False, 25),
    ("slurm", look_at_slurm, False, 20),
)


class Child:
    """One look in a process of its own. `fileno` turns readable as its answer comes, and at its end."""

    def __init__(
        self, name: str, look: Callable[[dict[str, Any]], dict[str, Any]], wanted: dict[str, Any], limit: float
    ):
        self.name, self.limit, self.deadline = name, limit, time.monotonic() + limit
        self.answer = b""
        self.words = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child); what it prints itself; its end explains a crash
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self.work(look, wanted, writer)
        os.close(writer)

    def work(self, look: Callable[[dict[str, Any]], dict[str, Any]], wanted: dict[str, Any], writer: int) -> None:
        """The child's life; never returns."""
        try:
            end_with_parent()
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(self.words.fileno(), 1)
            os.dup2(self.words.fileno(), 2)
            try:
                line = {"id": self.name, "value": look(wanted)}
            except TimedOut as error:
                line = {"id": self.name, "error": "timeout", "detail": str(error)}
            except BaseException as error:  # one thing that cannot be seen must not hide the others
                line = {"id": self.name, "error": "crash", "detail": repr(error)}
            data = json.dumps(line).encode() + b"\n"
            while data:
                data = data[os.write(writer, data) :]
        finally:
            os._exit(0)

    def fileno(self) -> int:
        return self.reader

    def read(self) -> bool:
        """Take what there is; True at the end."""
        chunk = os.read(self.reader, 1 << 16)
        self.answer += chunk
        return not chunk

    def line(self) -> str:
        """The line to print, once it ended or its time was up; the child is gone afterwards, if the kernel lets it go."""
        late = time.monotonic() >= self.deadline and not self.answer.endswith(b"\n")
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        os.close(self.reader)
        status = 0
        for _ in range(20):  # one that sleeps in the kernel on a dead disk can't be waited for
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.005)
        if self.answer.endswith(b"\n"):
            return self.answer.decode().rstrip("\n")
        if late:
            return json.dumps({"id": self.name, "error": "timeout", "detail": f"no answer within {self.limit:g} s"})
        self.words.seek(0)
        words = last_line(self.words.read().decode("utf-8", "replace"))
        how = f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended without an answer"
        return json.dumps({"id": self.name, "error": "crash", "detail": (how + ": " + words) if words else how})


def main(argv: list[str]) -> int:
    wanted = json.loads(argv[0]) if argv else {}
    # Piped in, or started as a file: neither the working folder nor this file's may hide a package.
    here = {"", str(Path.cwd()), str(Path(sys.argv[0]).resolve().parent)}
    sys.path[:] = [entry for entry in sys.path if entry not in here]
    if wanted.get("remember_kernels"):  # after a build: what it was built with and for
        kernels = Path(wanted["remember_kernels"]) / "megatron" / "fused_kernels"
        (kernels / "build" / FINGERPRINT).write_text(json.dumps(kernel_fingerprint(kernels)))
    asked = wanted.get("observations")
    limit = float(wanted.get("timeout", 120))
    waiting = [entry for entry in OBSERVATIONS if asked is None or entry[0] in asked]
    if wanted.get("instead_of"):  # the training Python does not run, and this one can only look at the machine
        python = wanted["instead_of"]
        value = {"executable": python, "error": argv[1] if argv[1:] and argv[1] else "it does not run"}
        print(json.dumps({"id": "python.env", "value": value}), flush=True)
        for name in [name for name, _, of_python, _ in waiting if of_python and name != "python.env"]:
            line = {"id": name, "error": "missing", "detail": python + " does not run"}
            print(json.dumps(line), flush=True)
        waiting = [entry for entry in waiting if not entry[2]]
    running: list[Child] = []
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            name, look, _, seconds = waiting.pop(0)
            allowed = min(seconds or limit, limit) if limit < QUICK_S else seconds or limit
            running.append(Child(name, look, wanted, allowed))
        until = max(0.0, min(child.deadline for child in running) - time.monotonic())
        ready, _, _ = select.select(running, [], [], until)
        for child in list(running):
            if (child in ready and child.read()) or time.monotonic() >= child.deadline:
                running.remove(child)
                print(child.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
