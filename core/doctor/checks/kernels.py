"""Checks of what the original pipeline compiles: apex, flash-attn, Megatron's helpers and its fused kernels."""

from __future__ import annotations

from collections.abc import Mapping

from core.doctor import setup
from core.doctor.check import Check, Values
from core.doctor.finding import Verdict
from core.doctor.fix import Command, Fix, advice
from core.doctor.fold import each_alone
from core.doctor.needs import Needs
from core.language import tr, tr_later

STALE_LOCK_S = 300


def _not_used(needs: Needs) -> Verdict | None:
    return None if needs.megatron else Verdict("skip", tr("this plan runs no Megatron-DeepSpeed"))


def apex(value: Values, needs: Needs) -> Verdict:
    """An apex that pip built without its options has no extensions: Megatron stops at its first import of one."""
    if skip := _not_used(needs):
        return skip
    modules = dict(value["modules"])
    missing = [name for name, module in modules.items() if not module["fitting"]]
    other = [path for name in missing for path in modules[name]["files"]]
    if not needs.original:
        return _apex_or_stand_ins(value["apex"], missing, needs)
    if value["apex"] is None:
        summary = tr("apex is not installed")
    elif other:
        summary = tr(
            "apex is built for another Python: {files}", files=", ".join(path.rsplit("/", 1)[-1] for path in other)
        )
    elif missing:
        summary = tr("apex has no {modules}", modules=", ".join(missing))
    else:
        return Verdict("pass", tr("apex {version} with {modules}", version=value["apex"], modules=", ".join(modules)))
    return Verdict(
        "fail",
        summary,
        expected=", ".join(f"{name}{value['suffix']}" for name in modules),
        found=", ".join(other) or tr("absent"),
        why=tr("Megatron imports them at its start; pip before 23.1 passes over the options that build them"),
        fix=setup.install_apex(needs),
        stages=("pretrain",),
    )


def _apex_or_stand_ins(version: str | None, missing: list[str], needs: Needs) -> Verdict:
    """What is installed is imported before a stand-in, also where it cannot work."""
    if version is None:
        return Verdict("skip", tr("stand-ins made of PyTorch take the place of apex"))
    if missing:
        return Verdict(
            "fail",
            tr("apex {version} is installed without {modules}", version=version, modules=", ".join(missing)),
            expected=tr("apex with its extensions, or none"),
            found=tr("absent: {names}", names=", ".join(missing)),
            why=tr("an installed apex is imported before its stand-in, and ends Megatron's start"),
            fix=Fix("apex.so", "destructive", (Command((needs.python, "-m", "pip", "uninstall", "-y", "apex")),)),
            stages=("pretrain",),
        )
    return Verdict("pass", tr("apex {version}", version=version))


def flash(value: Values, needs: Needs) -> Verdict:
    """flash-attn's extension belongs to one torch, one CUDA and one Python; with another it fails on a symbol."""
    module = value["modules"]["flash_attn_2_cuda"]
    if needs.megatron and not needs.flash:
        return Verdict("skip", tr("Megatron is not asked for flash-attn"))
    if value["version"] is None and not needs.megatron:
        return Verdict("skip", tr("flash-attn is not installed; the modern profile does without"))
    if needs.original:
        repair = setup.install_flash(needs)
    elif needs.megatron and value["version"] is None:
        repair = advice("flash.so", "llm-wizard run ... --set megatron.flash_attention=false")
    else:
        repair = _rebuild_flash(needs)
    expected = f"flash_attn_2_cuda{value['suffix']}"
    if value["version"] is None or not module["fitting"]:
        return Verdict(
            "fail" if needs.megatron else "warn",
            tr("flash-attn is not installed")
            if value["version"] is None
            else tr("flash-attn is built for another Python"),
            expected=expected,
            found=", ".join(module["files"]) or tr("absent"),
            why=tr("the presets ask for --use-flash-attn-v2"),
            fix=repair,
            stages=("pretrain",),
        )
    imported = value["imported"]
    if imported is not None and not imported["ok"]:
        symbol = "undefined symbol" in str(imported["error"])
        return Verdict(
            "fail" if needs.megatron else "warn",
            tr("flash-attn was built for another torch or ABI") if symbol else tr("flash-attn does not import"),
            expected=tr("`import flash_attn_2_cuda` works"),
            found=str(imported["error"]),
            why=tr("the training ends at its first layer"),
            fix=repair,
            stages=("pretrain",),
        )
    return Verdict("pass", tr("flash-attn {version}", version=value["version"]))


def _rebuild_flash(needs: Needs) -> Fix:
    install = (
        "-m",
        "pip",
        "install",
        "--force-reinstall",
        "--no-deps",
        "--no-build-isolation",
        "--no-cache-dir",
        "flash-attn",
    )
    return Fix("flash.so", "rebuild", (Command((needs.python, *install)),))


def megatron(value: Values, needs: Needs) -> Verdict:
    """Another copy of `megatron` that is installed (megatron-core, an old egg) is imported instead of the checkout."""
    if skip := _not_used(needs):
        return skip
    tag = needs.profile.tags["Megatron-DeepSpeed"]
    checkout, wins = str(value["checkout"]), value["wins"]
    if not value["present"]:
        return Verdict(
            "fail",
            tr("no Megatron-DeepSpeed in {folder}", folder=checkout),
            expected=tr("a checkout at {tag}", tag=tag),
            found=tr("absent"),
            why=tr("the pretraining is its pretrain_gpt.py"),
            fix=setup.install_megatron(needs),
            stages=("pretrain",),
        )
    other = _other_copy(value)
    if str(wins) != f"{checkout}/megatron":
        return Verdict(
            "fail",
            tr("{other} hides the checkout", other=other or tr("another copy")),
            expected=tr("`import megatron` finds {folder}", folder=checkout),
            found=str(wins),
            why=tr("pretraining and preprocess_data.py import another library's code"),
            fix=_uninstall_core(needs) if value["core"] else advice("megatron.import", f"mv {wins} {wins}.bak"),
            stages=("pretrain",),
        )
    if value["tag"] != tag:
        return Verdict(
            "fail",
            tr("Megatron-DeepSpeed is at {found}", found=value["tag"] or str(value["commit"])[:12]),
            expected=tag,
            found=str(value["tag"] or value["commit"]),
            why=tr("options and log lines differ between versions"),
            fix=Fix("setup.megatron", "rebuild", setup.checkout(needs, "Megatron-DeepSpeed")),
            stages=("pretrain",),
        )
    if other:
        return Verdict(
            "warn",
            tr("{other} would hide the checkout from programs that are started by hand", other=other),
            expected=tr("`import megatron` finds {folder}", folder=checkout),
            found=str(value["installed"] or value["core"]),
            why=tr(
                "a run puts the checkout first on PYTHONPATH; without that, preprocess_data.py imports another library's code"
            ),
            fix=_uninstall_core(needs) if value["core"] else advice("megatron.import", f"export PYTHONPATH={checkout}"),
            stages=("pretrain",),
        )
    if value["changes"]:
        return Verdict(
            "warn",
            tr("the Megatron-DeepSpeed checkout has changes of its own"),
            expected=tr("the tag as it is"),
            found=str(value["changes"])[:200],
            why=tr("results cannot be compared with the tag's"),
            fix=advice("megatron.import", f"git -C {checkout} diff"),
            stages=("pretrain",),
        )
    return Verdict("pass", tr("Megatron-DeepSpeed at {tag}", tag=tag))


OWN_INSTALLATION = "0.2.0"
"""The version of the megatron-core that `python setup.py install` makes of the checkout itself, as the original's README has it."""


def _other_copy(value: Values) -> str:
    """The installed `megatron` that is neither the checkout nor made of it, in words; empty for none."""
    core, installed = value["core"], value["installed"]
    if core == OWN_INSTALLATION or (installed or "").startswith(f"{value['checkout']}/"):
        return ""
    if core:
        return tr("megatron-core {version}", version=core)
    return tr("another `megatron` in {folder}", folder=installed) if installed else ""


def _uninstall_core(needs: Needs) -> Fix:
    uninstall = (needs.python, "-m", "pip", "uninstall", "-y", "megatron-core")
    return Fix("megatron.import", "destructive", (Command(uninstall),))


def start(value: Values, needs: Needs) -> Verdict:
    """Megatron imports vision models, apex and DeepSpeed's compression before it reads an argument: one missing name ends it there."""
    if skip := _not_used(needs):
        return skip
    if not value["checkout"]:
        return Verdict("skip", tr("this plan runs no Megatron-DeepSpeed"))
    if value["ok"]:
        names = ", ".join(value["stand_ins"])
        return Verdict(
            "pass",
            tr("it imports; stand-ins for {names}", names=names) if names else tr("it imports, without stand-ins"),
        )
    return Verdict(
        "fail",
        tr("Megatron-DeepSpeed does not import"),
        expected=tr("`import megatron.training` works"),
        found=str(value["error"]),
        why=tr("every rank ends before the training begins"),
        fix=setup.install_requirements(needs)
        if "No module named" in str(value["error"])
        else advice("megatron.start", "docs/megatron.md"),
        stages=("pretrain",),
    )


def helpers(value: Values, needs: Needs) -> Verdict:
    """“cannot import name 'helpers'”: the Makefile asked the python3-config of another Python for the file's name."""
    if skip := _not_used(needs):
        return skip
    if not value["source"]:
        return Verdict("skip", tr("no Megatron-DeepSpeed in {folder}", folder=value["checkout"]))
    expected = f"helpers{value['suffix']}"
    if value["built"] is None and not value["others"]:
        return Verdict(
            "warn",
            tr("Megatron's helpers are not built"),
            expected=expected,
            found=tr("absent"),
            why=tr(
                "Megatron builds them at its first start, for whichever Python the first python3-config on PATH belongs to"
            ),
            fix=setup.build_helpers(needs),
            stages=("pretrain",),
        )
    if value["built"] is None:
        found, summary = ", ".join(value["others"]), tr("Megatron's helpers are built for another Python")
    elif not value["newer"]:
        found, summary = tr("older than helpers.cpp"), tr("Megatron's helpers are older than their source")
    elif value["error"]:
        found, summary = str(value["error"]), tr("Megatron's helpers do not import")
    else:
        return Verdict("pass", expected)
    return Verdict(
        "fail",
        summary,
        expected=expected,
        found=found or tr("absent"),
        why=tr("the data set is indexed by them: “cannot import name 'helpers'”"),
        fix=setup.build_helpers(needs),
        stages=("pretrain",),
    )


def fused_kernels(value: Values, needs: Needs) -> Verdict:
    """A build folder of other hardware or another CUDA, or a lock left in it, holds every rank at “compiling and loading fused kernels”."""
    if skip := _not_used(needs):
        return skip
    if not value["present"]:
        return Verdict("skip", tr("no Megatron-DeepSpeed in {folder}", folder=value["checkout"]))
    if not needs.fused_kernels:
        return Verdict("skip", tr("Megatron is not asked for its fused kernels"))
    if not needs.original:
        return Verdict(
            "fail",
            tr("Megatron's fused kernels do not go with the stand-ins for apex"),
            expected="megatron.fused_kernels: false",
            found="megatron.fused_kernels: true",
            why=tr(
                "apex's gradient accumulation has no stand-in, and CUDA 13 no longer compiles for the GPUs that the kernels name"
            ),
            fix=advice("megatron.fused_kernels", "llm-wizard run ... --set megatron.fused_kernels=false"),
            stages=("pretrain",),
        )
    if not value["built"]:
        return Verdict("pass", tr("not built yet: the first start builds them"))
    fix = setup.build_kernels(needs)
    why = tr("every rank waits at “compiling and loading fused kernels”")
    age = value["lock_age"]
    if age is not None and int(age) > STALE_LOCK_S and not int(value["compiling"]):
        return Verdict(
            "fail",
            tr("a build of the fused kernels left its lock {minutes} min ago", minutes=int(age) // 60),
            expected=tr("no lock without a compiler at work"),
            found=f"{value['build']}/lock",
            why=why,
            fix=fix,
            stages=("pretrain",),
        )
    fingerprint, here = value["fingerprint"], dict(value["here"])
    if fingerprint is None:
        return Verdict(
            "warn",
            tr("it is not known with what the fused kernels were built"),
            expected=tr("a fingerprint of this tool"),
            found=", ".join(value["libraries"]) or tr("an empty folder"),
            why=tr("built with another CUDA or for other GPUs, they hang at the start"),
            fix=fix,
            stages=("pretrain",),
        )
    changed = sorted(name for name in here if fingerprint.get(name) != here[name])
    if changed:
        return Verdict(
            "fail",
            tr("the fused kernels were built with another {what}", what=", ".join(changed)),
            expected=", ".join(f"{name} {here[name]}" for name in changed if name != "sources")
            or tr("the present sources"),
            found=", ".join(f"{name} {fingerprint.get(name)}" for name in changed if name != "sources")
            or tr("other sources"),
            why=why,
            fix=fix,
            stages=("pretrain",),
        )
    return Verdict("pass", tr("built here: {libraries}", libraries=", ".join(value["libraries"])))


def compare_fused_kernels(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """One build folder is shared: it must fit every node."""
    return each_alone(values, needs, fused_kernels)


CHECKS: tuple[Check, ...] = (
    Check("apex.so", tr_later("apex's extensions"), "kernels", apex, fix="setup.apex", stages="training"),
    Check("flash.so", tr_later("flash-attn's extension"), "kernels", flash, fix="setup.flash", stages="training"),
    Check(
        "megatron.import",
        tr_later("the Megatron-DeepSpeed checkout"),
        "kernels",
        megatron,
        fix="setup.megatron",
        stages="training",
    ),
    Check(
        "megatron.start",
        tr_later("the import of Megatron-DeepSpeed"),
        "kernels",
        start,
        tier="full",
        fix="setup.requirements",
        stages="training",
    ),
    Check(
        "megatron.helpers",
        tr_later("Megatron's data helpers"),
        "kernels",
        helpers,
        fix="setup.helpers",
        stages="training",
    ),
    Check(
        "megatron.fused_kernels",
        tr_later("Megatron's fused kernels"),
        "kernels",
        fused_kernels,
        scope="fleet",
        compare=compare_fused_kernels,
        fix="megatron.fused_kernels",
        stages="training",
    ),
)
