"""The node agent: looks at the machine it runs on and prints one JSON line every two seconds, until its stdin ends or falls silent.

It is never started as a file: its text is piped into a Python, here or over ssh, which may be an old one. So: only the
standard library, Python 3.8 and later, one file. One line of JSON follows the text:

    {"period": seconds, "run": run directory or null, "folder": whose disk is looked at, "parent": pid or null,
     "silence": seconds without anything on stdin after which it ends}

What it prints, null where something could not be read:

    {"time": unix s, "host": name, "seq": n, "period": s,
     "gpus": [{"index", "name", "util": percent, "memory_used", "memory_total": bytes, "temperature": C,
               "power", "power_limit": W, "clock": MHz}],
     "nvml": "ok" | "absent" | what went wrong, "nvml_blocked_s": seconds the driver has not answered for, 0.0 below 5,
     "cpu": percent of the machine, "cores", "load": of 1 minute, "memory_used", "memory_total": bytes,
     "disk_free", "disk_total": bytes, "net_rx", "net_tx", "ib_rx", "ib_tx": bytes/s,
     "slow": null | {"processes": [{"pid", "rank", "local_rank", "gpu", "cpu": percent of a core, "rss": bytes,
                                    "gpu_memory": bytes, "name"}],
                     "gpus": [{"index", "ecc": uncorrected errors, "throttle": "" | reasons, "xid": null}]}}

"slow" comes with the first sample, then every 15 (30 s), and early when other processes belong to the run. Those are the
processes whose environment carries the run's mark; without a run, those that carry any run's or hold GPU memory.

What may block for ever in the kernel (the GPU driver, a network file system, the memory of a stuck process) is asked in
threads of its own: the heartbeat goes on.
"""
# pathlib costs more than the reading itself, and more than all the rest of this file to import.
# ruff: noqa: PTH110, PTH118, PTH119, PTH123, PTH208

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
from typing import Any, Callable  # noqa: UP035 (collections.abc.Callable cannot be subscripted in 3.8)

MARK = b"LLM_WIZARD_RUN="
SLOW_EVERY = 15  # samples
EARLY_AFTER = 5  # samples; a run whose processes come and go must not send the slow part with each
BLOCKED_PERIODS = 2.5  # 5 s
SMI_EVERY_S = 10.0  # one call costs 25 to 100 ms
RETRY_DRIVER_S = 30.0
MOST_PROCESSES = 64
PR_SET_PDEATHSIG = 1


def read(path: str) -> bytes | None:
    """The content of a file of /proc or /sys; None where there is none, or it may not be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return None


def read_number(path: str) -> int | None:
    try:
        return int(read(path) or b"")
    except ValueError:  # absent, or "max"
        return None


def listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


class Background:
    """Calls `look` in a thread of its own when asked; who asks never waits longer than he said."""

    def __init__(self, look: Callable[..., Any], patience: float) -> None:
        self._look = look
        self._patience = patience
        self._arguments: tuple[Any, ...] = ()
        self._wanted = threading.Event()
        self._ended = threading.Event()
        self._began: float | None = None
        self.value: Any = None
        threading.Thread(target=self._go, daemon=True).start()

    def _go(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            try:
                self.value = self._look(*self._arguments)
            except Exception as error:  # what cannot be seen must not end the watching
                self.value = None
                print("agent: " + repr(error), file=sys.stderr, flush=True)
            self._began = None
            self._ended.set()

    def ask(self, wait: float, *arguments: Any) -> Any:
        """What a look begun now sees, if it ends within `wait` seconds; else what the last one saw."""
        if self._began is None:
            self._arguments = arguments
            self._began = time.monotonic()
            self._ended.clear()
            self._wanted.set()
        self._ended.wait(wait)
        return self.value

    def blocked_s(self) -> float:
        """For how long the look in progress has gone on; 0.0 when there is none, or up to `patience` seconds."""
        began = self._began
        taken = 0.0 if began is None else time.monotonic() - began
        return round(taken, 1) if taken > self._patience else 0.0


# --- GPUs


class Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class MemoryV2(ctypes.Structure):
    """Since driver 510; `used` is here without what the driver keeps for itself, as nvidia-smi shows it."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class ProcessInfo(ctypes.Structure):  # of the functions ..._v2 and ..._v3
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


THROTTLE = (
    (0x04, "power cap"),
    (0x08, "hardware slowdown"),
    (0x10, "sync boost"),
    (0x20, "too hot (software slowdown)"),
    (0x40, "too hot (hardware slowdown)"),
    (0x80, "power brake"),
)
"""The reasons of a lower clock that say something is wrong; idle and a clock that the user set do not."""

NVML_NOT_SUPPORTED, NVML_NO_PERMISSION, NVML_INSUFFICIENT_SIZE = 3, 4, 7
NOT_AVAILABLE = 0xFFFFFFFFFFFFFFFF
READINGS = ("util", "memory_used", "memory_total", "temperature", "power", "power_limit", "clock")


class NvmlError(Exception):
    pass


class Nvml:
    """NVIDIA's library through ctypes, only by functions whose signatures have never changed. About 0.05 ms a GPU."""

    def __init__(self) -> None:
        """Raises OSError where there is no library, NvmlError where it finds no driver."""
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._library.nvmlErrorString.restype = ctypes.c_char_p
        code = self._library.nvmlInit_v2()
        if code:
            raise NvmlError(self._words(code))
        self._names: dict[int, str] = {}
        self._totals: dict[int, int] = {}

    def _words(self, code: int) -> str:
        words = self._library.nvmlErrorString(code)
        return "{} ({})".format(words.decode("utf-8", "replace") if words else "NVML error", code)

    def look(self, slow: bool) -> dict[str, Any]:
        count = ctypes.c_uint()
        code = self._library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        if code:
            return {"gpus": [], "nvml": self._words(code), "slow": [], "memory": {}}
        seen: dict[str, Any] = {"gpus": [], "nvml": "ok", "slow": [], "memory": {}}
        for index in range(count.value):
            errors: list[int] = []
            self._look_at(index, seen, slow, errors)
            if errors and seen["nvml"] == "ok":
                seen["nvml"] = f"GPU {index}: {self._words(errors[0])}"
        return seen

    def _look_at(self, index: int, seen: dict[str, Any], slow: bool, errors: list[int]) -> None:
        device = ctypes.c_void_p()

        def ask(function: str, value: Any, *arguments: Any) -> Any:
            """`value`, filled; None where this GPU or this driver cannot say."""
            try:
                code = getattr(self._library, function)(device, *arguments, ctypes.byref(value))
            except AttributeError:  # an older library
                return None
            if code not in (0, NVML_NOT_SUPPORTED, NVML_NO_PERMISSION):
                errors.append(code)
            return None if code else value

        def number(function: str, *arguments: Any) -> int | None:
            value = ask(function, ctypes.c_uint(), *arguments)
            return None if value is None else int(value.value)

        code = self._library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device))
        if code:
            errors.append(code)
            seen["gpus"].append(unread_gpu(index, self._names.get(index), self._totals.get(index)))
            seen["slow"].append({"index": index, "ecc": None, "throttle": None, "xid": None})
            return
        if index not in self._names:
            text = ctypes.create_string_buffer(96)
            if self._library.nvmlDeviceGetName(device, text, ctypes.c_uint(96)) == 0:
                self._names[index] = text.value.decode("utf-8", "replace")
        gpu = unread_gpu(index, self._names.get(index), self._totals.get(index))
        use = ask("nvmlDeviceGetUtilizationRates", Utilization())
        gpu["util"] = None if use is None else int(use.gpu)
        memory: Any = MemoryV2(version=ctypes.sizeof(MemoryV2) | 2 << 24)
        precise = getattr(self._library, "nvmlDeviceGetMemoryInfo_v2", None)
        if precise is None or precise(device, ctypes.byref(memory)):
            memory = ask("nvmlDeviceGetMemoryInfo", Memory())
        if memory is not None:
            gpu["memory_used"], gpu["memory_total"] = int(memory.used), int(memory.total)
            self._totals[index] = int(memory.total)
        gpu["temperature"] = number("nvmlDeviceGetTemperature", ctypes.c_int(0))
        gpu["power"] = watts(number("nvmlDeviceGetPowerUsage"))
        gpu["power_limit"] = watts(number("nvmlDeviceGetEnforcedPowerLimit"))
        gpu["clock"] = number("nvmlDeviceGetClockInfo", ctypes.c_int(1))  # of the multiprocessors
        seen["gpus"].append(gpu)
        if not slow:
            return
        ecc = ask("nvmlDeviceGetTotalEccErrors", ctypes.c_ulonglong(), ctypes.c_int(1), ctypes.c_int(0))
        reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong())
        seen["slow"].append(
            {
                "index": index,
                "ecc": None if ecc is None else int(ecc.value),
                "throttle": None if reasons is None else throttle_words(int(reasons.value)),
                "xid": None,
            }
        )
        for pid, used in self._processes(device):
            seen["memory"][pid] = (index, used)

    def _processes(self, device: ctypes.c_void_p) -> list[tuple[int, int | None]]:
        for name in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"):
            function = getattr(self._library, name, None)
            if function is None:
                continue
            count = ctypes.c_uint(256)
            found = (ProcessInfo * 256)()
            if function(device, ctypes.byref(count), found) != 0:
                return []
            unknown = NOT_AVAILABLE
            return [(int(p.pid), None if p.used == unknown else int(p.used)) for p in found[: count.value]]
        return []


def unread_gpu(index: int, name: str | None, memory_total: int | None) -> dict[str, Any]:
    gpu: dict[str, Any] = {"index": index, "name": name}
    gpu.update(dict.fromkeys(READINGS))
    gpu["memory_total"] = memory_total
    return gpu


def throttle_words(reasons: int) -> str:
    return ", ".join(words for bit, words in THROTTLE if reasons & bit)


def watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else round(milliwatts / 1000, 1)


SMI_FIELDS = (
    "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw,enforced.power.limit,clocks.sm"
)


def ask_nvidia_smi(program: str) -> dict[str, Any]:
    """The same through the program, for machines whose library cannot be loaded from here."""
    import subprocess

    argv = [program, "--query-gpu=" + SMI_FIELDS, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"gpus": [], "nvml": "nvidia-smi: " + str(error), "slow": [], "memory": {}}
    text = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode:
        words = text.splitlines()
        return {"gpus": [], "nvml": "nvidia-smi: " + (words[-1] if words else "failed"), "slow": [], "memory": {}}
    return {"gpus": read_smi(text), "nvml": "ok", "slow": [], "memory": {}}


def read_smi(text: str) -> list[dict[str, Any]]:
    """The GPUs in what `nvidia-smi --query-gpu=SMI_FIELDS --format=csv,noheader,nounits` prints ("[N/A]" is null)."""
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 9 or not fields[0].isdigit():
            continue
        values: list[float | None] = []
        for field in fields[2:]:
            try:
                values.append(float(field))
            except ValueError:
                values.append(None)
        gpu: dict[str, Any] = {"index": int(fields[0]), "name": fields[1]}
        gpu.update(zip(READINGS, values))  # noqa: B905 (`strict` came with Python 3.10)
        for name in ("memory_used", "memory_total"):
            gpu[name] = None if gpu[name] is None else int(gpu[name]) << 20
        gpus.append(gpu)
    return gpus


class Gpus:
    """NVML where its library is, else nvidia-smi where the program is, else "absent"; a driver that comes later is found."""

    def __init__(self) -> None:
        self._nvml: Nvml | None = None
        self._failed_at: float | None = None
        self._answer: dict[str, Any] = {"gpus": [], "nvml": "absent", "slow": [], "memory": {}}
        self._smi_at = -SMI_EVERY_S
        self._smi: str | None = None

    def look(self, slow: bool) -> dict[str, Any]:
        now = time.monotonic()
        if self._nvml is None and (self._failed_at is None or now - self._failed_at > RETRY_DRIVER_S):
            self._connect(now)
        if self._nvml is not None:
            return self._nvml.look(slow)
        if self._smi and now - self._smi_at >= SMI_EVERY_S:
            self._smi_at = now
            self._answer = ask_nvidia_smi(self._smi)
        return self._answer

    def _connect(self, now: float) -> None:
        self._smi = None
        try:
            self._nvml = Nvml()
        except OSError:
            self._failed_at = now
            folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
            programs = [os.path.join(folder, "nvidia-smi") for folder in folders if folder]
            self._smi = next((program for program in programs if os.access(program, os.X_OK)), None)
            if self._smi is None:
                self._answer = {"gpus": [], "nvml": "absent", "slow": [], "memory": {}}
        except (NvmlError, AttributeError) as error:  # AttributeError: a library without NVML's functions
            self._failed_at = now
            self._answer = {"gpus": [], "nvml": str(error), "slow": [], "memory": {}}


# --- the machine


class Machine:
    """CPU, memory and network; what the kernel counts becomes a rate against the look before."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._cpu = cpu_times()
        self._counters: dict[str, int | None] = {**network(), **infiniband()}
        self._limit = memory_limit()

    def look(self) -> dict[str, Any]:
        now, cpu, counters = time.monotonic(), cpu_times(), {**network(), **infiniband()}
        busy, total = cpu[0] - self._cpu[0], cpu[1] - self._cpu[1]
        used, size = self._memory()
        seen = {
            "cpu": round(min(100.0, max(0.0, 100.0 * busy / total)), 1) if total > 0 else None,
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "memory_used": used,
            "memory_total": size,
        }
        for name, counter in counters.items():
            before = self._counters.get(name)
            rate = None if counter is None or before is None else (counter - before) / max(now - self._at, 1e-3)
            seen[name] = None if rate is None or rate < 0 else round(rate)  # an interface that came or went
        self._at, self._cpu, self._counters = now, cpu, counters
        return seen

    def _memory(self) -> tuple[int | None, int | None]:
        """Bytes used and there: of the control group where that holds less than the machine, for there the run is killed."""
        values = {}
        for line in (read("/proc/meminfo") or b"").splitlines()[:12]:
            name, _, rest = line.partition(b":")
            values[name] = int(rest.split()[0]) * 1024
        total, available = values.get(b"MemTotal"), values.get(b"MemAvailable")
        if self._limit is not None:
            limit, usage_file, stat_file, word = self._limit
            usage = read_number(usage_file)
            if usage is not None and (total is None or limit < total):
                cached = (read(stat_file) or b"").partition(b"\n" + word + b" ")[2].split(b"\n")[0]
                return max(0, usage - int(cached or 0)), limit
        return (None if total is None or available is None else total - available), total


def cpu_times() -> tuple[int, int]:
    """Jiffies busy and in all, since the machine started."""
    fields = [int(field) for field in (read("/proc/stat") or b"cpu 0").split(b"\n")[0].split()[1:9]]
    total = sum(fields)
    return total - sum(fields[3:5]), total  # idle, waiting for a disk


def memory_limit() -> tuple[int, str, str, bytes] | None:
    """The smallest memory limit of this process's control groups: (bytes, file of the usage, statistics, its cache line)."""
    found = []
    for line in (read("/proc/self/cgroup") or b"").decode("utf-8", "replace").splitlines():
        number, names, path = line.split(":", 2)
        if number == "0":
            root, files, word = "/sys/fs/cgroup", ("memory.max", "memory.current"), b"inactive_file"
        elif "memory" in names.split(","):
            root, word = "/sys/fs/cgroup/memory", b"total_inactive_file"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for length in range(len(parts) + 1):  # a limit may stand at any level above
            folder = "/".join([root, *parts[:length]])
            limit = read_number(folder + "/" + files[0])
            if limit is not None:
                found.append((limit, folder + "/" + files[1], folder + "/memory.stat", word))
    return min(found) if found else None


def network() -> dict[str, int | None]:
    """Bytes of the real network cards; where there are none (a container), of all interfaces but the loopback."""
    rows: dict[str, tuple[int, int]] = {}
    for line in (read("/proc/net/dev") or b"").decode("utf-8", "replace").splitlines()[2:]:
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        if name.strip() != "lo" and len(fields) >= 9:
            rows[name.strip()] = (int(fields[0]), int(fields[8]))
    # Bridges and bonds count again what their members count.
    cards = [name for name in rows if os.path.exists("/sys/class/net/" + name + "/device")] or list(rows)
    return {"net_rx": sum(rows[name][0] for name in cards), "net_tx": sum(rows[name][1] for name in cards)}


def infiniband() -> dict[str, int | None]:
    """Bytes over all InfiniBand ports; None without any. The kernel counts in units of four bytes."""
    root = "/sys/class/infiniband/"
    ports = [root + card + "/ports/" + port for card in listed(root) for port in listed(root + card + "/ports")]
    sums: dict[str, int | None] = {}
    for name, file in (("ib_rx", "port_rcv_data"), ("ib_tx", "port_xmit_data")):
        counted = [count for port in ports if (count := read_number(port + "/counters/" + file)) is not None]
        sums[name] = 4 * sum(counted) if counted else None
    return sums


def disk(folder: str) -> tuple[int, int] | None:
    """Bytes free for this user, and in all, of the file system of `folder`; None where there is no such folder."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


# --- processes


class Processes:
    """The processes of the run. Each is asked once for its environment, and again when all are looked over."""

    def __init__(self, run: str | None) -> None:
        self._mark = b"\0" + MARK + (os.fsencode(run) + b"\0" if run else b"")
        self._known: set[int] = set()
        self._found: dict[int, bytes] = {}
        self._ticks: dict[int, tuple[float, float]] = {}
        self._per_second = os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")

    def look(self, everything: bool) -> frozenset[int]:
        """The pids of the run's processes; with `everything` those too that took the mark after we first saw them."""
        pids = {int(name) for name in listed("/proc") if name.isdigit()}
        new = pids if everything else pids - self._known
        found = {pid: environment for pid, environment in self._found.items() if pid in pids and pid not in new}
        for pid in new:
            environment = b"\0" + (read(f"/proc/{pid}/environ") or b"")
            if self._mark in environment:
                found[pid] = environment
        self._known, self._found = pids, found  # replaced whole: `describe` reads it in another thread
        return frozenset(found)

    def describe(self, gpu_memory: dict[int, tuple[int, int | None]], with_gpu_users: bool) -> list[dict[str, Any]]:
        """One entry a process: ranks first, then by memory; at most 64, for a rank may have many loaders."""
        found = self._found
        pids = set(found) | (set(gpu_memory) if with_gpu_users else set())
        entries = [entry for pid in pids for entry in self._describe(pid, found.get(pid, b""), gpu_memory.get(pid))]
        entries.sort(key=lambda entry: (entry["gpu_memory"] is None, entry["rank"] is None, -(entry["rss"] or 0)))
        self._ticks = {pid: ticks for pid, ticks in self._ticks.items() if pid in pids}
        return entries[:MOST_PROCESSES]

    def _describe(self, pid: int, environment: bytes, on_gpu: tuple[int, int | None] | None) -> list[dict[str, Any]]:
        stat = read(f"/proc/{pid}/stat")
        if not stat:
            return []  # it has ended
        comm, _, rest = stat.partition(b"(")[2].rpartition(b")")
        fields = rest.split()
        if fields[0] == b"Z":
            return []
        now = time.monotonic()
        used = (int(fields[11]) + int(fields[12])) / self._per_second
        # The kernel counts a process's start from the boot, as CLOCK_BOOTTIME does.
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / self._per_second
        before_at, before_used = self._ticks.get(pid, (now - max(age, 0.1), 0.0))
        self._ticks[pid] = (now, used)
        return [
            {
                "pid": pid,
                "rank": variable(environment, b"RANK"),
                "local_rank": variable(environment, b"LOCAL_RANK"),
                "gpu": on_gpu and on_gpu[0],
                "cpu": round(100 * max(0.0, used - before_used) / max(now - before_at, 0.1), 1),
                "rss": int(fields[21]) * self._page,
                "gpu_memory": on_gpu and on_gpu[1],
                "name": short_name(comm, read(f"/proc/{pid}/cmdline") or b""),
            }
        ]


def variable(environment: bytes, name: bytes) -> int | None:
    value = environment.partition(b"\0" + name + b"=")[2].partition(b"\0")[0]
    return int(value) if value.isdigit() and len(value) < 10 else None


def short_name(comm: bytes, command_line: bytes) -> str:
    """What a reader knows the process by: the script or module of a Python with its first word, else the kernel's name."""
    words = [word.decode("utf-8", "replace") for word in command_line.split(b"\0") if word]
    own = comm.decode("utf-8", "replace")
    if words and os.path.basename(words[0]).startswith("python") and not own.startswith("pt_data"):
        rest = words[1:]
        while rest and rest[0].startswith("-") and rest[0] not in ("-c", "-m"):
            rest = rest[1:]
        if rest and rest[0] == "-m":
            own = " ".join(rest[1:2])
        elif rest and rest[0] != "-c":
            following = [word for word in rest[1:2] if word.isidentifier() and len(word) <= 20]
            own = " ".join([os.path.basename(rest[0]), *following])
    return "".join(letter if letter.isprintable() else "?" for letter in own)[:40]


# --- the stream


class Agent:
    """Puts one sample together from what the parts see."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._period = float(config["period"])
        self._without_run = config["run"] is None
        self._machine = Machine()
        self._processes = Processes(config["run"])
        patience = BLOCKED_PERIODS * self._period
        self._gpus = Background(Gpus().look, patience)
        self._pids = Background(self._processes.look, patience)
        self._described = Background(self._processes.describe, patience)
        self._disk = Background(lambda: disk(config["folder"]), patience)
        self._seq = 0
        self._slow_at = -SLOW_EVERY
        self._sent: frozenset[int] = frozenset()
        self._gpus.ask(0, True)  # the driver may take seconds to wake

    def sample(self) -> dict[str, Any]:
        since_slow = self._seq - self._slow_at
        due = since_slow >= SLOW_EVERY
        pids = self._pids.ask(0.1, due) or frozenset()
        slow = due or (pids != self._sent and since_slow >= (EARLY_AFTER if self._sent else 1))
        seen = self._gpus.ask(0.2, slow) or {"gpus": [], "nvml": "no answer yet", "slow": [], "memory": {}}
        blocked = self._gpus.blocked_s()
        gpus = seen["gpus"]
        if blocked:
            gpus = [unread_gpu(gpu["index"], gpu["name"], gpu["memory_total"]) for gpu in gpus]
        space = self._disk.ask(0.05)
        free, total = (None, None) if space is None or self._disk.blocked_s() else space
        sample = {
            "time": round(time.time(), 3),
            "host": os.uname().nodename,
            "seq": self._seq,
            "period": self._period,
            "gpus": gpus,
            "nvml": "the driver does not answer" if blocked else seen["nvml"],
            "nvml_blocked_s": blocked,
        }
        sample.update(self._machine.look())
        sample.update(disk_free=free, disk_total=total, slow=None)
        if slow:
            self._slow_at, self._sent = self._seq, pids
            processes = self._described.ask(0.2, dict(seen["memory"]), self._without_run)
            sample["slow"] = {"processes": processes or [], "gpus": [] if blocked else seen["slow"]}
        self._seq += 1
        return sample


def end_with_parent(parent: int | None) -> None:
    """Ask the kernel to end us with who started us; the end of stdin says the same, but a copy of its pipe may live on.

    Not where that is an sshd or slurmstepd: the kernel would end us with the thread of theirs that started us.
    """
    if parent is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def end_unless_heard_within(seconds: float) -> None:
    """Let the kernel end us (SIGALRM) unless this is called again in time.

    Behind a link that was cut, stdin never ends, and once nobody takes our lines a write of ours never does.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)


def input_ends_within(seconds: float, silence: float) -> bool:
    """Wait, but for no longer than stdin is open; whatever comes from there says that somebody listens."""
    deadline = time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([0], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        if not os.read(0, 4096):
            return True
        end_unless_heard_within(silence)


def write(line: bytes) -> None:
    while line:
        line = line[os.write(1, line) :]


def main() -> None:
    config = json.loads(sys.stdin.buffer.readline())
    end_with_parent(config["parent"])
    period, silence = float(config["period"]), float(config["silence"])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # whatever a login left us with
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    end_unless_heard_within(silence)
    agent = Agent(config)
    due = time.monotonic() + min(0.2, period)  # the first rates need two looks
    while not input_ends_within(due - time.monotonic(), silence):
        write(json.dumps(agent.sample(), separators=(",", ":")).encode() + b"\n")
        due = max(due + period, time.monotonic())  # after a pause of the machine no burst


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        pass
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()  # line by line only from 3.9 on
        os._exit(1)
    os._exit(0)  # not sys.exit: a thread that the driver blocks would be waited for
