"""Stand-ins that let an unmodified Megatron-DeepSpeed checkout import where apex, torchvision or Pillow is not installed.

How to use it: put this folder on PYTHONPATH. Python imports `sitecustomize` at its start; this one adds a finder behind all others and
then runs the `sitecustomize` that it hides, if there is one. What is really installed is therefore found first, package by package.

Who sees them: Megatron's own modules. Other libraries (DeepSpeed, transformers, W&B) try optional packages and would take a stand-in
for the real thing, so the finder looks who asks. An import by Megatron puts a stand-in into sys.modules, though: who asks in the same process
after that finds it (transformers.is_apex_available() is then true; `from apex import amp` still fails, as it must).

What stands in for what, and with which result, is said in each file of stand_ins/. Nothing here imports torch before Megatron does.
Python 3.8 and later, standard library.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
STAND_INS = HERE / "stand_ins"
PACKAGES = ("apex", "torchvision", "PIL")
EXTENSIONS = ("amp_C", "fused_layer_norm_cuda")
"""apex's compiled modules; they stand in only where apex does: a real apex cannot work with them."""
MODULES = {"deepspeed.compression.compress": "deepspeed_compression_compress.py"}
"""What newer versions of an installed package no longer have (DeepSpeed from 0.19.7)."""


class StandIns:
    """A finder at the end of sys.meta_path: it is asked only for what no other finder has found."""

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if not asked_by_megatron():
            return None
        if fullname in PACKAGES or (fullname in EXTENSIONS and not apex_is_installed()):
            return importlib.machinery.PathFinder.find_spec(fullname, [str(STAND_INS)])
        if fullname in MODULES:
            return importlib.util.spec_from_file_location(fullname, STAND_INS / MODULES[fullname])
        return None


def asked_by_megatron() -> bool:
    """Whether the import that is under way is one of a module of Megatron, or of a stand-in."""
    depth = 1
    while True:
        try:
            module = str(sys._getframe(depth).f_globals.get("__name__"))
        except ValueError:  # the end of the stack
            return False
        if module != __name__ and module.partition(".")[0] not in ("importlib", "_frozen_importlib"):
            return module.partition(".")[0] in ("megatron", "apex")
        depth += 1


def apex_is_installed() -> bool:
    return importlib.machinery.PathFinder.find_spec("apex") is not None


def run_the_hidden_one() -> None:
    """This file hides another `sitecustomize` (a distribution's, a cluster's): run it as Python would have."""
    others = [entry for entry in sys.path if Path(entry).resolve() != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.append(StandIns)
run_the_hidden_one()
