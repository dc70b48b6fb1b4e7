"""The stand-ins for apex, torchvision and Pillow: seen by Megatron only, and only where the real ones are absent."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import core
from core.runs.create import copy_code

SHIM = Path(core.__file__).parent / "megatron" / "shim"
FILES = sorted(SHIM.rglob("*.py"))


def python(code: str, *path: Path, bare: bool = True) -> str:
    """What a fresh Python prints with `path` and the shim on PYTHONPATH; `bare` leaves site-packages out."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(entry) for entry in (*path, SHIM))}
    hide = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]\n" if bare else ""
    done = subprocess.run(
        [sys.executable, "-c", hide + code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A package `megatron` whose modules import what the real one's do; `other` is any other library."""
    folder = tmp_path / "checkout"
    (folder / "megatron").mkdir(parents=True)
    (folder / "megatron" / "__init__.py").write_text("")
    (folder / "megatron" / "vision.py").write_text(
        "import torchvision.transforms as T\n"
        "from torchvision import datasets\n"
        "from torchvision.datasets import VisionDataset\n"
        "from PIL import Image, ImageEnhance, ImageFilter, ImageOps\n"
        "class Folder(VisionDataset):\n"
        "    def resize(self, how=Image.BICUBIC): ...\n"
    )
    (folder / "megatron" / "kernels.py").write_text("import amp_C\n")
    (folder / "megatron" / "layers.py").write_text(
        "import importlib\nimportlib.import_module('fused_layer_norm_cuda')\n"
    )
    (folder / "other.py").write_text("import torchvision\n")
    return folder


def attempt(statement: str) -> str:
    return f"try:\n    {statement}\n    print('found')\nexcept ImportError as error:\n    print(error)\n"


def test_megatron_imports_what_is_not_installed(checkout: Path) -> None:
    assert python(attempt("import megatron.vision, megatron.layers"), checkout) == "found"


def test_other_libraries_do_not_take_a_stand_in_for_the_real_thing(checkout: Path) -> None:
    assert python(attempt("import other"), checkout) == "No module named 'torchvision'"
    assert python(attempt("import apex"), checkout) == "No module named 'apex'"
    assert python("import importlib.util as u; print(u.find_spec('PIL'))", checkout) == "None"


def test_using_an_image_says_what_is_missing(checkout: Path) -> None:
    assert "pip install torchvision" in python(attempt("import megatron.vision as v; v.T.Resize(3)"), checkout)
    assert "pip install torchvision" in python(attempt("import megatron.vision as v; v.Folder()"), checkout)
    assert "pip install pillow" in python(attempt("import megatron.vision as v; v.Image.open('a')"), checkout)


def test_what_is_installed_wins_package_by_package(checkout: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    for name in ("torchvision", "torchvision/datasets", "torchvision/transforms"):
        (installed / name).mkdir(parents=True, exist_ok=True)
        (installed / name / "__init__.py").write_text("class VisionDataset: ...\n")
    code = "import megatron.vision, sys; print(sys.modules['torchvision'].__file__, sys.modules['PIL'].__file__)"
    torchvision, pillow = python(code, checkout, installed).split()
    assert torchvision.startswith(str(installed))
    assert pillow.startswith(str(SHIM))


def test_an_installed_apex_without_extensions_gets_none_of_ours(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "installed" / "apex").mkdir(parents=True)
    (tmp_path / "installed" / "apex" / "__init__.py").write_text("")
    absent = python(attempt("import megatron.kernels"), checkout, tmp_path / "installed")
    assert absent == "No module named 'amp_C'"


def test_the_sitecustomize_that_it_hides_still_runs(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "sitecustomize.py").write_text("print('module load')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SHIM), str(tmp_path / "cluster")])}
    done = subprocess.run([sys.executable, "-c", ""], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "module load"


def test_a_newer_deepspeed_gets_the_module_that_megatron_imports(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "new" / "deepspeed" / "compression").mkdir(parents=True)
    (tmp_path / "new" / "deepspeed" / "__init__.py").write_text("")
    (tmp_path / "new" / "deepspeed" / "compression" / "__init__.py").write_text("")
    (checkout / "megatron" / "training.py").write_text(
        "from deepspeed.compression.compress import init_compression, redundancy_clean\n"
    )
    assert python(attempt("import megatron.training"), checkout, tmp_path / "new") == "found"
    called = python(attempt("import megatron.training as t; t.init_compression()"), checkout, tmp_path / "new")
    assert "0.19.6" in called


def test_a_start_of_python_imports_no_torch() -> None:
    assert python("import sys; print('torch' in sys.modules)", bare=False) == "False"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SHIM)))
def test_the_files_are_python_3_8(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    annotated = any(isinstance(node, ast.arg) and node.annotation for node in ast.walk(tree))
    assert not annotated or "from __future__ import annotations" in path.read_text()


def test_a_run_takes_the_stand_ins_along(tmp_path: Path) -> None:
    copy_code(tmp_path / "code")
    copied = tmp_path / "code" / "core" / "megatron" / "shim"
    assert sorted(str(path.relative_to(copied)) for path in copied.rglob("*.py")) == sorted(
        str(path.relative_to(SHIM)) for path in FILES
    )


def test_the_stand_ins_compute_what_apex_does(checkout: Path) -> None:
    (checkout / "megatron" / "apex_names.py").write_text(
        "from apex.multi_tensor_apply import multi_tensor_applier\n"
        "import amp_C\n"
        "from apex.normalization import MixedFusedRMSNorm\n"
        "from apex.normalization.fused_layer_norm import FusedLayerNormAffineFunction\n"
        "from apex.optimizers import FusedAdam, FusedSGD\n"
    )
    code = """
import torch
from megatron import apex_names as a
torch.manual_seed(0)
one, two = torch.randn(5), torch.randn(2, 3)
norm, each = a.multi_tensor_applier(a.amp_C.multi_tensor_l2norm, torch.zeros(1), [[one, two]], True)
torch.testing.assert_close(norm, torch.cat([one, two.flatten()]).norm().reshape(1))
torch.testing.assert_close(each, torch.stack([one.norm(), two.norm()]))
flag, target = torch.zeros(1), torch.empty(5)
a.multi_tensor_applier(a.amp_C.multi_tensor_scale, flag, [[one], [target]], 0.5)
torch.testing.assert_close(target, one / 2)
assert flag.item() == 0
a.multi_tensor_applier(a.amp_C.multi_tensor_scale, flag, [[one / 0], [target]], 0.5)
assert flag.item() == 1
x = torch.randn(4, 8)
rms = a.MixedFusedRMSNorm(8, 1e-5)
torch.testing.assert_close(rms(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt())
assert rms.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype is torch.bfloat16
weight, bias = torch.randn(8, requires_grad=True), torch.randn(8)
normed = a.FusedLayerNormAffineFunction.apply(x.to(torch.bfloat16), weight, bias, (8,), 1e-5, True)
torch.testing.assert_close(normed, torch.nn.functional.layer_norm(x.to(torch.bfloat16).float(), (8,), weight, bias, 1e-5))
normed.sum().backward()
assert weight.grad is not None
assert type(a.FusedAdam([weight], lr=1.0, weight_decay=0.1)) is torch.optim.AdamW
assert type(a.FusedSGD([weight], lr=1.0, weight_decay=0.1, momentum=0.9)) is torch.optim.SGD
print("same")
"""
    assert python(code, checkout, bare=False) == "same"
