"""Checks of DeepSpeed: that it imports, what it was built with, and how its launcher starts other nodes."""

from __future__ import annotations

from core.doctor import setup
from core.doctor.check import Check, Values
from core.doctor.finding import Status, Verdict
from core.doctor.fix import Command, Fix, advice
from core.doctor.needs import Needs
from core.language import tr, tr_later


def _needed(needs: Needs) -> bool:
    return "deepspeed" in needs.packages


def _reinstall(needs: Needs, fix_id: str) -> Fix:
    if needs.original:
        return setup.install_deepspeed(needs)
    version = "deepspeed" + needs.profile.requires["deepspeed"]
    install = (needs.python, "-m", "pip", "install", "--force-reinstall", "--no-deps", "--no-cache-dir", version)
    return Fix(fix_id, "rebuild", (Command(install),))


def importable(value: Values, needs: Needs) -> Verdict:
    """A DeepSpeed that does not import ends the training after the data is ready."""
    if value["imported"]:
        return Verdict("pass", tr("DeepSpeed {version} imports", version=value["version"]))
    if not _needed(needs):
        return Verdict("skip", tr("this plan does not use DeepSpeed"))
    return Verdict(
        "fail",
        tr("DeepSpeed does not import"),
        expected=tr("`import deepspeed` works"),
        found=str(value["error"]),
        why=tr("needed by {stages}", stages=", ".join(needs.packages["deepspeed"])),
        fix=_reinstall(needs, "ds.import"),
        stages=needs.packages["deepspeed"],
    )


def ops(value: Values, needs: Needs) -> Verdict:
    """ds_report as data: an op that the training uses must be built, or able to be built here."""
    if not _needed(needs):
        return Verdict("skip", tr("this plan does not use DeepSpeed"))
    if not value["imported"]:
        return Verdict("unknown", tr("DeepSpeed does not import, so its ops are not known"), found=str(value["error"]))
    installed, compatible = dict(value["installed"]), dict(value["compatible"])
    impossible = [name for name in needs.profile.ops if not installed.get(name) and not compatible.get(name)]
    later = [name for name in needs.profile.ops if not installed.get(name) and compatible.get(name)]
    built = ", ".join(sorted(name for name, there in installed.items() if there))
    status: Status
    if impossible:
        status, why = "fail", tr("the optimizer of the training needs it")
        summary = tr("DeepSpeed's {ops} is neither built nor can it be built here", ops=", ".join(impossible))
    elif later:
        status, why = "warn", tr("every node compiles it at its first start, and all ranks wait")
        summary = tr("DeepSpeed's {ops} will be built at the first step", ops=", ".join(later))
    else:
        return Verdict("pass", tr("built: {ops}", ops=built) if built else tr("no op of DeepSpeed is needed"))
    return Verdict(
        status,
        summary,
        expected=tr("{ops} built in", ops=", ".join(needs.profile.ops)),
        found=tr("built: {ops}", ops=built or tr("none")),
        why=why,
        fix=_reinstall(needs, "ds.ops"),
        stages=needs.packages["deepspeed"],
    )


def built_with(value: Values, needs: Needs) -> Verdict:
    """Ops that were built with another torch or CUDA fail on a symbol when they are first used."""
    if not value["present"]:
        return Verdict("skip", tr("DeepSpeed is not installed"))
    built, here = dict(value["torch_info"]), value["torch"]
    if not value["ops"]:
        return Verdict("pass", tr("no op is built in: they are built here when they are needed"))
    if here["version"] is None:
        return Verdict("skip", tr("torch is not installed"))
    torch = ".".join(str(here["version"]).split("+")[0].split(".")[:2])
    wrong = [
        f"{name} {then} -> {now}"
        for name, then, now in (("torch", built["version"], torch), ("CUDA", built["cuda_version"], here["cuda"]))
        if str(then) not in ("0.0", str(now))
    ]
    if wrong:
        return Verdict(
            "fail" if _needed(needs) else "warn",
            tr("DeepSpeed's ops were built with another version: {what}", what=", ".join(wrong)),
            expected=f"torch {torch}, CUDA {here['cuda']}",
            found=f"torch {built['version']}, CUDA {built['cuda_version']}",
            why=tr("DeepSpeed refuses them, or they fail on a symbol"),
            fix=_reinstall(needs, "ds.built_with"),
            stages=needs.packages.get("deepspeed"),
        )
    return Verdict(
        "pass", tr("ops built with torch {torch}, CUDA {cuda}", torch=built["version"], cuda=built["cuda_version"])
    )


def _launches_nothing(needs: Needs) -> Verdict | None:
    if needs.launcher == "deepspeed" or (needs.original and len(needs.nodes) > 1):
        return None
    return Verdict("skip", tr("this plan does not use DeepSpeed's launcher for other nodes"))


def launcher(value: Values, needs: Needs) -> Verdict:
    """DeepSpeed's own launcher starts other nodes through pdsh, and some settings of pdsh break its command line."""
    if skip := _launches_nothing(needs):
        return skip
    if not value["pdsh"]:
        return Verdict(
            "fail",
            tr("no pdsh"),
            expected=tr("pdsh on PATH"),
            found=tr("absent"),
            why=tr("DeepSpeed's launcher ends with “launcher 'pdsh' not installed”"),
            fix=advice("ds.launcher", "apt-get install pdsh", "llm-wizard run ... --set cluster.launcher=ssh"),
            stages=needs.training,
        )
    if value["ssh_arguments"] or value["rcmd"] not in ("", "ssh"):
        return Verdict(
            "warn",
            tr("pdsh is set up by variables"),
            expected=tr("PDSH_RCMD_TYPE empty or ssh, PDSH_SSH_ARGS_APPEND empty"),
            found=f"PDSH_RCMD_TYPE={value['rcmd']} PDSH_SSH_ARGS_APPEND={value['ssh_arguments']}",
            why=tr("DeepSpeed adds to them, and the command line comes out broken (DeepSpeed issue 4370)"),
            fix=advice("ds.launcher", "unset PDSH_SSH_ARGS_APPEND", "export PDSH_RCMD_TYPE=ssh"),
            stages=needs.training,
        )
    return Verdict("pass", str(value["pdsh"]))


def env_file(value: Values, needs: Needs) -> Verdict:
    """DeepSpeed's launcher hands on only NCCL, PYTHON, MV2 and UCX variables: the rest must stand in .deepspeed_env."""
    if skip := _launches_nothing(needs):
        return skip
    lost = [name for name in value["set_here"] if name not in value["named"] and not _secret(name)]
    if lost:
        return Verdict(
            "warn",
            tr("{count} variables that are set here do not reach the other nodes", count=len(lost)),
            expected=tr("their names in ~/.deepspeed_env"),
            found=", ".join(lost),
            why=tr("ranks of other nodes run with other libraries, caches or settings"),
            # A secret there would come into the command line of every node, where all users see it.
            fix=advice("ds.env_file", f"env | grep -E '^({'|'.join(lost)})=' >> ~/.deepspeed_env"),
            stages=needs.training,
        )
    return Verdict("pass", ", ".join(value["files"]) or tr("nothing is set that would be lost"))


def _secret(name: str) -> bool:
    return any(word in name for word in ("TOKEN", "KEY", "SECRET", "PASSWORD"))


CHECKS: tuple[Check, ...] = (
    Check(
        "ds.import",
        tr_later("DeepSpeed's import"),
        "deepspeed",
        importable,
        tier="full",
        fix="ds.import",
        stages="training",
    ),
    Check("ds.ops", tr_later("DeepSpeed's ops"), "deepspeed", ops, tier="full", fix="ds.ops", stages="training"),
    Check(
        "ds.built_with",
        tr_later("what DeepSpeed was built with"),
        "deepspeed",
        built_with,
        fix="ds.built_with",
        stages="training",
    ),
    Check("ds.launcher", tr_later("DeepSpeed's launcher"), "deepspeed", launcher, scope="head", stages="training"),
    Check("ds.env_file", tr_later("variables for other nodes"), "deepspeed", env_file, scope="head", stages="training"),
)
