"""The plan: pure, complete, and honest about every number it adjusted."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import InputError
from core.facts import Facts, Gpu
from core.plan import Plan, make_plan
from core.plan_text import plan_text
from core.preset import Preset
from core.runs.directory import RunDirectory
from core.stages import STAGES
from core.stages.pretrain import choose_zero, estimate_memory

FACTS = Facts(python="/py/bin/python", host="head", cores=8, memory=64 << 30, disk_free=1 << 40, path="/usr/bin")
RUN = RunDirectory(Path("/runs/r"))


def plan_of(values: dict[str, object], facts: Facts = FACTS, **options: str) -> Plan:
    return make_plan(Preset.model_validate(values), "p", facts, RUN, **options)


def derived(values: dict[str, object], facts: Facts = FACTS) -> dict[str, object]:
    return next(stage for stage in plan_of(values, facts).stages if stage.id == "pretrain").derived


def test_planning_touches_nothing_and_gives_the_same_twice() -> None:
    assert plan_of({}) == plan_of({})
    assert not RUN.root.exists()


def test_a_name_that_json_cannot_hold_is_refused() -> None:
    run = RunDirectory(Path(b"/runs/caf\xe9".decode("utf-8", "surrogateescape")))
    with pytest.raises(InputError, match=r"not UTF-8, which no JSON can hold: /runs/caf\?"):
        make_plan(Preset(), "p", FACTS, run)


def test_every_stage_has_command_environment_inputs_and_outputs() -> None:
    plan = plan_of({"corpus": {"script": "/s.py"}})
    assert [stage.id for stage in plan.stages] == [stage.id for stage in STAGES]
    for stage in plan.stages:
        assert not stage.skip
        if stage.id != "environment":  # it judges the training Python, so it does not run under it
            assert stage.argv[0] == FACTS.python
        assert stage.env["PYTHONPATH"] == "/runs/r/code"
        assert stage.env["PATH"] == "/py/bin:/usr/bin"
        assert stage.outputs


def test_global_batch_is_micro_x_accumulation_x_processes_and_an_adjustment_is_shown() -> None:
    facts = replace(FACTS, gpus=(Gpu("H100", 80 << 30),) * 8)
    values = derived({"pretrain": {"global_batch": 100, "micro_batch": 4, "steps": 10}}, facts)
    assert (values["micro_batch"], values["gradient_accumulation"], values["data_parallel"]) == (4, 4, 8)
    assert values["global_batch"] == 128
    assert values["global_batch_note"] == "adjusted from 100: 4 x 4 x 8"
    assert "adjusted from 100" in plan_text(plan_of({"pretrain": {"global_batch": 100, "micro_batch": 4}}, facts))


def test_tokens_become_whole_steps() -> None:
    values = derived({"model": {"size": "125M"}, "pretrain": {"tokens": 300_000_000_000}})
    assert values["tokens_per_step"] == 256 * 2048
    assert values["steps"] == 572_205  # the real stop of the original's 125M script (seed-pipeline.md, finding 1)


def test_memory_follows_zeros_accounting() -> None:
    preset = Preset.model_validate({"model": {"size": "1.3B"}})
    n = preset.model.shape().parameters(32000)
    one, three = (estimate_memory(preset, 8, "bf16", zero) for zero in (1, 3))
    assert (one.weights, one.gradients, one.optimizer) == (2 * n, 2 * n, 12 * n // 8)
    assert (three.weights, three.gradients, three.optimizer) == (2 * n // 8, 2 * n // 8, 12 * n // 8)


def test_zero_is_the_lowest_stage_that_fits_the_gpu() -> None:
    big = Preset.model_validate({"model": {"size": "13B"}, "pretrain": {"gradient_checkpointing": True}})
    facts = replace(FACTS, gpus=(Gpu("64 GiB", 64 << 30),) * 8)
    assert choose_zero(big, facts, 8, "bf16") == 2
    small = Preset.model_validate({"model": {"size": "125M"}})
    assert choose_zero(small, facts, 8, "bf16") == 1
    assert choose_zero(small, FACTS, 1, "fp32") == 0


def test_from_and_until_skip_the_other_stages_and_say_why() -> None:
    plan = plan_of({"corpus": {"script": "/s.py"}}, first="convert", last="finetune")
    skipped = {stage.id: stage.skip for stage in plan.stages}
    assert skipped["pretrain"] == "before --from convert"
    assert skipped["upload-finetuned"] == "after --until finetune"
    assert not skipped["convert"]


@pytest.mark.parametrize("options", [{"first": "convrt"}, {"first": "convert", "last": "data"}])
def test_stages_that_do_not_exist_or_are_reversed_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(InputError):
        plan_of({}, **options)


def test_the_plan_and_the_cli_import_neither_torch_nor_a_screen() -> None:
    code = (
        "import sys, core.cli; core.cli.main(['plan', 'quickstart', '--json']);"
        "bad = {'torch', 'transformers', 'deepspeed', 'textual', 'rich', 'questionary', 'numpy'} & set(sys.modules);"
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
