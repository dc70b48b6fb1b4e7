"""What the plan promises the trainer: a device, an engine, and an environment in which CPU threads do not spin."""

from pathlib import Path

import pytest

from core.errors import InputError
from core.facts import Facts, Gpu
from core.preset import Preset
from core.runs.directory import RunDirectory
from core.stages.base import StagePlan
from core.stages.pretrain import plan

GPU = Gpu("NVIDIA H200", 141 * 2**30)


def planned(gpus: int, **pretrain: object) -> StagePlan:
    facts = Facts("python", "host", cores=8, memory=2**36, disk_free=2**40, gpus=(GPU,) * gpus)
    return plan(Preset.model_validate({"pretrain": pretrain}), facts, RunDirectory(Path("/runs/r")))


@pytest.mark.parametrize(
    ("gpus", "asked", "device", "precision"),
    [(0, "auto", "cpu", "fp32"), (1, "auto", "cuda", "bf16"), (1, "cpu", "cpu", "fp32"), (0, "cuda", "cuda", "fp32")],
)
def test_the_device_follows_from_the_machine_unless_one_is_asked_for(
    gpus: int, asked: str, device: str, precision: str
) -> None:
    stage = planned(gpus, device=asked)
    assert (stage.derived["device"], stage.derived["precision"]) == (device, precision)


def test_zero_0_on_several_gpus_is_refused_before_anything_runs() -> None:
    with pytest.raises(InputError, match=r"pretrain\.zero is 0 with 2 processes"):
        planned(2, zero=0)
    assert planned(1, zero=0).derived["engine"] == "PyTorch"
    assert planned(2).derived["engine"] == "DeepSpeed ZeRO-1"


def test_waiting_threads_sleep_on_a_cpu() -> None:
    assert planned(0).env["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in planned(1).env
