"""Checks of the file systems that a run writes to."""

from __future__ import annotations

from collections.abc import Mapping

from core.doctor.check import Check, Values
from core.doctor.finding import Verdict
from core.doctor.fix import advice
from core.doctor.fold import each_alone
from core.doctor.needs import Needs
from core.language import tr, tr_later
from core.quantities import size

FEWEST_FILES = 1000
SLOW_BYTES_PER_S = 50e6
SLOW_FILES_PER_S = 100.0
SMALLEST_CACHE = 1 << 30


def space(value: Values, needs: Needs) -> Verdict:
    """A full disk, or one without free inodes, ends a training in the middle of a checkpoint."""
    free, inodes, folder = int(value["free"]), value["inodes"], value["folder"]
    larger = advice("fs.space", "llm-wizard run ... --runs-dir /a/larger/disk")
    summary = tr("{free} free for {folder}", free=size(free), folder=folder)
    if not value["writable"]:
        return Verdict(
            "fail",
            tr("{folder} is not writable", folder=folder),
            expected=tr("a folder that can be written"),
            found=tr("no right to write"),
            why=tr("a run keeps everything there"),
            fix=larger,
        )
    few = inodes is not None and inodes < FEWEST_FILES
    if free < needs.disk or few:
        return Verdict(
            "fail",
            tr("{summary}, but only {count} more files", summary=summary, count=inodes) if few else summary,
            expected=tr("{size} and {count} files", size=size(needs.disk), count=FEWEST_FILES),
            found=tr(
                "{size}, {count} files", size=size(free), count=inodes if inodes is not None else tr("any number of")
            ),
            why=tr("the checkpoints of the pretraining would fill the disk"),
            fix=larger,
        )
    if free < 2 * needs.disk:
        return Verdict(
            "warn",
            summary,
            expected=tr("twice the {size} that the checkpoints take", size=size(needs.disk)),
            found=size(free),
            why=tr("the model folders and others' files need room too"),
            fix=larger,
        )
    small = [entry for entry in dict(value.get("others") or {}).values() if entry["free"] < SMALLEST_CACHE]
    if small:
        found = ", ".join(f"{entry['folder']}: {size(entry['free'])}" for entry in small)
        return Verdict(
            "warn",
            tr("{summary}; little room in {found}", summary=summary, found=found),
            expected=tr("{size} for temporary files and caches", size=size(SMALLEST_CACHE)),
            found=found,
            why=tr("compilers, downloads and logs write there"),
            fix=advice("fs.space", "export TMPDIR=/a/larger/disk HF_HOME=/a/larger/disk/huggingface"),
        )
    return Verdict("pass", summary)


def speed(value: Values, needs: Needs) -> Verdict:
    """A slow disk makes each checkpoint a pause of minutes, and loading of many small files slower than training."""
    write, read, files = float(value["write"]), float(value["read"]), float(value["files_per_s"])
    summary = tr(
        "writes {write}/s, reads {read}/s, {files} files/s ({kind})",
        write=size(write),
        read=size(read),
        files=f"{files:.0f}",
        kind=value["file_system"],
    )
    if write < SLOW_BYTES_PER_S or read < SLOW_BYTES_PER_S or files < SLOW_FILES_PER_S:
        return Verdict(
            "warn",
            summary,
            expected=tr("{size}/s and {files} files/s", size=size(SLOW_BYTES_PER_S), files=f"{SLOW_FILES_PER_S:.0f}"),
            found=summary,
            why=tr("every checkpoint stops the training while it is written"),
            fix=advice("fs.speed", "llm-wizard run ... --runs-dir /a/faster/disk"),
            stages=needs.training,
        )
    return Verdict("pass", summary)


def shared(value: Values, needs: Needs) -> Verdict:
    """Code, data and checkpoints must be the same files on every node: a folder that only looks alike loses half of a checkpoint."""
    for folder, entry in dict(value["folders"]).items():
        if not (entry["seen"] and entry["written"]):
            problem = entry["error"] or (
                tr("what this machine wrote is not seen there") if not entry["seen"] else tr("cannot be written there")
            )
            return Verdict(
                "fail",
                tr("{folder} is not shared: {problem}", folder=folder, problem=problem),
                expected=tr("the same folder on every node, writable"),
                found=problem,
                why=tr("each rank writes its part of a checkpoint there, and reads its code and data from it"),
                fix=advice("fs.shared", "llm-wizard run ... --runs-dir /a/shared/folder"),
            )
    if not value["folders"]:
        return Verdict("skip", tr("one machine: nothing has to be shared"))
    return Verdict("pass", tr("{folders} seen and written", folders=", ".join(value["folders"])))


def compare_shared(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """The nodes that do not see the head's folders."""
    return each_alone(values, needs, shared)


CHECKS: tuple[Check, ...] = (
    Check("fs.shared", tr_later("the shared folders"), "files", shared, scope="fleet", compare=compare_shared),
    Check("fs.space", tr_later("the disk"), "files", space),
    Check("fs.speed", tr_later("the speed of the disk"), "files", speed, tier="full"),
)
