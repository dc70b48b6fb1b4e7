"""The doctor and the original's checkouts: which environments a preset's stages run in, and what is wrong with them, for real."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.doctor import setup
from core.doctor.apply import apply
from core.doctor.checks import BY_ID
from core.doctor.checks.python import python_env, python_pins
from core.doctor.examine import examine
from core.doctor.finding import Finding
from core.doctor.fix import Command
from core.doctor.needs import Needs, environments_of, needs_for
from core.doctor.profiles import ABCI, MEGATRON_MODERN
from core.facts import gather_facts
from core.plan import make_plan
from core.preset import Preset
from core.runs.directory import RunDirectory

TAG = "ucllm_nedo_v20240415.1.0"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the names that the real one has: its imports, its helpers' source and Makefile, its tag."""
    folder = tmp_path / "train" / "Megatron-DeepSpeed"
    files = {
        "pretrain_gpt.py": "",
        "megatron/__init__.py": "",
        "megatron/training.py": "import torchvision.transforms\n",
        "megatron/model/__init__.py": "",
        "megatron/optimizer/__init__.py": "",
        "megatron/data/__init__.py": "",
        "megatron/data/helpers.cpp": '#include <Python.h>\nstatic PyModuleDef m = {PyModuleDef_HEAD_INIT, "helpers"};\n'
        "PyMODINIT_FUNC PyInit_helpers(void) { return PyModule_Create(&m); }\n",
        "megatron/data/Makefile": "LIBEXT = $(shell python3-config --extension-suffix)\n"
        "default: helpers$(LIBEXT)\n%$(LIBEXT): %.cpp\n\t$(CXX) -shared -fPIC $(CPPFLAGS) $< -o $@\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git = [
        "git",
        "-C",
        str(folder),
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"], ["tag", TAG]):
        subprocess.run([*git, *words], check=True)
    return folder


@pytest.fixture
def needs(tmp_path: Path, checkout: Path) -> Needs:
    """Those of a pretraining on a CPU, in a new environment of this Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    return Needs(
        profile=MEGATRON_MODERN,
        stages=("pretrain",),
        packages={"torch": ("pretrain",)},
        python=str(tmp_path / "env" / "bin" / "python"),
        checkout=str(checkout),
        flash=False,
        fused_kernels=False,
    )


def site(needs: Needs) -> Path:
    return next(Path(needs.prefix, "lib").glob("python3*/site-packages"))


def found(needs: Needs, check_id: str) -> Finding:
    (finding,) = examine(needs, [BY_ID[check_id]], "here", imports=True)
    return finding


def install_megatron(needs: Needs, name: str, version: str) -> None:
    (site(needs) / "megatron").mkdir()
    (site(needs) / "megatron" / "__init__.py").touch()
    info = site(needs) / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_the_tag_alone_passes(needs: Needs) -> None:
    assert found(needs, "megatron.import").status == "pass"


def test_an_installed_megatron_core_is_named_and_a_run_still_finds_the_checkout(needs: Needs) -> None:
    install_megatron(needs, "megatron_core", "0.16.0")
    finding = found(needs, "megatron.import")
    assert (finding.status, "megatron-core 0.16.0 would hide" in finding.summary) == ("warn", True)
    assert finding.verdict.found == str(site(needs) / "megatron")
    assert finding.fix is not None
    assert "pip uninstall -y megatron-core" in finding.fix.preview[0]


def test_another_package_of_that_name_is_found_by_its_folder(needs: Needs) -> None:
    install_megatron(needs, "megatron", "1.0")
    finding = found(needs, "megatron.import")
    assert finding.status == "warn"
    assert str(site(needs) / "megatron") in finding.summary


def test_the_copy_that_the_readme_itself_installs_is_no_other(needs: Needs) -> None:
    install_megatron(needs, "megatron_core", "0.2.0")
    assert found(needs, "megatron.import").status == "pass"


def test_a_copy_that_comes_before_pythonpath_fails(needs: Needs) -> None:
    install_megatron(needs, "megatron_core", "0.16.0")
    (site(needs) / "first.pth").write_text(f"import sys; sys.path.insert(0, {str(site(needs))!r})\n")
    finding = found(needs, "megatron.import")
    assert (finding.status, finding.verdict.found) == ("fail", str(site(needs) / "megatron"))


def test_the_import_passes_with_stand_ins_and_names_what_is_missing(needs: Needs, checkout: Path) -> None:
    passed = found(needs, "megatron.start")
    assert (passed.status, passed.summary) == ("pass", "it imports; stand-ins for torchvision")
    (checkout / "megatron" / "training.py").write_text("import einops_of_nobody\n")
    failed = found(needs, "megatron.start")
    assert failed.status == "fail"
    assert "No module named 'einops_of_nobody'" in failed.verdict.found


def test_an_apex_without_extensions_is_named_where_the_stand_ins_are_meant(needs: Needs) -> None:
    assert found(needs, "apex.so").status == "skip"
    info = site(needs) / "apex-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: apex\nVersion: 0.1\n")
    assert found(needs, "apex.so").status == "fail"


def test_the_helpers_are_built_for_this_python_whatever_python3_config_says(
    needs: Needs, checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert found(needs, "megatron.helpers").status == "warn"
    other = tmp_path / "other"
    other.mkdir()
    (other / "python3-config").write_text("#!/bin/sh\necho .cpython-36m-x86_64-linux-gnu.so\n")
    (other / "python3-config").chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}:/usr/bin:/bin")
    include = subprocess.check_output(
        [needs.python, "-c", "import sysconfig; print(sysconfig.get_paths()['include'])"], text=True
    ).strip()
    if not Path(include, "Python.h").is_file():
        pytest.skip("this Python has no headers")
    (site(needs) / "pybind11").mkdir()
    (site(needs) / "pybind11" / "__main__.py").write_text(f"print('-I{include}')\n")
    (site(needs) / "pybind11" / "__init__.py").touch()
    for step in setup.build_helpers(needs).steps:
        assert isinstance(step, Command)
        apply(step, lambda line: None)
    finding = found(needs, "megatron.helpers")
    assert finding.status == "pass", finding.verdict


def environments(tmp_path: Path, checkout: Path, preset: dict[str, Any]) -> list[Needs]:
    return environments_of(document(tmp_path, checkout, preset))


def document(tmp_path: Path, checkout: Path, preset: dict[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {
        "corpus": {"files": [str(tmp_path / "a.jsonl")]},
        "model": {"layers": 2, "hidden_size": 64, "heads": 2, "sequence_length": 64},
        "pretrain": {"backend": "megatron", "steps": 4, "global_batch": 4, "device": "cpu"},
        "megatron": {"checkout": str(checkout)},
    }
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    for name, section in preset.items():
        small[name] = {**small.get(name, {}), **section} if isinstance(section, dict) else section
    checked = Preset.model_validate(small)
    run = RunDirectory(tmp_path / "runs" / "r")
    return make_plan(checked, "test", gather_facts(tmp_path, None, []), run).document()


def test_a_cpu_run_is_judged_by_the_modern_profile_and_the_other_stages_by_their_own(
    tmp_path: Path, checkout: Path
) -> None:
    first, own = environments(tmp_path, checkout, {"megatron": {"python": "/m/bin/python"}})
    assert (first.profile.name, first.python, first.megatron) == ("megatron-modern", "/m/bin/python", str(checkout))
    assert set(first.packages) >= {"torch", "deepspeed", "pybind11"}
    assert "nltk" not in first.packages
    assert not first.flash
    assert own.profile.name == "modern"
    assert all("pretrain" not in stages for stages in own.packages.values())


def test_preprocess_data_needs_what_it_imports(tmp_path: Path, checkout: Path) -> None:
    preset = {"megatron": {"python": "/m/bin/python"}, "data": {"tool": "preprocess_data"}}
    assert environments(tmp_path, checkout, preset)[0].packages["nltk"] == ("data",)


def test_the_fine_tuning_has_an_environment_of_its_own(tmp_path: Path, checkout: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "train.py").touch()
    preset = {
        "megatron": {"python": "/m/bin/python"},
        "finetune": {
            "backend": "llm-jp-sft",
            "checkout": str(tmp_path / "sft"),
            "python": "/f/bin/python",
        },
    }
    first, second, own = environments(tmp_path, checkout, preset)
    assert [first.python, second.python] == ["/m/bin/python", "/f/bin/python"]
    assert (second.profile.name, second.packages["trl"], second.megatron) == ("original", ("finetune",), "")
    assert all("finetune" not in stages for stages in own.packages.values())


def test_an_environment_that_a_preset_names_may_have_other_versions(tmp_path: Path, checkout: Path) -> None:
    named = environments(tmp_path, checkout, {"megatron": {"python": "/m/bin/python"}})[0]
    named = replace(named, profile=ABCI, packages={"torch": ("pretrain",)})
    value = {"versions": {"torch": "2.1.0"}}
    assert python_pins(value, named).status == "warn"
    assert python_pins(value, replace(named, exact=True)).status == "fail"
    assert python_pins({"versions": {"torch": None}}, named).status == "fail"
    python = {"version": "3.10.1", "executable": "/m/bin/python"}
    assert python_env(python, named).status == "warn"
    assert python_env(python, replace(named, exact=True)).status == "fail"


def test_a_preset_without_a_python_for_the_originals_environment_is_told_the_key(tmp_path: Path) -> None:
    needs = Needs(profile=replace(ABCI, python_exact=False), python="/m/bin/python", unset="megatron.python")
    verdict = python_env({"version": "3.11.7", "executable": "/m/bin/python"}, needs)
    assert verdict.status == "fail"
    assert verdict.fix is not None
    assert "--set megatron.python=/m/bin/python" in verdict.fix.preview[0]


def test_a_profile_can_be_asked_for(tmp_path: Path, checkout: Path) -> None:
    plan = document(tmp_path, checkout, {"megatron": {"python": "/m/bin/python"}})
    assert needs_for(plan, "modern").profile.name == "modern"
    abci = needs_for(plan, "original-abci")
    assert (abci.profile.requires["torch"], abci.profile.python) == ("==2.0.1", (3, 11))
    steps = [step.id for step in setup.steps_of(abci)]
    assert "setup.conda" not in steps
    assert "setup.apex" in steps
    lines = [line for step in setup.steps_of(abci) for line in step.build(abci).preview]
    assert not [line for line in lines if "conda" in line]
    modern = needs_for(plan, "megatron-modern")
    assert [step.id for step in setup.steps_of(modern)] == ["setup.requirements", "setup.megatron", "setup.helpers"]
