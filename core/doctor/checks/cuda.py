"""Checks of the driver, the CUDA toolkit and what torch makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.doctor import setup
from core.doctor.check import Check, Values
from core.doctor.finding import Verdict
from core.doctor.fix import Command, Fix, advice
from core.doctor.fold import differences
from core.doctor.needs import Needs
from core.doctor.profiles import version_of
from core.language import tr, tr_later

OLDEST_DRIVER = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
"""The oldest Linux driver for each CUDA major: NVIDIA's "CUDA Compatibility", minor version compatibility."""
LIBRARY_MISMATCH = 18
"""NVML_ERROR_LIB_RM_VERSION_MISMATCH."""


def driver(value: Values, needs: Needs) -> Verdict:
    """A driver older than torch's CUDA sees no GPU; after an upgrade the loaded module and the libraries differ until a reboot."""
    gpus, module = int(value["pci"]), value["kernel_module"]
    if not gpus and module is None and value["library"] is None:
        if needs.gpus:
            return Verdict(
                "fail",
                tr("no NVIDIA GPU and no driver"),
                expected=tr("{count} GPUs", count=needs.gpus),
                found=str(value["detail"]),
                why=tr("the plan trains on GPUs"),
                stages=needs.training,
            )
        return Verdict("skip", tr("no NVIDIA GPU on this machine"))
    if value["library"] is None or value["init"]:
        mismatch = value["library"] is not None and int(value["init"]) == LIBRARY_MISMATCH
        return Verdict(
            "fail",
            tr("the driver's module and its libraries are of different versions")
            if mismatch
            else tr("{count} NVIDIA GPUs, but the driver does not answer", count=gpus),
            expected=tr("a driver that `nvidia-smi` can ask"),
            found=f"{value['detail']}; {tr('kernel module')} {module or tr('not loaded')}",
            why=tr("no GPU can be used until they are the same"),
            fix=advice(
                "cuda.driver", "nvidia-smi", "# " + tr("an administrator reboots the machine, or reloads the module")
            ),
            stages=needs.training,
        )
    if module and value["driver"] and module != "unreadable" and module != value["driver"]:
        return Verdict(
            "fail",
            tr("kernel module {module}, libraries {driver}", module=module, driver=value["driver"]),
            expected=tr("the same version"),
            found=f"{module} / {value['driver']}",
            why=tr("new processes cannot open the GPUs"),
            fix=advice("cuda.driver", "# " + tr("an administrator reboots the machine, or reloads the module")),
            stages=needs.training,
        )
    summary = tr("driver {driver}, for CUDA up to {cuda}", driver=value["driver"], cuda=value["cuda_driver"])
    wanted = needs.profile.cuda or value["torch_cuda"]
    if wanted:
        oldest = OLDEST_DRIVER[version_of(wanted)[0]]
        if version_of(value["driver"])[:2] < oldest:
            return Verdict(
                "fail",
                tr("driver {driver} is too old for CUDA {cuda}", driver=value["driver"], cuda=wanted),
                expected=tr("driver {version} or later", version=".".join(map(str, oldest))),
                found=value["driver"],
                why=tr("torch of this profile sees no GPU with it"),
                stages=needs.training,
            )
    return Verdict("pass", summary)


def nvcc_vs_torch(value: Values, needs: Needs) -> Verdict:
    """apex, flash-attn and DeepSpeed's ops are compiled by nvcc and loaded by torch: another CUDA stops or breaks the build."""
    torch, found = value["torch"], list(value["nvcc"])
    cuda = torch["cuda"] or needs.profile.cuda
    if cuda is None:
        what = tr("torch {version} is a CPU build", version=torch["version"]) if torch["version"] else tr("no torch")
        return Verdict("skip", tr("{what}; nothing is compiled for GPUs", what=what))
    needed = needs.original or (needs.builds_kernels and needs.gpus > 0)
    if not found:
        if not needed:
            return Verdict("skip", tr("no nvcc; this plan compiles nothing for GPUs"))
        return Verdict(
            "fail",
            tr("no nvcc"),
            expected=tr("nvcc of CUDA {cuda}", cuda=cuda),
            found=tr("none on PATH, none in CUDA_HOME"),
            why=tr("DeepSpeed's ops, apex and flash-attn are compiled on this machine"),
            fix=_toolkit(needs, cuda),
            stages=needs.training,
        )
    first = found[0]
    summary = tr("nvcc {nvcc}, torch's CUDA {cuda}", nvcc=first["version"], cuda=cuda)
    if str(first["version"]).startswith("error"):
        return Verdict(
            "fail" if needed else "warn",
            tr("{path} does not run", path=first["path"]),
            expected=tr("nvcc of CUDA {cuda}", cuda=cuda),
            found=first["version"],
            why=tr("whatever is compiled for GPUs stops here"),
            fix=_toolkit(needs, cuda),
        )
    have, want = version_of(first["version"]), version_of(cuda)
    if have[:2] == want[:2]:
        return Verdict("pass", f"{summary} ({first['path']})")
    fitting = next((nvcc for nvcc in found if nvcc["version"] == cuda), None)
    home = str(Path(fitting["path"]).parent.parent) if fitting else ""
    major = have[0] != want[0]
    return Verdict(
        "fail" if needed and (major or needs.original) else "warn",
        summary,
        expected=tr("nvcc of CUDA {cuda}", cuda=cuda),
        found=", ".join(f"{nvcc['path']} {nvcc['version']}" for nvcc in found),
        why=tr("apex refuses to build with another minor version, everything does with another major one"),
        fix=advice("cuda.nvcc_vs_torch", f"export CUDA_HOME={home}", f"export PATH={home}/bin:$PATH")
        if fitting
        else _toolkit(needs, cuda),
        stages=needs.training,
    )


def _toolkit(needs: Needs, cuda: str) -> Fix:
    if needs.profile.conda:
        return setup.install_toolkit(needs)
    return advice("cuda.nvcc_vs_torch", f"conda install -c nvidia cuda-toolkit={cuda} -y")


def torch_sees_gpu(value: Values, needs: Needs) -> Verdict:
    """torch must import, see every GPU that the plan uses, and be able to put a number on each."""
    if not needs.torch or not value["asked"]:
        return Verdict("skip", tr("no stage of this plan uses torch"))
    stages = needs.packages["torch"]
    if not value["imported"]:
        if needs.original:
            repair = setup.install_torch(needs)
        else:
            install = (needs.python, "-m", "pip", "install", "--force-reinstall", "torch")
            repair = Fix("cuda.torch_sees_gpu", "rebuild", (Command(install),))
        return Verdict(
            "fail",
            tr("torch does not import"),
            expected=tr("`import torch` works"),
            found=str(value["error"]),
            why=tr("needed by {stages}", stages=", ".join(stages)),
            fix=repair,
            stages=stages,
        )
    devices = list(value["devices"])
    summary = tr(
        "torch {version}, CUDA {cuda}, GPUs: {count}",
        version=value["version"],
        cuda=value["cuda"] or tr("none"),
        count=len(devices),
    )
    if len(devices) < needs.gpus:
        return Verdict(
            "fail",
            tr("{summary}; the plan trains on {count}", summary=summary, count=needs.gpus),
            expected=tr("{count} GPUs for torch", count=needs.gpus),
            found=tr(
                "{count} ({names}), torch built for CUDA {cuda}",
                count=len(devices),
                names=", ".join(devices) or tr("none"),
                cuda=value["cuda"] or tr("none"),
            ),
            why=tr("a torch without CUDA, or one newer than the driver, sees no GPU"),
            fix=advice("cuda.torch_sees_gpu", "nvidia-smi", f"{needs.python} -m torch.utils.collect_env"),
            stages=stages,
        )
    if needs.bf16 and value["bf16"] is False:
        return Verdict(
            "fail",
            tr("{summary}, without bf16", summary=summary),
            expected=tr("GPUs with bf16 (compute capability 8.0 or later)"),
            found=", ".join(devices),
            why=tr("the plan trains in bf16"),
            fix=advice("cuda.torch_sees_gpu", "llm-wizard run ... --set pretrain.precision=fp32"),
            stages=needs.training,
        )
    unusable = dict(value.get("unusable") or {})
    if unusable:
        return Verdict(
            "fail",
            tr("{summary}, but not all can be used", summary=summary),
            expected=tr("every GPU takes a number"),
            found="; ".join(f"GPU {index}: {error}" for index, error in sorted(unusable.items())),
            why=tr("a rank on it fails at its first allocation"),
            fix=advice("cuda.torch_sees_gpu", "nvidia-smi"),
            stages=needs.training,
        )
    return Verdict("pass", summary)


def arch(value: Values, needs: Needs) -> Verdict:
    """A torch without code for this generation of GPUs fails with “no kernel image is available” at its first operation."""
    if not value["asked"] or not value["imported"]:
        return Verdict("skip", tr("torch was not imported"))
    if not value["capabilities"]:
        return Verdict("skip", tr("torch sees no GPU"))
    archs = [str(name) for name in value["archs"]]
    binary = {int(name.removeprefix("sm_").rstrip("af")) for name in archs if name.startswith("sm_")}
    intermediate = {int(name.removeprefix("compute_").rstrip("af")) for name in archs if name.startswith("compute_")}
    without = []
    for capability in sorted(set(value["capabilities"])):
        major, minor = (int(part) for part in capability.split("."))
        number = major * 10 + minor
        # Machine code runs on the same major with a minor as high or higher; intermediate code on everything later.
        same_major = any(sm // 10 == major and sm <= number for sm in binary)
        if not same_major and not any(ptx <= number for ptx in intermediate):
            without.append(capability)
    if without:
        return Verdict(
            "fail" if needs.gpus else "warn",
            tr("this torch has no code for compute capability {without}", without=", ".join(without)),
            expected=tr("a torch built for it"),
            found=" ".join(archs),
            why=tr("its first operation on a GPU fails with “no kernel image is available”"),
            fix=advice("cuda.arch", f"{needs.python} -m pip install --upgrade torch"),
            stages=needs.training,
        )
    return Verdict("pass", tr("compute capability {have}", have=", ".join(sorted(set(value["capabilities"])))))


def nccl(value: Values, needs: Needs) -> Verdict:
    """Another NCCL than torch's own, put first by LD_PRELOAD or LD_LIBRARY_PATH, hangs or crashes in the first collective."""
    if not value["torch"] or not value["torch_cuda"]:
        return Verdict("skip", tr("torch is absent or a CPU build"))
    own = ", ".join(f"{name} {version}" for name, version in value["wheels"].items()) or tr("inside torch")
    preloaded = "nccl" in str(value["preload"])
    copies = list(value["copies"])
    if preloaded or copies:
        return Verdict(
            "warn",
            tr("another NCCL stands before torch's own"),
            expected=tr("only torch's own ({own})", own=own),
            found=f"LD_PRELOAD={value['preload']}" if preloaded else ", ".join(copies),
            why=tr("ranks with different NCCL versions hang in their first collective"),
            fix=advice("cuda.nccl_version", "unset LD_PRELOAD" if preloaded else "unset LD_LIBRARY_PATH"),
            stages=needs.training,
        )
    return Verdict("pass", tr("NCCL: {own}", own=own))


def compare_nccl(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """Nodes must speak the same NCCL."""
    bad = {node: verdict for node, value in values.items() if (verdict := nccl(value, needs)).status == "warn"}
    texts = {node: ", ".join(f"{k} {v}" for k, v in value["wheels"].items()) or "-" for node, value in values.items()}
    if set(texts.values()) == {"-"} and not bad:
        return {"all": nccl(next(iter(values.values())), needs)}
    odd = differences(
        texts,
        expected=tr("the same NCCL on every node"),
        why=tr("ranks with different NCCL versions hang in their first collective"),
    )
    return bad or odd


CHECKS: tuple[Check, ...] = (
    Check("cuda.driver", tr_later("the NVIDIA driver"), "cuda", driver, observes="gpu", stages="training"),
    Check(
        "cuda.nvcc_vs_torch",
        tr_later("nvcc and torch's CUDA"),
        "cuda",
        nvcc_vs_torch,
        fix="setup.cuda",
        stages="training",
    ),
    Check(
        "cuda.torch_sees_gpu",
        tr_later("torch and the GPUs"),
        "cuda",
        torch_sees_gpu,
        tier="full",
        fix="cuda.torch_sees_gpu",
        stages="training",
    ),
    Check(
        "cuda.arch",
        tr_later("torch's code for these GPUs"),
        "cuda",
        arch,
        tier="full",
        observes="cuda.torch_sees_gpu",
        stages="training",
    ),
    Check("cuda.nccl_version", tr_later("NCCL"), "cuda", nccl, scope="fleet", compare=compare_nccl, stages="training"),
)
