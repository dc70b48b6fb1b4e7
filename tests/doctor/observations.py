"""Recorded observations of every check: one value that passes (or is rightly skipped), and values with trouble.

TROUBLE holds (check id, value, status, words that the finding must say). What cannot be read and what timed out is the same for
every check and made in test_checks.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.doctor.needs import Needs, original_needs

GIB = 1 << 30
NEEDS = Needs(
    stages=("tokenizer", "pretrain", "convert"),
    packages={
        "torch": ("pretrain", "convert"),
        "transformers": ("pretrain",),
        "sentencepiece": ("tokenizer",),
        "deepspeed": ("pretrain",),
    },
    python="/opt/env/bin/python",
    gpus=2,
    bf16=True,
    processes=2,
    builds_kernels=True,
    open_files=4096,
    shared_memory=GIB,
    memory=4 * GIB,
    disk=10 * GIB,
)
ALL_STAGES = ("tokenizer", "data", "pretrain", "convert", "upload-pretrained", "finetune", "upload-finetuned")
ORIGINAL = original_needs(replace(NEEDS, stages=ALL_STAGES), "/home/u", None)
FLEET = replace(NEEDS, nodes=("node1", "node2"), launcher="deepspeed", hub=True, wandb=True)

VERSIONS = {
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "sentencepiece": "0.2.3",
    "deepspeed": "0.19.8",
    "numpy": "2.4.6",
}
PINNED = {name: want.lstrip("=<>") for name, want in ORIGINAL.profile.requires.items()} | {"protobuf": "3.20.3"}
TORCH = {
    "asked": True,
    "imported": True,
    "version": "2.13.0",
    "cuda": "13.0",
    "cuda_available": True,
    "devices": ["NVIDIA H100"] * 2,
    "bf16": True,
    "archs": ["sm_80", "sm_90", "compute_120"],
    "capabilities": ["9.0", "9.0"],
    "unusable": {},
}
CC = {"path": "/usr/bin/cc", "version": "cc (Debian 12.2.0-14) 12.2.0"}
LIMITS = {
    "open_files": 65536,
    "open_files_later": 1024,
    "open_files_hard": 1 << 20,
    "memory": 64 * GIB,
    "cores": 8,
    "shm": 2 * GIB,
    "memlock": -1,
    "processes": -1,
    "infiniband": False,
    "bashrc": "/home/u/.bashrc",
}
SPACE = {"folder": "/data", "free": 100 * GIB, "inodes": 10**6, "writable": True, "others": {}}
ENCODING = {"filesystem": "utf-8", "preferred": "UTF-8", "variables": {"LANG": "C.UTF-8"}}
GPU = {
    "index": 0,
    "name": "NVIDIA H100 80GB HBM3",
    "uuid": "GPU-0",
    "capability": "9.0",
    "memory_total": 80 * GIB,
    "memory_used": 1 << 20,
    "utilization": 0,
    "mig": 0,
    "temperature": 40,
    "slowdown": 87,
    "power": 80_000,
    "power_limit": 700_000,
    "power_default": 700_000,
    "clock": 345,
    "clock_max": 1980,
    "clock_application": 1980,
    "clock_default": 1980,
    "reasons": 1,
    "ecc_mode": 1,
    "ecc_corrected": 0,
    "ecc_uncorrected": 0,
    "remapped": {"corrected": 0, "uncorrected": 0, "pending": 0, "failed": 0},
    "retired_pending": None,
    "persistence": 1,
    "pcie": {"width": 16, "width_max": 16, "generation": 1, "generation_max": 5},
    "nvlinks": [{"active": True, "crc": 0}] * 18,
    "processes": [],
}
NODE = {
    "pci": 2,
    "kernel_module": "580.65.06",
    "library": True,
    "init": 0,
    "driver": "580.65.06",
    "cuda_driver": "13.0",
    "torch_cuda": "13.0",
    "gpus": [GPU, GPU | {"index": 1}],
}
NO_GPU = {"pci": 0, "kernel_module": None, "library": None, "gpus": [], "detail": "libnvidia-ml.so.1: cannot open"}


def node(**changes: Any) -> dict[str, Any]:
    """The healthy node with something changed on its second GPU."""
    return NODE | {"gpus": [GPU, GPU | {"index": 1} | changes]}


TORCH_BUILD = {"version": "2.2.0", "cuda": "11.8"}
SUFFIX = ".cpython-39-x86_64-linux-gnu.so"
LIBRARIES = {
    "prefix": "/opt/env",
    "torch": "/opt/env/lib/python3.11/site-packages/torch",
    "path": ["/usr/local/cuda/lib64"],
    "resolved": {"libcudart.so.12": "/opt/env/lib/python3.11/site-packages/torch/lib/libcudart.so.12"},
    "hooks": [],
}
HEADERS = {
    "python_h": "/usr/include/python3.11/Python.h",
    "present": True,
    "suffix": SUFFIX,
    "config": "/opt/env/bin/python3-config",
    "config_suffix": SUFFIX,
    "pybind11": True,
}
CACHE = {"folder": "/home/u/.cache/torch_extensions", "locks": [], "compiling": 0, "file_system": "ext4"}
BUILT = {
    "present": True,
    "ops": ["fused_adam"],
    "torch_info": {"version": "2.2", "cuda_version": "11.8"},
    "torch": TORCH_BUILD,
}
OPS = {"imported": True, "installed": {"fused_adam": True}, "compatible": {"fused_adam": True}}
APEX = {
    "suffix": SUFFIX,
    "apex": "0.1",
    "modules": {
        name: {"files": [f"/s/{name}{SUFFIX}"], "fitting": [f"/s/{name}{SUFFIX}"]} for name in ("apex_C", "amp_C")
    },
}
FLASH_SO = f"/s/flash_attn_2_cuda{SUFFIX}"
FLASH = {
    "suffix": SUFFIX,
    "version": "2.5.0",
    "torch": TORCH_BUILD,
    "imported": {"ok": True},
    "modules": {"flash_attn_2_cuda": {"files": [FLASH_SO], "fitting": [FLASH_SO]}},
}
MEGATRON = {
    "checkout": "/m",
    "present": True,
    "wins": "/m/megatron",
    "installed": None,
    "core": None,
    "tag": "ucllm_nedo_v20240415.1.0",
    "commit": "1c68b0e",
    "changes": "",
}
STARTS = {"checkout": "/m", "ok": True, "stand_ins": ["apex", "torchvision"]}
HELPERS = {
    "checkout": "/m",
    "suffix": SUFFIX,
    "source": True,
    "built": f"/m/megatron/data/helpers{SUFFIX}",
    "newer": True,
    "others": [],
    "error": "",
}
PRINT = {"torch": "2.2.0", "cuda": "11.8", "nvcc": "11.8", "sources": "abc"}
FUSED = {
    "checkout": "/m",
    "present": True,
    "build": "/m/megatron/fused_kernels/build",
    "built": True,
    "here": PRINT,
    "compiling": 0,
    "lock_age": None,
    "libraries": ["scaled_softmax_cuda.so"],
    "fingerprint": PRINT,
}
NAMES = {"host": "node1", "own": "10.0.0.1", "peers": {"node1": "10.0.0.1", "node2": "10.0.0.2"}}
INTERFACES = {
    "interfaces": [
        {"name": "lo", "up": True, "address": "127.0.0.1", "mtu": 65536},
        {"name": "eth0", "up": True, "address": "10.0.0.1", "mtu": 1500},
        {"name": "eth1", "up": False, "address": None, "mtu": 1500},
        {"name": "docker0", "up": True, "address": "172.17.0.1", "mtu": 1500},
    ],
    "routes": {
        "node1": {"address": "10.0.0.1", "source": "10.0.0.1", "interface": "eth0", "local": True},
        "node2": {"address": "10.0.0.2", "source": "10.0.0.1", "interface": "eth0", "local": False},
    },
    "variables": {"NCCL_SOCKET_IFNAME": "", "GLOO_SOCKET_IFNAME": "", "NCCL_IB_HCA": ""},
}
PORT = {"port": 29500, "free": True, "error": "", "reached": None}
MTU = {"peers": 2, "paths": {"node2": {"mtu": 1500, "answers": True, "large": True}}}
IB_PORT = {
    "device": "mlx5_0",
    "port": "1",
    "state": "4: ACTIVE",
    "rate": "400 Gb/sec (4X NDR)",
    "link_layer": "InfiniBand",
    "link_downed": 0,
}
REDUCED = {"asked": True, "rank": 0, "ok": True, "right": True, "stage": "all-reduce", "gb_per_s": 3.2}
BROKEN = {"asked": True, "rank": 1, "ok": False, "stage": "rendezvous", "error": "DistNetworkError: timed out"}
SSH = {"asked": True, "connected": True, "seconds": 0.2, "words": "", "node": "node2"}
IDENTITY = {"machine": "a1", "boot": "b1", "host": "node1", "addresses": ["10.0.0.1", "127.0.0.1"]}
SHARED = {"folders": {"/runs": {"seen": True, "written": True, "error": ""}}}
SPEED = {"write": 1e9, "read": 2e9, "files_per_s": 5000.0, "file_system": "ext4"}
STACK = {"kernel": "6.1.0", "stack": {"torch": "2.2.0", "python": "3.9.18", "driver": "580.65.06"}}
HUB = {"host": "huggingface.co", "name": "tester", "role": "write", "status": 200}
CREDS = {"wandb": True, "wandb_mode": "", "hub": True, "hub_offline": False, "readable_by_others": []}
SLURM = {
    "job": "17",
    "available": True,
    "nodes": ["node1", "node2"],
    "step": "",
    "terminal": False,
    "ends": "2026-11-25T10:00:00",
    "now": "2026-11-24T10:00:00",
}
BURN = {"gpus": [{"index": i, "tflops": 700.0 - i, "finite": True, "same": True} for i in range(8)]}


def dcgm(status: str) -> dict[str, Any]:
    tests = [{"name": "Memory", "results": [{"gpu_ids": "0", "status": status}]}]
    document = {"DCGM Diagnostic": {"test_categories": [{"category": "Hardware", "tests": tests}]}}
    return {"path": "/usr/bin/dcgmi", "code": 0, "document": document, "output": "..."}


PASSES: dict[str, dict[str, Any]] = {
    "python.env": {"version": "3.11.7", "executable": "/opt/env/bin/python"},
    "python.pins": {"versions": VERSIONS},
    "python.encoding": ENCODING,
    "python.numpy_abi": {"versions": VERSIONS},
    "python.pip_check": {"pip": "24.0", "conflicts": []},
    "python.ld_library_path": LIBRARIES,
    "shell.bashrc_dup": {"path": "/home/u/.bashrc", "repeated": [], "prints": "", "complains": ""},
    "cuda.driver": NODE,
    "cuda.nvcc_vs_torch": {
        "nvcc": [{"path": "/c/bin/nvcc", "version": "13.0"}],
        "torch": {"version": "2.13.0", "cuda": "13.0"},
    },
    "cuda.torch_sees_gpu": TORCH,
    "cuda.arch": TORCH,
    "cuda.nccl_version": {
        "torch": True,
        "torch_cuda": "13.0",
        "wheels": {"nvidia-nccl-cu13": "2.29.1"},
        "preload": "",
        "copies": [],
    },
    "build.cxx": {"cc": CC, "c++": CC, "nvcc": "13.0"},
    "build.ninja": {"path": "/usr/bin/ninja", "version": "1.13.0"},
    "build.headers": HEADERS,
    "build.ext_cache": CACHE,
    "ds.import": {"imported": True, "version": "0.19.8"},
    "ds.ops": OPS,
    "ds.built_with": BUILT,
    "ds.launcher": {"pdsh": "/usr/bin/pdsh", "rcmd": "ssh", "ssh_arguments": ""},
    "ds.env_file": {"files": ["/home/u/.deepspeed_env"], "named": ["HF_HOME"], "set_here": ["HF_HOME"]},
    "apex.so": APEX,
    "flash.so": FLASH,
    "megatron.import": MEGATRON,
    "megatron.start": STARTS,
    "megatron.helpers": HELPERS,
    "megatron.fused_kernels": FUSED,
    "gpu.count": NODE,
    "gpu.ecc": NODE,
    "gpu.xid": {"gpus": 2, "readable": True, "lines": []},
    "gpu.throttle": NODE,
    "gpu.clocks": NODE,
    "gpu.temp_power": NODE,
    "gpu.busy": NODE,
    "gpu.nvlink": NODE,
    "gpu.fabricmanager": {"switches": 4, "state": "active", "running": True},
    "gpu.pcie": NODE,
    "gpu.persistence": NODE,
    "gpu.burn": BURN,
    "gpu.dcgm": dcgm("Pass"),
    "net.hostname": NAMES,
    "net.iface": INTERFACES,
    "net.port": PORT,
    "net.mtu": MTU,
    "net.ib": {"ports": [IB_PORT, IB_PORT | {"device": "mlx5_1"}]},
    "net.gloo": REDUCED,
    "net.nccl": REDUCED,
    "ssh.batch": SSH,
    "ssh.latency": SSH,
    "ssh.same_host": IDENTITY,
    "fs.shared": SHARED,
    "fs.space": SPACE,
    "fs.speed": SPEED,
    "limits": LIMITS,
    "clock.skew": {"time": 1.8e9, "offset": 0.1},
    "fleet.equal": STACK,
    "creds": CREDS,
    "creds.hub": HUB,
    "slurm": SLURM,
}

ONE_NODE_SKIPS = ("ssh.same_host", "clock.skew", "fleet.equal")
"""Checks that compare nodes: on one alone they are skipped."""
OF_ORIGINAL = ("apex.so", "flash.so", "megatron.import", "megatron.start", "megatron.helpers", "megatron.fused_kernels")
"""Checks that only the original profile makes."""
OF_FLEET = ("ds.launcher", "ds.env_file", "net.hostname", "net.iface", "net.mtu", "creds", "creds.hub", "slurm")
"""Checks that ask for several nodes, another launcher or a log-in."""

TROUBLE: list[tuple[str, dict[str, Any], str, str]] = [
    ("python.env", {"version": "3.9.18", "executable": "p"}, "fail", "too old"),
    ("python.env", {"executable": "/gone/python", "error": "No such file"}, "fail", "/gone/python does not run"),
    ("python.pins", {"versions": VERSIONS | {"torch": None}}, "fail", "not installed: torch"),
    ("python.pins", {"versions": VERSIONS | {"transformers": "4.57.1"}}, "fail", "too old: transformers 4.57.1"),
    ("python.encoding", ENCODING | {"preferred": "ANSI_X3.4-1968"}, "warn", "ANSI_X3.4-1968"),
    ("python.numpy_abi", {"versions": {"torch": "2.2.0", "numpy": "2.0.1"}}, "fail", "cannot work with NumPy 2.0.1"),
    (
        "python.pip_check",
        {"pip": "24.0", "conflicts": ["a 1 requires b, which is not installed."]},
        "warn",
        "a 1 requires b",
    ),
    ("python.pip_check", {"pip": None, "conflicts": [], "error": "No module named pip"}, "warn", "no pip"),
    (
        "python.ld_library_path",
        LIBRARIES | {"resolved": {"libnccl.so.2": "/usr/local/cuda/lib64/libnccl.so.2"}},
        "warn",
        "libnccl.so.2 => /usr/local/cuda/lib64",
    ),
    (
        "shell.bashrc_dup",
        {"path": "/b", "repeated": [[4, "ulimit -n 262144"]], "prints": "", "complains": ""},
        "warn",
        "ulimit -n 262144",
    ),
    ("shell.bashrc_dup", {"path": "/b", "repeated": [], "prints": "Welcome!", "complains": ""}, "fail", "Welcome!"),
    (
        "shell.bashrc_dup",
        {
            "path": "/b",
            "repeated": [],
            "prints": "",
            "complains": "bash: warning: setlocale: LC_ALL: cannot change locale (ja_JP.UTF-8)",
        },
        "warn",
        "the locale ja_JP.UTF-8 is not installed",
    ),
    (
        "shell.bashrc_dup",
        {"path": "/b", "repeated": [], "prints": "", "complains": "/b: line 3: /gone: No such file or directory"},
        "warn",
        "the shell complains",
    ),
    ("cuda.driver", NODE | {"init": 18, "detail": "Driver/library version mismatch"}, "fail", "different versions"),
    ("cuda.driver", NODE | {"kernel_module": "550.54.14"}, "fail", "kernel module 550.54.14"),
    ("cuda.driver", NODE | {"library": None, "detail": "cannot open shared object"}, "fail", "does not answer"),
    ("cuda.driver", NODE | {"driver": "535.1.1", "kernel_module": "535.1.1"}, "fail", "too old for CUDA 13.0"),
    ("cuda.driver", NO_GPU, "fail", "no NVIDIA GPU and no driver"),
    (
        "cuda.nvcc_vs_torch",
        {"nvcc": [{"path": "/c/bin/nvcc", "version": "12.4"}], "torch": {"version": "2.13.0", "cuda": "13.0"}},
        "fail",
        "nvcc 12.4, torch's CUDA 13.0",
    ),
    ("cuda.nvcc_vs_torch", {"nvcc": [], "torch": {"version": "2.13.0", "cuda": "13.0"}}, "fail", "no nvcc"),
    (
        "cuda.nvcc_vs_torch",
        {"nvcc": [{"path": "/c/nvcc", "version": "error: 127"}], "torch": {"version": "2", "cuda": "13.0"}},
        "fail",
        "does not run",
    ),
    ("cuda.torch_sees_gpu", {"asked": True, "imported": False, "error": "OSError: libcudart"}, "fail", "libcudart"),
    ("cuda.torch_sees_gpu", TORCH | {"devices": ["NVIDIA H100"]}, "fail", "the plan trains on 2"),
    ("cuda.torch_sees_gpu", TORCH | {"cuda": None, "devices": []}, "fail", "CUDA none"),
    ("cuda.torch_sees_gpu", TORCH | {"bf16": False}, "fail", "without bf16"),
    ("cuda.torch_sees_gpu", TORCH | {"unusable": {"1": "CUDA error: unknown"}}, "fail", "GPU 1: CUDA error"),
    ("cuda.arch", TORCH | {"capabilities": ["7.0"]}, "fail", "compute capability 7.0"),
    (
        "cuda.nccl_version",
        {"torch": True, "torch_cuda": "13.0", "wheels": {}, "preload": "/usr/lib/libnccl.so", "copies": []},
        "warn",
        "LD_PRELOAD",
    ),
    ("build.cxx", {"cc": CC, "c++": None, "nvcc": None}, "fail", "no working c++"),
    ("build.cxx", {"cc": CC | {"version": "error: exit code 1"}, "c++": CC, "nvcc": None}, "fail", "no working cc"),
    ("build.cxx", {"cc": CC, "c++": CC | {"version": "g++ (GCC) 16.1.0"}, "nvcc": "13.0"}, "warn", "GCC 16 is too new"),
    ("build.ninja", {"path": None, "version": None}, "fail", "no ninja"),
    ("build.ninja", {"path": "/x/ninja", "version": "error: exit code 1"}, "fail", "does not run"),
    (
        "build.headers",
        HEADERS | {"python_h": "/usr/include/Python.h", "present": False},
        "fail",
        "no /usr/include/Python.h",
    ),
    ("build.ext_cache", CACHE | {"locks": [{"path": "/c/x/lock", "age": 3600}]}, "fail", "/c/x/lock (60 min)"),
    ("ds.import", {"imported": False, "error": "ImportError: libcurand"}, "fail", "libcurand"),
    ("ds.ops", {"imported": False, "error": "ImportError: x"}, "unknown", "its ops are not known"),
    ("ds.built_with", BUILT | {"torch": {"version": "2.13.0", "cuda": "13.0"}}, "fail", "torch 2.2 -> 2.13"),
    ("ds.launcher", {"pdsh": None, "rcmd": "", "ssh_arguments": ""}, "fail", "no pdsh"),
    ("ds.launcher", {"pdsh": "/p", "rcmd": "ssh", "ssh_arguments": "-p 22"}, "warn", "PDSH_SSH_ARGS_APPEND=-p 22"),
    ("ds.env_file", {"files": [], "named": [], "set_here": ["HF_HOME", "HF_TOKEN"]}, "warn", "found: HF_HOME\n"),
    ("apex.so", APEX | {"apex": None}, "fail", "apex is not installed"),
    ("apex.so", APEX | {"modules": {"apex_C": {"files": [], "fitting": []}}}, "fail", "apex has no apex_C"),
    (
        "apex.so",
        APEX | {"modules": {"apex_C": {"files": ["/s/apex_C.cpython-310-x86_64-linux-gnu.so"], "fitting": []}}},
        "fail",
        "built for another Python: apex_C.cpython-310",
    ),
    ("flash.so", FLASH | {"version": None}, "fail", "not installed"),
    (
        "flash.so",
        FLASH | {"modules": {"flash_attn_2_cuda": {"files": ["/s/x"], "fitting": []}}},
        "fail",
        "another Python",
    ),
    (
        "flash.so",
        FLASH | {"imported": {"ok": False, "error": "undefined symbol: _ZN3c104"}},
        "fail",
        "another torch or ABI",
    ),
    ("megatron.import", MEGATRON | {"present": False}, "fail", "no Megatron-DeepSpeed"),
    ("megatron.import", MEGATRON | {"core": "0.16.0", "wins": "/s/megatron"}, "fail", "megatron-core 0.16.0 hides"),
    ("megatron.import", MEGATRON | {"installed": "/s/megatron", "wins": "/s/megatron"}, "fail", "in /s/megatron hides"),
    ("megatron.import", MEGATRON | {"core": "0.16.0"}, "warn", "megatron-core 0.16.0 would hide"),
    ("megatron.start", STARTS | {"ok": False, "error": "ModuleNotFoundError: No module named 'six'"}, "fail", "'six'"),
    ("megatron.start", STARTS | {"ok": False, "error": "RuntimeError: operator torchvision::nms"}, "fail", "nms"),
    ("megatron.import", MEGATRON | {"tag": None}, "fail", "is at 1c68b0e"),
    ("megatron.import", MEGATRON | {"changes": " M megatron/training.py"}, "warn", "M megatron/training.py"),
    (
        "megatron.helpers",
        HELPERS | {"built": None, "others": ["helpers.cpython-310-x86_64-linux-gnu.so"]},
        "fail",
        "built for another Python",
    ),
    ("megatron.helpers", HELPERS | {"built": None}, "warn", "are not built"),
    ("megatron.helpers", HELPERS | {"newer": False}, "fail", "older than their source"),
    ("megatron.helpers", HELPERS | {"error": "ImportError: GLIBCXX"}, "fail", "GLIBCXX"),
    ("megatron.fused_kernels", FUSED | {"lock_age": 900}, "fail", "lock 15 min ago"),
    ("megatron.fused_kernels", FUSED | {"here": PRINT | {"cuda": "12.1"}}, "fail", "another cuda"),
    ("megatron.fused_kernels", FUSED | {"fingerprint": None}, "warn", "not known with what"),
    ("gpu.count", NODE | {"pci": 3}, "fail", "2 of 3 GPUs on the bus"),
    ("gpu.count", NODE | {"gpus": [GPU, {"index": 1, "error": "GPU is lost"}]}, "fail", "GPU 1: GPU is lost"),
    ("gpu.count", NODE | {"gpus": [GPU], "pci": 1}, "fail", "the plan uses 2"),
    ("gpu.count", node(name="NVIDIA L4"), "warn", "1x NVIDIA L4"),
    ("gpu.count", node(mig=1), "warn", "MIG is on"),
    ("gpu.ecc", node(ecc_uncorrected=2), "fail", "GPU 1: 2 uncorrected errors"),
    (
        "gpu.ecc",
        node(remapped={"corrected": 0, "uncorrected": 1, "pending": 1, "failed": 0}),
        "fail",
        "remapping pending",
    ),
    ("gpu.ecc", node(ecc_corrected=50_000), "warn", "50000 corrected"),
    (
        "gpu.xid",
        {"gpus": 2, "readable": True, "lines": ["NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off"]},
        "fail",
        "Xid 79",
    ),
    ("gpu.xid", {"gpus": 2, "readable": True, "lines": ["NVRM: Xid (PCI:0000:01:00): 31, pid=7"]}, "warn", "Xid 31"),
    ("gpu.xid", {"gpus": 2, "readable": False, "lines": []}, "unknown", "cannot be read"),
    ("gpu.throttle", node(reasons=0x40), "fail", "GPU 1: hardware slowdown"),
    ("gpu.throttle", node(reasons=0x20), "warn", "by temperature"),
    ("gpu.clocks", node(power_limit=400_000), "warn", "400 W of 700 W"),
    ("gpu.clocks", node(clock_application=1200), "warn", "1200 MHz of 1980 MHz"),
    ("gpu.temp_power", node(temperature=88), "fail", "88 °C"),
    ("gpu.temp_power", node(temperature=84), "warn", "84 °C"),
    (
        "gpu.busy",
        node(processes=[{"pid": 77, "memory": 9 * GIB, "command": "python", "uid": 0, "mine": False}]),
        "fail",
        "pid 77 (python) 9 GiB",
    ),
    ("gpu.busy", node(memory_used=20 * GIB), "fail", "20 GiB held by processes that are not seen"),
    ("gpu.nvlink", node(nvlinks=[{"active": True, "crc": 0}] * 17 + [{"active": False, "crc": 0}]), "fail", "17 of 18"),
    ("gpu.fabricmanager", {"switches": 4, "state": "inactive", "running": False}, "fail", "not running"),
    ("gpu.pcie", node(pcie=GPU["pcie"] | {"width": 8}), "warn", "x8 / x16"),
    ("gpu.persistence", node(persistence=0), "warn", "off on GPU 1"),
    (
        "gpu.burn",
        {"gpus": [*BURN["gpus"], {"index": 8, "tflops": 300.0, "finite": True, "same": True}]},
        "fail",
        "300 TFLOP/s",
    ),
    ("gpu.burn", {"gpus": [{"index": 0, "tflops": 700.0, "finite": False, "same": False}]}, "fail", "wrong numbers"),
    ("gpu.dcgm", dcgm("Fail"), "fail", "Memory failed"),
    ("net.hostname", NAMES | {"peers": {"node1": "10.0.0.1", "node2": None}}, "fail", "does not know node2"),
    ("net.hostname", NAMES | {"own": "127.0.1.1"}, "fail", "for 127.0.1.1"),
    (
        "net.iface",
        INTERFACES | {"variables": INTERFACES["variables"] | {"NCCL_SOCKET_IFNAME": "ib0"}},
        "fail",
        "=ib0 names no",
    ),
    (
        "net.iface",
        INTERFACES | {"variables": INTERFACES["variables"] | {"GLOO_SOCKET_IFNAME": "docker0"}},
        "fail",
        "=docker0",
    ),
    ("net.iface", INTERFACES | {"routes": {"node2": {"address": None}}}, "fail", "no route to node2"),
    ("net.port", PORT | {"free": False, "error": "Address already in use"}, "warn", "29500 is taken"),
    ("net.port", PORT | {"reached": False, "error": "10.0.0.1:40123: timed out"}, "fail", "timed out"),
    (
        "net.mtu",
        MTU | {"paths": {"node2": {"mtu": 9000, "answers": True, "large": False}}},
        "fail",
        "do not reach node2",
    ),
    ("net.ib", {"ports": [IB_PORT, IB_PORT | {"device": "mlx5_3", "state": "1: DOWN"}]}, "fail", "mlx5_3/1: 1: DOWN"),
    ("net.ib", {"ports": [IB_PORT | {"link_downed": 99}]}, "warn", "mlx5_0: 99"),
    ("net.ib", {"ports": [IB_PORT, IB_PORT | {"device": "mlx5_1", "rate": "200 Gb/sec"}]}, "warn", "different speeds"),
    ("net.gloo", BROKEN, "fail", "failed at rendezvous"),
    ("net.nccl", BROKEN, "fail", "failed at rendezvous"),
    ("ssh.batch", SSH | {"connected": False, "words": "Permission denied (publickey)."}, "fail", "key is not accepted"),
    (
        "ssh.batch",
        SSH | {"connected": False, "words": "Host key verification failed."},
        "fail",
        "host key is not known",
    ),
    (
        "ssh.batch",
        SSH
        | {
            "connected": False,
            "words": "Host key verification failed.",
            "offered": {
                "keys": ["n2 ssh-ed25519 AAAA"],
                "fingerprints": ["n2: SHA256:abc (ssh-ed25519)"],
                "config": "StrictHostKeyChecking yes\n",
                "config_file": "/h/ssh/config",
            },
        },
        "fail",
        "host key is not known",
    ),
    (
        "ssh.batch",
        SSH | {"connected": False, "words": "REMOTE HOST IDENTIFICATION HAS CHANGED!"},
        "fail",
        "has changed",
    ),
    ("ssh.batch", SSH | {"connected": False, "words": "Connection refused"}, "fail", "Connection refused"),
    ("ssh.latency", SSH | {"seconds": 6.0}, "warn", "6.0 s"),
    (
        "fs.shared",
        {"folders": {"/runs": {"seen": False, "written": False, "error": ""}}},
        "fail",
        "/runs is not shared",
    ),
    ("fs.space", SPACE | {"free": 9 * GIB}, "fail", "9 GiB free"),
    ("fs.space", SPACE | {"free": 15 * GIB}, "warn", "15 GiB free"),
    ("fs.space", SPACE | {"inodes": 5}, "fail", "only 5 more files"),
    ("fs.space", SPACE | {"writable": False}, "fail", "not writable"),
    ("fs.space", SPACE | {"others": {"tmp": {"folder": "/tmp", "free": 1000, "inodes": 9}}}, "warn", "/tmp: 1000 B"),
    ("fs.speed", SPEED | {"write": 1e6}, "warn", "writes 977 KiB/s"),
    ("limits", LIMITS | {"open_files": 1024}, "fail", "4096 open files"),
    ("limits", LIMITS | {"open_files": 1024, "open_files_later": 65536}, "warn", "log out and in again"),
    ("limits", LIMITS | {"shm": 64 << 20}, "fail", "1 GiB of /dev/shm"),
    ("limits", LIMITS | {"shm": None}, "fail", "/dev/shm absent"),
    ("limits", LIMITS | {"memory": 2 * GIB}, "warn", "about 4 GiB of memory"),
    ("limits", LIMITS | {"infiniband": True, "memlock": 65536}, "fail", "unlimited locked memory"),
    ("creds", CREDS | {"hub": False}, "fail", "not logged in: Hugging Face Hub"),
    ("creds", CREDS | {"wandb": False}, "fail", "not logged in: Weights & Biases"),
    ("creds", CREDS | {"hub_offline": True}, "fail", "HF_HUB_OFFLINE"),
    ("creds", CREDS | {"readable_by_others": ["/home/u/.netrc"]}, "warn", "others can read /home/u/.netrc"),
    ("creds.hub", HUB | {"status": 401, "name": None}, "fail", "refuses the token"),
    ("creds.hub", HUB | {"role": "read"}, "fail", "may only read"),
    ("creds.hub", HUB | {"status": None, "error": "timed out"}, "fail", "cannot be reached"),
    ("slurm", SLURM | {"nodes": ["node1"]}, "fail", "node2 are not part of job 17"),
    ("slurm", SLURM | {"ends": "2026-11-24T10:20:00"}, "warn", "ends in 20m00s"),
    ("slurm", SLURM | {"terminal": True}, "warn", "srun --pty"),
]

COMPARED: list[tuple[str, dict[str, dict[str, Any]], str, str]] = [
    ("python.env", {f"n{i}": {"version": "3.11.7", "executable": "/p"} for i in range(4)} | {"n4": {"version": "3.12.1", "executable": "/p"}}, "n4", "3.12.1"),
    ("python.pins", {f"n{i}": {"versions": VERSIONS} for i in range(4)} | {"n4": {"versions": VERSIONS | {"torch": "2.12.0"}}}, "n4", "torch 2.12.0"),
    ("gpu.count", {"node1": NODE, "node2": NODE, "n3": NODE | {"gpus": [GPU, GPU | {"index": 1, "name": "L4"}]}}, "n3", "1x L4"),
    ("cuda.nccl_version", {f"n{i}": {"torch": True, "torch_cuda": "13.0", "wheels": {"nvidia-nccl-cu13": "2.29"}, "preload": "", "copies": []} for i in range(3)} | {"n9": {"torch": True, "torch_cuda": "13.0", "wheels": {"nvidia-nccl-cu13": "2.27"}, "preload": "", "copies": []}}, "n9", "2.27"),
    ("megatron.fused_kernels", {"n1": FUSED, "n2": FUSED | {"here": PRINT | {"nvcc": "12.1"}}}, "n2", "another nvcc"),
    ("net.hostname", {"node1": NAMES, "node2": NAMES | {"peers": {"node1": "10.0.0.1", "node2": None}}}, "node2", "does not know node2"),
    ("net.mtu", {"n1": MTU, "n2": MTU, "n3": {"peers": 2, "paths": {"n1": {"mtu": 9000, "answers": True, "large": True}}}}, "n3", "9000"),
    ("net.gloo", {"n1": REDUCED, "n2": BROKEN}, "n2", "rendezvous"),
    ("net.nccl", {"n1": REDUCED, "n2": BROKEN}, "n2", "rendezvous"),
    ("gpu.clocks", {f"n{i}": NODE for i in range(4)} | {"n9": NODE | {"gpus": [GPU | {"power_limit": 500_000, "power_default": 500_000}]}}, "n9", "500 W"),
    ("gpu.burn", {"n1": BURN, "n2": BURN, "n3": {"gpus": [{"index": 0, "tflops": 400.0, "finite": True, "same": True}]}}, "n3", "400 TFLOP/s"),
    ("net.ib", {f"n{i}": {"ports": [IB_PORT]} for i in range(3)} | {"n9": {"ports": [IB_PORT | {"rate": "100 Gb/sec (4X EDR)"}]}}, "n9", "100 Gb/sec"),
    ("ssh.same_host", {"a": IDENTITY, "b": IDENTITY}, "all", "a, b are one machine"),
    ("fs.shared", {"n1": SHARED, "n2": {"folders": {"/runs": {"seen": False, "written": True, "error": ""}}}}, "n2", "not seen"),
    ("clock.skew", {"n1": {"offset": 0.0}, "n2": {"offset": 300.0}}, "n2", "+300.0 s off"),
    ("fleet.equal", {f"n{i}": STACK for i in range(6)} | {"n7": STACK | {"stack": STACK["stack"] | {"torch": "2.1.2"}}}, "n7", "torch: 6 nodes 2.2.0; n7 2.1.2"),
]  # fmt: skip
"""check id, values by node, the node that must be named, words of its finding."""
