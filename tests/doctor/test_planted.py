"""Faults planted in a real environment: a folder of packages, tools on PATH, a checkout, a home. The probe is the real one.

The environment is the original pipeline's as far as it can be without its packages: their metadata, their version files, their
compiled modules (empty, but with the right names), tools that print their versions. Healthy, it gives no warning; each fault is
found by its own check and by no other of its group. tests/doctor/test_gpus.py plants another 17 in a node with eight GPUs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from doctor.observations import ORIGINAL, PINNED

from core.cli import main
from core.doctor.apply import apply
from core.doctor.checks import BY_ID, CHECKS
from core.doctor.examine import PROBE, examine
from core.doctor.finding import Finding
from core.doctor.needs import Needs
from core.doctor.probe import FINGERPRINT

SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
OTHER_SUFFIX = ".cpython-36m-x86_64-linux-gnu.so"
TAG = "ucllm_nedo_v20240415.1.0"


class Environment:
    """`python` starts this Python with `site` first on its path; `bin` stands first on PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.site, self.bin, self.home = folder / "site", folder / "env" / "bin", folder / "home"
        self.root = folder / "train"
        self.checkout = self.root / "Megatron-DeepSpeed"
        for name, value in {
            "PYTHONPATH": str(self.site),
            "HOME": str(self.home),
            "TORCH_EXTENSIONS_DIR": str(folder / "cache"),
            "HF_HOME": str(self.home / "hf"),
            "WANDB_API_KEY": "x" * 40,
            "HF_TOKEN": "hf_x",
            "CXX": "c++",
            "CC": "cc",
            "LD_LIBRARY_PATH": f"{sys.prefix}/lib",
        }.items():
            monkeypatch.setenv(name, value)
        for name in (
            "LD_PRELOAD",
            "CUDA_HOME",
            "NCCL_SOCKET_IFNAME",
            "GLOO_SOCKET_IFNAME",
            "SLURM_JOB_ID",
        ):
            monkeypatch.delenv(name, raising=False)

    def fill(self) -> None:
        """Make all of it, healthy."""
        for path in (self.site, self.bin, self.home, self.folder / "runs", self.folder / "cache"):
            path.mkdir(parents=True)
        # What is found through PATH is ours; python3-config of this Python would need its headers' package.
        self.tool("python", f'exec {sys.executable} "$@"')
        self.tool("nvcc", 'echo "Cuda compilation tools, release 11.8, V11.8.89"')
        self.tool("cc", 'echo "gcc (GCC) 11.4.0"')
        self.tool("c++", 'echo "g++ (GCC) 11.4.0"')
        self.tool("ninja", "echo 1.11.1")
        self.tool("python3-config", f"echo {SUFFIX}")
        self.torch("2.2.0", "11.8")
        for name, version in PINNED.items():
            self.package(name, version)
        (
            self.module("apex_C"),
            self.module("amp_C"),
            self.module("fused_layer_norm_cuda"),
            self.module("flash_attn_2_cuda"),
        )
        headers = self.site / "pybind11" / "include" / "pybind11"
        headers.mkdir(parents=True)
        (headers / "pybind11.h").touch()
        self.deepspeed("2.2", "11.8")
        self.megatron()

    def tool(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def package(self, name: str, version: str | None, requires: str = "") -> None:
        """Metadata of an installed package; None takes it away."""
        for old in self.site.glob(f"{name.replace('-', '_')}-*.dist-info"):
            shutil.rmtree(old)
        if version is not None:
            info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            needed = f"Requires-Dist: {requires}\n" if requires else ""
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}")

    def torch(self, version: str, cuda: str, code: str = "") -> None:
        (self.site / "torch").mkdir(exist_ok=True)
        (self.site / "torch" / "__init__.py").write_text(code)
        (self.site / "torch" / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = '{cuda}'\n")

    def module(self, name: str, suffix: str = SUFFIX) -> None:
        for old in self.site.glob(f"{name}*.so"):
            old.unlink()
        (self.site / f"{name}{suffix}").touch()

    def deepspeed(self, torch: str, cuda: str, code: str = "") -> None:
        folder = self.site / "deepspeed"
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text(code or "__version__ = '0.12.4'")
        record = {"version": torch, "cuda_version": cuda, "bf16_support": False}
        (folder / "git_version_info_installed.py").write_text(
            f"version='0.12.4'\ninstalled_ops={{'fused_adam': True}}\ntorch_info={record!r}\n"
        )

    def megatron(self) -> None:
        data, kernels = self.checkout / "megatron" / "data", self.checkout / "megatron" / "fused_kernels"
        data.mkdir(parents=True)
        (kernels / "build").mkdir(parents=True)
        (self.checkout / "megatron" / "__init__.py").touch()
        (data / "helpers.cpp").write_text("// C++\n")
        (kernels / "softmax.cu").write_text("// CUDA\n")
        git = [
            "git",
            "-C",
            str(self.checkout),
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "-c",
            "commit.gpgsign=false",
        ]
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"], ["tag", TAG]):
            subprocess.run([*git, *words], check=True)
        os.utime(data / "helpers.cpp", (1, 1))
        shutil.copy(_extension(), data / f"helpers{SUFFIX}")
        (kernels / "build" / "softmax.so").touch()
        self.fingerprint()

    def fingerprint(self, **changes: str) -> None:
        """What the kernels were built with: this environment, as the probe sees it under its Python, or with changes."""
        kernels = self.checkout / "megatron" / "fused_kernels"
        record = kernels / "build" / FINGERPRINT
        if changes:
            record.write_text(json.dumps(json.loads(record.read_text()) | changes))
            return
        wanted = json.dumps({"observations": [], "remember_kernels": str(self.checkout)})
        environment = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        subprocess.run([str(self.bin / "python"), str(PROBE), wanted], env=environment, check=True)

    @property
    def needs(self) -> Needs:
        # The profile's Python is 3.9; everything else of it holds for the one that the tests run under, too.
        profile = replace(ORIGINAL.profile, python=sys.version_info[:2])
        return replace(
            ORIGINAL,
            profile=profile,
            python=str(self.bin / "python"),
            root=str(self.root),
            folder=str(self.folder / "runs"),
            gpus=0,
            memory=0,
            open_files=256,
            shared_memory=0,
            disk=1,
            hub=True,
            wandb=True,
        )

    def look(self, group: str, needs: Needs | None = None, full: bool = False) -> dict[str, Finding]:
        """The findings of a group; what takes seconds only where it is asked for."""
        tiers = ("quick", "full") if full else ("quick",)
        chosen = [check for check in CHECKS if check.group == group and check.tier in tiers and check.id != "fs.speed"]
        return {finding.id: finding for finding in examine(needs or self.needs, chosen, "here", imports=full)}


_built: list[Path] = []


def _extension() -> Path:
    """An extension module `helpers` of this very Python, compiled once."""
    if not _built:
        folder = Path(tempfile.mkdtemp())
        (folder / "helpers.c").write_text(
            "#include <Python.h>\n"
            'static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "helpers"};\n'
            "PyMODINIT_FUNC PyInit_helpers(void) { return PyModule_Create(&module); }\n"
        )
        include = sysconfig.get_paths()["include"]
        argv = ["cc", "-shared", "-fPIC", f"-I{include}", "-o", str(folder / "helpers.so"), str(folder / "helpers.c")]
        subprocess.run(argv, check=True)
        _built.append(folder / "helpers.so")
    return _built[0]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    _extension()  # before our own cc stands on PATH
    folder = tmp_path_factory.mktemp("template") / "environment"
    with pytest.MonkeyPatch.context() as monkeypatch:
        Environment(folder, monkeypatch).fill()
    return folder


@pytest.fixture
def environment(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    shutil.copytree(template, tmp_path / "environment")
    return Environment(tmp_path / "environment", monkeypatch)


GROUPS = ("python", "cuda", "build", "deepspeed", "kernels", "network", "files", "limits", "credentials")


@pytest.mark.parametrize("group", GROUPS)
def test_a_healthy_environment_gives_no_warning(environment: Environment, group: str) -> None:
    findings = environment.look(group)
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        findings.pop("build.headers", None)
    bad = {finding.id: finding.verdict for finding in findings.values() if finding.status not in ("pass", "skip")}
    assert not bad


def broken_locale(environment: Environment) -> None:
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        environment.monkeypatch.setenv(name, value)


def stale_lock(folder: str) -> Callable[[Environment], None]:
    def plant(environment: Environment) -> None:
        lock = environment.folder / folder / "lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        os.utime(lock, (1, 1))

    return plant


def other_copy(name: str) -> Callable[[Environment], None]:
    def plant(environment: Environment) -> None:
        (environment.folder / "lib").mkdir()
        (environment.folder / "lib" / name).touch()
        environment.monkeypatch.setenv("LD_LIBRARY_PATH", str(environment.folder / "lib"))

    return plant


def bashrc(text: str) -> Callable[[Environment], None]:
    return lambda environment: (environment.home / ".bashrc").write_text(text) and None


def helpers(environment: Environment) -> Path:
    return environment.checkout / "megatron" / "data" / f"helpers{SUFFIX}"


def slurm_job(ends: str, nodes: str = "here") -> Callable[[Environment], None]:
    def plant(environment: Environment) -> None:
        environment.monkeypatch.setenv("SLURM_JOB_ID", "17")
        script = f'case $2 in hostnames) echo {nodes} ;; job) echo "JobId=17 EndTime=$(date -d "{ends}" +%Y-%m-%dT%H:%M:%S)" ;; esac'
        environment.tool("scontrol", script)

    return plant


def open_to_all(environment: Environment) -> None:
    (environment.home / ".netrc").write_text("machine api.wandb.ai login user password canary\n")
    (environment.home / ".netrc").chmod(0o644)


PLANTED: list[tuple[str, Callable[[Environment], object], str, str, str]] = [
    # fault, how it is planted, check, status, words
    ("an old Python package", lambda e: e.package("transformers", "4.48.3"), "python.pins", "fail", "transformers 4.48.3"),
    ("a missing package", lambda e: e.package("apex", None), "python.pins", "fail", "not installed: apex"),
    ("NumPy 2 under torch 2.2", lambda e: e.package("numpy", "2.0.1"), "python.numpy_abi", "fail", "NumPy 2.0.1"),
    ("a locale that is not UTF-8", broken_locale, "python.encoding", "warn", "preferred"),
    ("repeated set-up lines", bashrc("ulimit -n 9\nulimit -n 9\n"), "shell.bashrc_dup", "warn", "2: ulimit -n 9"),
    (
        "a locale that is not installed",
        bashrc("export LC_ALL=xx_YY.UTF-8\n"),
        "shell.bashrc_dup",
        "warn",
        "the locale xx_YY.UTF-8 is not installed",
    ),
    ("a start-up file with a fault", bashrc("source /gone/env\n"), "shell.bashrc_dup", "warn", "/gone/env: No such file"),
    ("a shell that greets", bashrc("echo Welcome to the cluster\n"), "shell.bashrc_dup", "fail", "Welcome to the cluster"),
    ("another nvcc", lambda e: e.tool("nvcc", "echo release 12.1, V12.1.66"), "cuda.nvcc_vs_torch", "fail", "nvcc 12.1"),
    ("nvcc of another minor version", lambda e: e.tool("nvcc", "echo release 11.7,"), "cuda.nvcc_vs_torch", "fail", "nvcc 11.7"),
    ("nvcc that does not run", lambda e: e.tool("nvcc", "exit 127"), "cuda.nvcc_vs_torch", "fail", "does not run"),
    ("another NCCL before torch's", other_copy("libnccl.so.2"), "cuda.nccl_version", "warn", "libnccl.so.2"),
    ("a preloaded NCCL", lambda e: e.monkeypatch.setenv("LD_PRELOAD", "libnccl-nothere.so"), "cuda.nccl_version", "warn", "LD_PRELOAD"),
    ("a compiler that does not run", lambda e: e.tool("c++", "exit 1"), "build.cxx", "fail", "no working c++"),
    ("a compiler that is too new", lambda e: e.tool("c++", "echo 'g++ (GCC) 13.2.0'"), "build.cxx", "fail", "GCC 13"),
    ("ninja that does not run", lambda e: e.tool("ninja", "exit 1"), "build.ninja", "fail", "does not run"),
    ("python3-config of another Python", lambda e: e.tool("python3-config", f"echo {OTHER_SUFFIX}"), "build.headers", "warn", "another Python"),
    ("no pybind11", lambda e: shutil.rmtree(e.site / "pybind11"), "build.headers", "fail", "pybind11"),
    ("a lock of an interrupted build", stale_lock("cache/py311_cu118/fused_adam"), "build.ext_cache", "fail", "fused_adam/lock"),
    ("ops built with another torch", lambda e: e.deepspeed("2.1", "11.8"), "ds.built_with", "fail", "torch 2.1 -> 2.2"),
    ("ops built with another CUDA", lambda e: e.deepspeed("2.2", "12.1"), "ds.built_with", "fail", "CUDA 12.1 -> 11.8"),
    ("apex without extensions", lambda e: (e.site / f"amp_C{SUFFIX}").unlink(), "apex.so", "fail", "no amp_C"),
    ("apex for another Python", lambda e: e.module("apex_C", OTHER_SUFFIX), "apex.so", "fail", "another Python: apex_C.cpython-36m"),
    ("no apex", lambda e: e.package("apex", None), "apex.so", "fail", "not installed"),
    ("flash-attn for another Python", lambda e: e.module("flash_attn_2_cuda", OTHER_SUFFIX), "flash.so", "fail", "another Python"),
    ("no flash-attn", lambda e: e.package("flash-attn", None), "flash.so", "fail", "not installed"),
    ("another tag", lambda e: subprocess.run(["git", "-C", e.checkout, "tag", "-d", TAG], check=True, capture_output=True), "megatron.import", "fail", "is at "),
    ("a changed checkout", lambda e: (e.checkout / "megatron" / "__init__.py").write_text("x = 1\n"), "megatron.import", "warn", "megatron/__init__.py"),
    ("megatron-core beside it", lambda e: e.package("megatron-core", "0.16.0"), "megatron.import", "warn", "megatron-core 0.16.0 would hide"),
    ("helpers for another Python", lambda e: helpers(e).rename(helpers(e).with_name(f"helpers{OTHER_SUFFIX}")), "megatron.helpers", "fail", "another Python"),
    ("helpers older than their source", lambda e: os.utime(helpers(e), (0, 0)), "megatron.helpers", "fail", "older"),
    ("helpers that are cut off", lambda e: helpers(e).write_bytes(helpers(e).read_bytes()[:900]), "megatron.helpers", "fail", "do not import"),
    ("a lock in the fused kernels", stale_lock("train/Megatron-DeepSpeed/megatron/fused_kernels/build"), "megatron.fused_kernels", "fail", "left its lock"),
    ("fused kernels of another CUDA", lambda e: e.fingerprint(nvcc="11.6"), "megatron.fused_kernels", "fail", "another nvcc"),
    ("fused kernels of unknown origin", lambda e: (e.checkout / "megatron/fused_kernels/build" / FINGERPRINT).unlink(), "megatron.fused_kernels", "warn", "not known"),
    ("an interface that is not there", lambda e: e.monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib7"), "net.iface", "fail", "=ib7 names no"),
    ("a token that others can read", open_to_all, "creds", "warn", ".netrc"),
    ("no log-in to the Hub", lambda e: e.monkeypatch.delenv("HF_TOKEN"), "creds", "fail", "Hugging Face Hub"),
    ("no log-in to W&B", lambda e: e.monkeypatch.delenv("WANDB_API_KEY"), "creds", "fail", "Weights & Biases"),
    ("an offline Hub", lambda e: e.monkeypatch.setenv("HF_HUB_OFFLINE", "1"), "creds", "fail", "HF_HUB_OFFLINE"),
    ("a job that ends soon", slurm_job("now + 20 minutes"), "slurm", "warn", "job 17 ends in"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("plant", "check", "status", "said"), [fault[1:] for fault in PLANTED], ids=[f[0] for f in PLANTED]
)
def test_a_planted_fault_is_found_by_its_name_and_by_no_other(
    environment: Environment, plant: Callable[[Environment], object], check: str, status: str, said: str
) -> None:
    plant(environment)
    findings = environment.look(BY_ID[check].group)
    finding = findings.pop(check)
    assert finding.status == status, finding.verdict
    assert said in finding.summary + " " + finding.verdict.found, finding.verdict
    bad = {other.id: other.verdict for other in findings.values() if other.status in ("warn", "fail")}
    if check == "python.numpy_abi":  # NumPy 2 is not at its pin, either
        bad.pop("python.pins")
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        bad.pop("build.headers", None)
    assert not bad


def test_a_port_that_another_takes_is_a_warning(environment: Environment) -> None:
    with socket.socket() as other:
        try:
            other.bind(("", 29500))
        except OSError:
            pytest.skip("port 29500 is taken on this machine")
        other.listen()
        assert environment.look("network")["net.port"].status == "warn"


def test_a_limit_of_open_files_is_found(environment: Environment) -> None:
    findings = environment.look("limits", replace(environment.needs, open_files=1 << 30))
    assert findings["limits"].status == "fail"


def test_a_disk_that_is_too_small_is_found(environment: Environment) -> None:
    findings = environment.look("files", replace(environment.needs, disk=1 << 60))
    assert findings["fs.space"].status == "fail"


BROKEN_TORCH = {
    "raises": (
        "raise ImportError('libtorch_cuda.so: undefined symbol: ncclCommInit')",
        "fail",
        "undefined symbol: ncclCommInit",
    ),
    "hangs": ("import time; time.sleep(1000)", "unknown", "timeout"),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "fail", "killed by signal 11"),
    "exits": ("raise SystemExit(3)", "fail", "SystemExit: 3"),
    "prints and exits at once": (
        "import os; os.write(1, b'no driver\\n'); os._exit(4)",
        "fail",
        "ended with 4: no driver",
    ),
}


@pytest.mark.parametrize("how", BROKEN_TORCH)
def test_a_broken_torch_is_named_and_every_other_check_is_made(environment: Environment, how: str) -> None:
    code, status, said = BROKEN_TORCH[how]
    environment.torch("2.2.0", "11.8", code)
    environment.monkeypatch.setenv("LLM_WIZARD_PROBE_TIMEOUT", "2")
    chosen = [check for check in CHECKS if check.tier == "quick" or check.id == "cuda.torch_sees_gpu"]
    findings = {finding.id: finding for finding in examine(environment.needs, chosen, "here")}
    torch = findings.pop("cuda.torch_sees_gpu")
    assert torch.status == status
    assert said in torch.verdict.found
    assert len(findings) == len(chosen) - 1
    assert not [finding for finding in findings.values() if finding.status == "unknown"]


def test_a_broken_deepspeed_is_named(environment: Environment) -> None:
    environment.deepspeed("2.2", "11.8", "raise ImportError('libcurand.so.10: cannot open shared object file')")
    findings = environment.look("deepspeed", full=True)
    assert findings["ds.import"].status == "fail"
    assert "libcurand" in findings["ds.import"].verdict.found
    assert findings["ds.ops"].status == "unknown"


def test_a_flash_attn_of_another_torch_is_named(environment: Environment) -> None:
    """A real module with a symbol that nothing has."""
    for old in environment.site.glob("flash_attn_2_cuda*"):
        old.unlink()
    shutil.copy(_undefined(), environment.site / f"flash_attn_2_cuda{SUFFIX}")
    findings = environment.look("kernels", full=True)
    assert findings["flash.so"].status == "fail"
    assert "another torch or ABI" in findings["flash.so"].summary
    assert "_ZN3c104impl3cow" in findings["flash.so"].verdict.found


def _undefined() -> Path:
    folder = Path(tempfile.mkdtemp())
    (folder / "x.c").write_text(
        "void _ZN3c104impl3cow(void); void *PyInit_flash_attn_2_cuda(void) { _ZN3c104impl3cow(); return 0; }\n"
    )
    argv = ["/usr/bin/cc", "-shared", "-fPIC", "-Wl,-z,now", "-o", str(folder / "x.so"), str(folder / "x.c")]
    subprocess.run(argv, check=True)
    return folder / "x.so"


def test_packages_that_do_not_fit_together_are_named(environment: Environment) -> None:
    environment.package("needy", "1.0", requires="no-such-package>=3")
    findings = environment.look("python", full=True)
    if findings["python.pip_check"].summary.startswith("this Python has no pip"):
        pytest.skip("no pip in this environment")
    assert findings["python.pip_check"].status in ("warn", "fail")
    assert "no-such-package" in findings["python.pip_check"].verdict.found


def test_forty_faults_are_planted() -> None:
    assert len(PLANTED) + len(BROKEN_TORCH) >= 40


def kernels_that_build_at_once(environment: Environment) -> Path:
    """A Megatron whose kernels build at once, and a conda that only runs what it is told; the folder of the kernels."""
    environment.fingerprint(nvcc="11.6")
    conda = environment.folder / "miniconda3" / "bin" / "conda"
    conda.parent.mkdir(parents=True)
    conda.write_text('#!/bin/sh\nshift 4\nexec "$@"\n')
    conda.chmod(0o755)
    environment.monkeypatch.setenv("PATH", f"{environment.bin}:{os.environ['PATH']}")
    kernels = environment.checkout / "megatron" / "fused_kernels"
    (kernels / "__init__.py").write_text(
        "import pathlib\n"
        "def load(args):\n"
        "    build = pathlib.Path(__file__).parent / 'build'\n"
        "    build.mkdir()\n"
        "    print('building, rank', args.rank)\n"
        "    (build / 'softmax.so').touch()\n"
    )
    return kernels


def test_fused_kernels_of_another_cuda_are_rebuilt_and_then_pass(environment: Environment) -> None:
    kernels = kernels_that_build_at_once(environment)
    fix = environment.look("kernels")["megatron.fused_kernels"].fix
    assert fix is not None
    lines: list[str] = []
    for step in fix.steps:
        apply(step, lines.append)
    assert "building, rank 0" in lines
    assert environment.look("kernels")["megatron.fused_kernels"].status == "pass"
    assert len(list(kernels.glob("build.bak-*"))) == 1


def test_fused_kernels_are_rebuilt_here_and_then_looked_at_on_every_node(
    environment: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ssh on PATH runs the real probe, here under two names."""
    kernels_that_build_at_once(environment)
    ssh = environment.bin / "ssh"
    ssh.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift 2\nexec sh -c "$*"\n')
    ssh.chmod(0o755)
    needs = replace(environment.needs, nodes=("one", "two"))
    environment.monkeypatch.setattr("core.doctor.verb.gather_needs", lambda options: needs)
    words = ["--nodes", "one,two", "--only", "megatron.fused_kernels", "--fix", "megatron.fused_kernels", "--yes"]
    code = main(["doctor", *words])
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.count("building, rank 0") == 1
    assert f"built here: softmax.so [{os.uname().nodename}, one, two]" in said
