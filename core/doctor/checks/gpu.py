"""Checks of the GPUs' health, by what NVML and the kernel's log say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from core.doctor.check import Check, Values
from core.doctor.finding import Status, Verdict
from core.doctor.fix import Fix, advice
from core.doctor.fold import differences
from core.doctor.needs import Needs
from core.language import tr, tr_later
from core.quantities import size

Gpu = Mapping[str, Any]

HARDWARE_SLOWDOWN = 0x8 | 0x40 | 0x80
"""NVML's reasons: hardware slowdown, hardware thermal slowdown, power brake."""
POWER_CAP, THERMAL = 0x4, 0x20
"""Software power cap, software thermal slowdown."""
BAD_XIDS = frozenset((48, 56, 57, 58, 62, 63, 64, 65, 68, 69, 73, 74, 79, 80, 81, 92, 94, 95, 119, 120))
"""Hardware or driver: azurehpc-health-checks' list, and 94/95 (contained and uncontained ECC)."""
PROGRAM_XIDS = frozenset((13, 31, 43, 45))
"""A program's own mistake, or its end: NVIDIA's XID table."""
MANY_CORRECTED = 10_000
OTHERS_MEMORY = 1 << 30
SLOWEST_SHARE = 0.85


def gpus_of(value: Values) -> list[Gpu]:
    """The GPUs that answered."""
    return [gpu for gpu in value["gpus"] if "error" not in gpu]


def _absent(value: Values) -> Verdict | None:
    """A skip where there is no GPU, or no driver that answers (`cuda.driver` says so)."""
    if value["gpus"]:
        return None
    is_silent = bool(int(value["pci"]) if value["library"] is None else value["init"])
    if is_silent:
        return Verdict("unknown", tr("the driver does not answer"), found=str(value["detail"]))
    return Verdict("skip", tr("no NVIDIA GPU on this machine"))


def _each(gpus: list[Gpu], problem: Callable[[Gpu], str | None]) -> str:
    """GPU 0: ..., GPU 3: ... for those with a problem."""
    said = [(gpu["index"], text) for gpu in gpus if (text := problem(gpu))]
    return "; ".join(f"GPU {index}: {text}" for index, text in said)


def _verdict_of_each(
    status: Status,
    gpus: list[Gpu],
    problem: Callable[[Gpu], str | None],
    expected: str,
    why: str,
    fix: Fix | None = None,
) -> Verdict | None:
    """A verdict that says each GPU's problem; None where none has one."""
    found = _each(gpus, problem)
    return Verdict(status, found, expected=expected, found=found, why=why, fix=fix) if found else None


def count(value: Values, needs: Needs) -> Verdict:
    """Ranks are started by the number of GPUs that the plan or the hostfile states; one that fell off the bus ends them all."""
    lost = [gpu for gpu in value["gpus"] if "error" in gpu]
    if (absent := _absent(value)) and not needs.gpus:
        return absent
    gpus = gpus_of(value)
    names = Counter(str(gpu["name"]) for gpu in gpus)
    summary = ", ".join(f"{number}x {name}" for name, number in names.items()) or tr("no NVIDIA GPU")
    if gpus:
        summary += f", {size(min(gpu['memory_total'] for gpu in gpus))}"
    if lost or int(value["pci"]) > len(value["gpus"]):
        found = "; ".join(f"GPU {gpu['index']}: {gpu['error']}" for gpu in lost) or tr(
            "{seen} of {there} GPUs on the bus", seen=len(value["gpus"]), there=value["pci"]
        )
        return Verdict(
            "fail",
            tr("{summary}; a GPU does not answer", summary=summary),
            expected=tr("every GPU on the bus answers"),
            found=found,
            why=tr("it has fallen off the bus; a rank on it ends the whole run"),
            fix=advice(
                "gpu.count", "# " + tr("take the node out of the hostfile; an administrator resets or replaces the GPU")
            ),
        )
    if len(gpus) < needs.gpus:
        return Verdict(
            "fail",
            tr("{summary}; the plan uses {count}", summary=summary, count=needs.gpus),
            expected=tr("{count} GPUs", count=needs.gpus),
            found=str(len(gpus)),
            why=tr("one rank is started a GPU"),
            fix=advice("gpu.count", f"llm-wizard run ... --set cluster.processes={max(1, len(gpus))}"),
        )
    if len(names) > 1:
        return Verdict(
            "warn",
            summary,
            expected=tr("GPUs of one model"),
            found=summary,
            why=tr("every step waits for the slowest, and the smallest memory sets the batch"),
        )
    if any(gpu["mig"] for gpu in gpus):
        return Verdict(
            "warn",
            tr("{summary}; MIG is on", summary=summary),
            expected=tr("whole GPUs"),
            found=tr("MIG is on"),
            why=tr("one process sees one slice only, and slices cannot talk over NVLink"),
        )
    return Verdict("pass", summary)


def compare_counts(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """The hostfile's slots against the GPUs of each node, and the models of GPU over the nodes."""
    bad: dict[str, Verdict] = {}
    for node, value in values.items():
        verdict, gpus, slots = count(value, needs), gpus_of(value), needs.slots.get(node)
        if verdict.status == "fail":
            bad[node] = verdict
        elif slots is not None and slots != len(gpus) and (gpus or not _absent(value)):
            bad[node] = Verdict(
                "fail",
                tr("{count} GPUs, but the hostfile says slots={slots}", count=len(gpus), slots=slots),
                expected=f"slots={len(gpus)}",
                found=f"slots={slots}",
                why=tr("the launcher starts one rank a slot"),
                fix=advice("gpu.count", f"{node} slots={len(gpus)}"),
            )
    if bad:
        return bad
    if not any(gpus_of(value) for value in values.values()):
        return {"all": Verdict("skip", tr("no NVIDIA GPU on these machines"))}
    texts = {node: count(value, needs).summary for node, value in values.items()}
    return differences(texts, tr("the same GPUs on every node"), tr("every step waits for the slowest node"), "warn")


def ecc(value: Values, needs: Needs) -> Verdict:
    """Uncorrected memory errors make numbers wrong or end the process; rows that wait to be remapped need a reset."""
    if absent := _absent(value):
        return absent

    def bad(gpu: Gpu) -> str | None:
        parts = []
        if gpu["ecc_uncorrected"]:
            parts.append(tr("{count} uncorrected errors", count=gpu["ecc_uncorrected"]))
        if gpu["remapped"] and (gpu["remapped"]["pending"] or gpu["remapped"]["failed"]):
            parts.append(tr("row remapping pending") if gpu["remapped"]["pending"] else tr("row remapping failed"))
        if gpu["retired_pending"]:
            parts.append(tr("page retirement pending"))
        return ", ".join(parts) or None

    def many(gpu: Gpu) -> str | None:
        corrected = gpu["ecc_corrected"]
        return tr("{count} corrected errors", count=corrected) if (corrected or 0) > MANY_CORRECTED else None

    gpus = gpus_of(value)
    reset = tr("take the node out; an administrator resets the GPU: nvidia-smi --gpu-reset -i N")
    if errors := _verdict_of_each(
        "fail",
        gpus,
        bad,
        expected=tr("no uncorrected error since the driver was loaded"),
        why=tr("numbers may be wrong, and the next error ends the run"),
        fix=advice("gpu.ecc", "# " + reset),
    ) or _verdict_of_each(
        "warn",
        gpus,
        many,
        expected=tr("fewer than {count}", count=MANY_CORRECTED),
        why=tr("memory that is corrected so often is about to fail"),
    ):
        return errors
    off = _each(gpus, lambda gpu: tr("ECC is off") if gpu["ecc_mode"] == 0 else None)
    return Verdict("pass", tr("no uncorrected error") + (f" ({off})" if off else ""))


def xid(value: Values, needs: Needs) -> Verdict:
    """The driver writes a GPU's faults to the kernel's log as Xid numbers; some mean that the GPU must be drained."""
    if value["readable"] is None:
        return Verdict("skip", tr("no NVIDIA GPU on this machine"))
    if not value["readable"]:
        return Verdict(
            "unknown",
            tr("the kernel's log cannot be read"),
            expected=tr("dmesg or journalctl -k for this user"),
            found=tr("no right to read it"),
            why=tr("faults of the GPUs are written there only"),
            fix=advice("gpu.xid", "# " + tr("an administrator types: dmesg | grep Xid")),
        )
    seen = Counter(int(match[1]) for line in value["lines"] if (match := re.search(r"Xid \([^)]*\): (\d+)", line)))
    bad = {number: times for number, times in seen.items() if number in BAD_XIDS}
    if bad:
        found = ", ".join(f"Xid {number} x{times}" for number, times in sorted(bad.items()))
        return Verdict(
            "fail",
            found,
            expected=tr("no Xid of the hardware since boot"),
            found=str(value["lines"][-1])[:200],
            why=tr("the GPU or its link had a fault that will come again"),
            fix=advice("gpu.xid", "# " + tr("take the node out; the numbers: NVIDIA's “XID Errors” page")),
        )
    programs = sorted(number for number in seen if number in PROGRAM_XIDS)
    if programs:
        return Verdict(
            "warn",
            ", ".join(f"Xid {number} x{seen[number]}" for number in programs),
            expected=tr("no Xid since boot"),
            found=str(value["lines"][-1])[:200],
            why=tr("a program made a wrong access, or was killed; the GPU itself is well"),
        )
    return Verdict("pass", tr("no Xid since boot"))


def throttle(value: Values, needs: Needs) -> Verdict:
    """A GPU that slows itself down makes every other rank wait at each step."""
    if absent := _absent(value):
        return absent
    gpus = gpus_of(value)

    def hard(gpu: Gpu) -> str | None:
        return tr("hardware slowdown") if (gpu["reasons"] or 0) & HARDWARE_SLOWDOWN else None

    def soft(gpu: Gpu) -> str | None:
        if (gpu["reasons"] or 0) & THERMAL:
            return tr("slowed down by temperature")
        busy = (gpu["utilization"] or 0) & 0xFFFFFFFF
        return tr("at its power limit") if (gpu["reasons"] or 0) & POWER_CAP and busy < 50 else None

    why = tr("every other rank waits for this one at each step")
    if slowed := _verdict_of_each("fail", gpus, hard, tr("no slowdown by the hardware"), why) or _verdict_of_each(
        "warn", gpus, soft, tr("no slowdown"), why
    ):
        return slowed
    if all(gpu["reasons"] is None for gpu in gpus):
        return Verdict("unknown", tr("the driver does not say why clocks are low"), found="N/A")
    return Verdict("pass", tr("no GPU is slowed down"))


def clocks(value: Values, needs: Needs) -> Verdict:
    """Application clocks or a power limit that someone left low slow a node down without any error."""
    if absent := _absent(value):
        return absent

    def low(gpu: Gpu) -> str | None:
        limit, default = gpu["power_limit"], gpu["power_default"]
        if limit and default and limit < 0.95 * default:
            return tr("power limit {limit} W of {default} W", limit=limit // 1000, default=default // 1000)
        clock, normal = gpu["clock_application"], gpu["clock_default"]
        if clock and normal and clock < normal:
            return tr("application clock {clock} MHz of {normal} MHz", clock=clock, normal=normal)
        return None

    return _verdict_of_each(
        "warn",
        gpus_of(value),
        low,
        expected=tr("the GPU's own defaults"),
        why=tr("it is slower than its peers, and they wait for it"),
        fix=advice("gpu.clocks", "# " + tr("an administrator types: nvidia-smi -rac; nvidia-smi -pl WATTS")),
    ) or Verdict("pass", tr("clocks and power limits at their defaults"))


def compare_clocks(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """A node whose GPUs may draw less power, or run slower, than its peers'."""
    verdicts = {node: clocks(value, needs) for node, value in values.items()}
    bad = {node: verdict for node, verdict in verdicts.items() if verdict.status == "warn"}
    texts = {
        node: ", ".join(
            sorted({f"{(gpu['power_limit'] or 0) // 1000} W {gpu['clock_max']} MHz" for gpu in gpus_of(value)})
        )
        for node, value in values.items()
        if gpus_of(value)
    }
    if bad or not texts:
        return bad or {"all": next(iter(verdicts.values()))}
    return differences(texts, tr("the same limits on every node"), tr("every step waits for the slowest node"), "warn")


def temperature(value: Values, needs: Needs) -> Verdict:
    """A GPU near its slow-down threshold is about to slow the whole run."""
    if absent := _absent(value):
        return absent
    gpus = [gpu for gpu in gpus_of(value) if gpu["temperature"] is not None]
    if not gpus:
        return Verdict("unknown", tr("the driver does not say the temperature"), found="N/A")

    def hot(gpu: Gpu, margin: int) -> str | None:
        limit = gpu["slowdown"] or 90
        return f"{gpu['temperature']} °C / {limit} °C" if gpu["temperature"] >= limit - margin else None

    limits: tuple[tuple[Status, int], ...] = (("fail", 0), ("warn", 5))
    for status, margin in limits:
        if near := _verdict_of_each(
            status,
            gpus,
            partial(hot, margin=margin),
            expected=tr("5 °C below the slow-down threshold"),
            why=tr("the GPU slows down there, and every rank with it"),
            fix=advice("gpu.temp_power", "# " + tr("look at fans, airflow and the room")),
        ):
            return near
    return Verdict("pass", tr("at most {degrees} °C", degrees=max(gpu["temperature"] for gpu in gpus)))


def busy(value: Values, needs: Needs) -> Verdict:
    """Memory that another process holds is missing in training, which then ends with “CUDA out of memory”."""
    if absent := _absent(value):
        return absent

    def held(gpu: Gpu) -> str | None:
        rows = [row for row in gpu["processes"] or [] if row["memory"] < 1 << 63]  # N/A is the largest number
        if sum(row["memory"] for row in rows) <= OTHERS_MEMORY:
            # In a container the other processes are not listed, but the memory is.
            used = gpu["memory_used"] - sum(row["memory"] for row in rows)
            return (
                tr("{size} held by processes that are not seen", size=size(used)) if used > 4 * OTHERS_MEMORY else None
            )
        return ", ".join(
            tr(
                "pid {pid} ({command}{mine}) {size}",
                pid=row["pid"],
                command=row["command"] or "?",
                size=size(row["memory"]),
                mine=tr(", yours") if row["mine"] else "",
            )
            for row in rows
        )

    if found := _each(gpus_of(value), held):
        mine = [row["pid"] for gpu in gpus_of(value) for row in gpu["processes"] or [] if row["mine"]]
        kill = [f"kill {pid}" for pid in sorted(set(mine))]
        return Verdict(
            "fail",
            tr("GPU memory is taken: {found}", found=found),
            expected=tr("less than {size} a GPU", size=size(OTHERS_MEMORY)),
            found=found,
            why=tr("training would end with “CUDA out of memory”"),
            fix=advice("gpu.busy", *(kill or ["nvidia-smi"])),
        )
    return Verdict("pass", tr("no GPU is in use"))


def nvlink(value: Values, needs: Needs) -> Verdict:
    """One NVLink that is down makes every collective take the slow way over PCIe."""
    if absent := _absent(value):
        return absent
    gpus = gpus_of(value)
    if not any(gpu["nvlinks"] for gpu in gpus):
        return Verdict("skip", tr("these GPUs have no NVLink"))
    most = max(sum(link["active"] for link in gpu["nvlinks"]) for gpu in gpus)

    def down(gpu: Gpu) -> str | None:
        active = sum(link["active"] for link in gpu["nvlinks"])
        return tr("{active} of {most} links active", active=active, most=most) if active < most else None

    def errors(gpu: Gpu) -> str | None:
        return "CRC" if any((link["crc"] or 0) > 1000 for link in gpu["nvlinks"]) else None

    if bad := _verdict_of_each(
        "fail",
        gpus,
        down,
        expected=tr("as many active links on every GPU"),
        why=tr("collectives go over PCIe, or fail"),
        fix=advice("gpu.nvlink", "nvidia-smi nvlink --status", "nvidia-smi topo -m"),
    ) or _verdict_of_each("warn", gpus, errors, tr("few CRC errors"), tr("a link that is about to fail")):
        return bad
    if not most:
        return Verdict("skip", tr("no NVLink is connected"))
    return Verdict("pass", tr("{count} NVLinks a GPU", count=most))


def fabric_manager(value: Values, needs: Needs) -> Verdict:
    """GPUs behind NVSwitches cannot be used until the fabric manager has set the switches up."""
    if not int(value["switches"]):
        return Verdict("skip", tr("no NVSwitch on this machine"))
    if value["state"] != "active" and not value["running"]:
        return Verdict(
            "fail",
            tr("the fabric manager is not running"),
            expected="active",
            found=str(value["state"]) or tr("no such process"),
            why=tr("CUDA fails with “system not yet initialized”"),
            fix=advice("gpu.fabricmanager", "# " + tr("an administrator types: systemctl start nvidia-fabricmanager")),
        )
    return Verdict("pass", tr("the fabric manager runs"))


def pcie(value: Values, needs: Needs) -> Verdict:
    """A GPU in a bad slot or with a bad riser has fewer PCIe lanes, and moves its data at half the speed."""
    if absent := _absent(value):
        return absent

    def narrow(gpu: Gpu) -> str | None:
        width, most = gpu["pcie"]["width"], gpu["pcie"]["width_max"]
        return f"x{width} / x{most}" if width and most and width < most else None

    if found := _each(gpus_of(value), narrow):
        return Verdict(
            "warn",
            tr("fewer PCIe lanes than the GPU has: {found}", found=found),
            expected=tr("the full width (the generation may be lower while idle)"),
            found=found,
            why=tr("data moves to and from this GPU at a fraction of the speed"),
            fix=advice("gpu.pcie", "# " + tr("an administrator reseats the GPU or its riser")),
        )
    widths = sorted({f"x{gpu['pcie']['width']}" for gpu in gpus_of(value)})
    return Verdict("pass", tr("PCIe {widths}", widths=", ".join(widths)))


def persistence(value: Values, needs: Needs) -> Verdict:
    """Without persistence mode the driver unloads when nobody uses it: each start and each look takes seconds."""
    if absent := _absent(value):
        return absent
    off = [str(gpu["index"]) for gpu in gpus_of(value) if gpu["persistence"] == 0]
    if off:
        return Verdict(
            "warn",
            tr("persistence mode is off"),
            expected=tr("on"),
            found=tr("off on GPU {gpus}", gpus=", ".join(off)),
            why=tr("every start waits seconds for the driver"),
            fix=advice("gpu.persistence", "# " + tr("an administrator types: nvidia-smi -pm 1")),
        )
    return Verdict("pass", tr("persistence mode is on"))


def burn(value: Values, needs: Needs) -> Verdict:
    """A GPU that is slower than its peers, or computes wrong numbers under load, shows it only under load."""
    if value.get("absent"):
        return Verdict("skip", tr("no NVIDIA GPU on this machine"))
    if value.get("error"):
        return Verdict("unknown", tr("the load could not be put on the GPUs"), found=str(value["error"]))
    gpus = list(value["gpus"])
    if wrong := _verdict_of_each(
        "fail",
        gpus,
        lambda gpu: None if gpu["finite"] and gpu["same"] else tr("wrong numbers under load"),
        expected=tr("the same product each time"),
        why=tr("the model would learn from them"),
    ):
        return wrong
    speeds = sorted(float(gpu["tflops"]) for gpu in gpus)
    median = speeds[len(speeds) // 2]
    slow = _each(gpus, lambda gpu: f"{gpu['tflops']:.0f} TFLOP/s" if gpu["tflops"] < SLOWEST_SHARE * median else None)
    if slow:
        return _slow(slow, median)
    return Verdict("pass", tr("{median} TFLOP/s in bf16 a GPU", median=f"{median:.0f}"))


def compare_burns(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """A node that is slower under load than the median of all GPUs, though its own GPUs are alike."""
    verdicts = {node: burn(value, needs) for node, value in values.items()}
    bad = {node: verdict for node, verdict in verdicts.items() if verdict.status in ("fail", "unknown")}
    speeds = {node: [float(gpu["tflops"]) for gpu in value["gpus"]] for node, value in values.items() if value["gpus"]}
    together = sorted(speed for of_node in speeds.values() for speed in of_node)
    if not together:
        return bad or {"all": next(iter(verdicts.values()))}
    median = together[len(together) // 2]
    for node, of_node in speeds.items():
        if node not in bad and min(of_node) < SLOWEST_SHARE * median:
            bad[node] = _slow(tr("{speed} TFLOP/s", speed=f"{min(of_node):.0f}"), median)
    return bad or {"all": Verdict("pass", tr("{median} TFLOP/s in bf16 a GPU", median=f"{median:.0f}"))}


def _slow(found: str, median: float) -> Verdict:
    return Verdict(
        "fail",
        found,
        expected=tr("at least 85 % of {median} TFLOP/s", median=f"{median:.0f}"),
        found=found,
        why=tr("every step waits for it"),
        fix=advice("gpu.burn", "# " + tr("take the node out of the hostfile")),
    )


def dcgm(value: Values, needs: Needs) -> Verdict:
    """NVIDIA's own diagnosis finds faults of memory, PCIe and power that nothing else shows."""
    if not value["path"]:
        return Verdict("skip", tr("dcgmi is not installed"))
    document = value["document"]
    results = [
        (test["name"], result["status"])
        for category in document["DCGM Diagnostic"]["test_categories"]
        for test in category["tests"]
        for result in test["results"]
    ]
    failed = sorted({name for name, status in results if str(status).lower() == "fail"})
    if failed:
        return Verdict(
            "fail",
            tr("dcgmi: {tests} failed", tests=", ".join(failed)),
            expected=tr("every test passes"),
            found=str(value["output"])[-200:],
            why=tr("the hardware is at fault"),
            fix=advice("gpu.dcgm", "dcgmi diag -r 3"),
        )
    return Verdict("pass", tr("dcgmi: {count} results, none failed", count=len(results)))


CHECKS: tuple[Check, ...] = (
    Check("gpu.count", tr_later("the GPUs"), "gpu", count, observes="gpu", compare=compare_counts, stages="training"),
    Check("gpu.ecc", tr_later("memory errors of the GPUs"), "gpu", ecc, observes="gpu", stages="training"),
    Check("gpu.xid", tr_later("faults in the kernel's log"), "gpu", xid, stages="training"),
    Check("gpu.throttle", tr_later("GPUs that slow down"), "gpu", throttle, observes="gpu", stages="training"),
    Check(
        "gpu.clocks",
        tr_later("clocks and power limits"),
        "gpu",
        clocks,
        observes="gpu",
        compare=compare_clocks,
        stages="training",
    ),
    Check("gpu.temp_power", tr_later("the GPUs' temperature"), "gpu", temperature, observes="gpu", stages="training"),
    Check("gpu.busy", tr_later("GPU memory that others hold"), "gpu", busy, observes="gpu", stages="training"),
    Check("gpu.nvlink", tr_later("NVLink"), "gpu", nvlink, observes="gpu", stages="training"),
    Check("gpu.fabricmanager", tr_later("the fabric manager"), "gpu", fabric_manager, stages="training"),
    Check("gpu.pcie", tr_later("the GPUs' PCIe links"), "gpu", pcie, observes="gpu", stages="training"),
    Check("gpu.persistence", tr_later("persistence mode"), "gpu", persistence, observes="gpu", stages="training"),
    Check(
        "gpu.burn", tr_later("the GPUs under load"), "gpu", burn, tier="deep", compare=compare_burns, stages="training"
    ),
    Check("gpu.dcgm", tr_later("NVIDIA's diagnosis"), "gpu", dcgm, tier="deep", stages="training"),
)
