"""Resuming on another number of processes, another ZeRO stage or another engine: the same samples, the same losses."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from forked_ranks import ForkedRanks, output, samples
from forked_stage import fork_stage
from safetensors.torch import load_file, save_file

from core.errors import InputError, StageError
from core.facts import gather_facts
from core.files import read_json, sha256, write_json
from core.plan import make_plan
from core.preset import Preset
from core.runs.directory import RunDirectory
from core.stages.entry import load_context
from core.train import lineage
from core.train.checkpoint import MANIFEST, verify
from core.train.engine import MODEL_FILE
from core.train.failpoint import VARIABLE
from core.train.order import SampleOrder
from core.train.resume import find_start, what_makes
from core.train.saved_state import MOMENTS, SavedState
from core.train.sequences import open_sequences

MakeTraining = Callable[..., RunDirectory]
BATCH = 12
EVERY_TWO = {"save_interval": 2, "valid_interval": 100, "micro_batch": 1, "global_batch": BATCH, "keep_checkpoints": 20}


@pytest.fixture(scope="module")
def ranks() -> Iterator[ForkedRanks]:
    started = ForkedRanks()
    yield started
    started.close()


def plan_again(run: RunDirectory, processes: int, **pretrain: Any) -> None:
    """What a resume with `--set` does: another plan for the same run."""
    document = read_json(run.plan)["preset"]
    document["cluster"]["processes"] = processes
    document["pretrain"] |= pretrain
    plan = make_plan(Preset.model_validate(document), "test", gather_facts(run.root, None, []), run)
    write_json(run.plan, plan.document())


def by_step(run: RunDirectory, name: str = "loss") -> dict[int, float]:
    """Each step's value; of a step that was done again, the attempt that counts: the last one."""
    lines = [json.loads(line) for line in run.metrics("pretrain").read_text().splitlines()]
    return {line["step"]: line[name] for line in sorted(lines, key=lambda line: line["attempt"]) if name in line}


def trained_on(run: RunDirectory) -> dict[int, list[int]]:
    """Position -> sequences, of the steps that count: those of a start up to where the next one took up."""
    starts = samples(run)
    ends = [min(following) for following in starts[1:]] + [max(starts[-1]) + 1]
    return {
        first: numbers
        for taken, end in zip(starts, ends, strict=True)
        for first, numbers in taken.items()
        if first < end
    }


def moments(run: RunDirectory, step: int) -> dict[str, torch.Tensor]:
    """Both moments of every weight, as vectors, from the checkpoint of a step, whoever wrote it."""
    checkpoint = verify(run.checkpoints / f"step-{step}")
    saved, weights = SavedState(checkpoint), load_file(checkpoint.path / MODEL_FILE)
    return {
        f"{name}/{key}": moment
        for name, weight in weights.items()
        for key, moment in zip(MOMENTS, saved.read(name, 0, weight.numel())[1:], strict=True)
    }


def relative(found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> float:
    """The largest difference of two sets of numbers or vectors, relative to the expected one."""
    assert found.keys() == expected.keys()
    pairs = [(torch.as_tensor(found[key]), torch.as_tensor(expected[key])) for key in expected]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "chain", "losses", "states"),
    [
        ("fp32", [(1, 0), (2, 1), (4, 3), (1, 0), (4, 2), (3, 3), (2, 2), (1, 0)], 1e-6, 1e-5),
        ("bf16", [(1, 0), (2, 1), (4, 3), (2, 2), (2, 2), (1, 0)], 1e-3, 0.1),
    ],
    ids=["fp32", "bf16"],
)
def test_each_start_on_other_processes_goes_on_as_if_nothing_had_happened(
    precision: str,
    chain: list[tuple[int, int]],
    losses: float,
    states: float,
    training_run: MakeTraining,
    ranks: ForkedRanks,
) -> None:
    """Each start saves two more steps and is killed while it saves the next two; the last one goes to the end.

    `chain` has processes and ZeRO stage of each start. What remains are sums taken in another order: uninterrupted runs on
    2 and 4 processes differ from one process as much (losses 2e-7 in fp32, 4e-4 in bf16; moments 3e-6 and 0.04). Moments
    scaled by 0.9 at each start would make it 6e-3 and 3e-3 in the losses.
    """
    steps = 2 * len(chain) + 2
    settings = EVERY_TWO | {"steps": steps, "precision": precision}
    whole = training_run(settings, name="whole")
    assert ranks.run(whole) == [0], output(whole)

    run = training_run(settings)
    for number, (processes, zero) in enumerate(chain):
        plan_again(run, processes, zero=zero or "auto")
        last = number == len(chain) - 1
        codes = ranks.run(run, **({} if last else {VARIABLE: f"files-synced@{2 * number + 4}"}))
        assert codes == [0 if last else -signal.SIGKILL] * processes, output(run)
        if number:
            assert f"step-{2 * number} at step {2 * number} (attempt {number + 1})" in output(run)
            again = (processes, zero) == chain[number - 1]
            assert ("its optimizer state was dealt out anew" in output(run)) is not again

    assert list(by_step(run)) == list(range(1, steps + 1))
    assert relative(by_step(run), by_step(whole)) < losses
    assert relative(moments(run, steps), moments(whole, steps)) < states
    taken = trained_on(run)
    assert sorted(taken) == list(range(0, steps * BATCH))  # micro-batches of one: each position once, none left out
    numbers = [number for first in sorted(taken) for number in taken[first]]
    assert numbers == SampleOrder(sequences(run), 1234).samples(0, steps * BATCH).tolist()


@pytest.mark.slow
def test_ranks_that_did_not_exist_draw_their_own_dropout_and_the_same_one_each_time(
    training_run: MakeTraining, ranks: ForkedRanks
) -> None:
    found = []
    for name in ("once", "again"):
        run = training_run(EVERY_TWO | {"steps": 4}, model={"family": "gpt2", "dropout": 0.2}, name=name)
        assert ranks.run(run, **{VARIABLE: "files-synced@4"}) == [-signal.SIGKILL], output(run)
        plan_again(run, 2)
        assert ranks.run(run) == [0, 0], output(run)
        first, second = (load_file(run.checkpoints / "step-4" / f"rng-{rank}.safetensors")["cpu"] for rank in (0, 1))
        assert not torch.equal(first, second)
        found.append(by_step(run))
    assert found[0] == found[1]


@pytest.mark.slow
def test_moments_are_never_taken_from_files_in_which_the_weights_are_not_found(
    training_run: MakeTraining, ranks: ForkedRanks
) -> None:
    run = training_run(EVERY_TWO | {"steps": 2}, cluster={"processes": 2})
    assert ranks.run(run) == [0, 0], output(run)
    checkpoint = verify(run.checkpoints / "step-2")
    weights = load_file(checkpoint.path / MODEL_FILE)
    name, size = "model.layers.0.mlp.up_proj.weight", weights["model.layers.0.mlp.up_proj.weight"].numel()
    SavedState(checkpoint).read(name, 5, size - 5)
    weights[name].flatten()[-1] += 1e-3
    save_file(weights, checkpoint.path / MODEL_FILE)
    with pytest.raises(StageError, match="lays its state out in another way than was expected"):
        SavedState(checkpoint).read(name, 5, size - 5)
    with pytest.raises(StageError, match=f"hold 0 of the {size} elements wanted of model.other"):
        SavedState(checkpoint)._moments.read("exp_avg", "model.other", 0, size)


def test_another_global_batch_is_refused_with_what_to_type_and_nothing_is_moved(training_run: MakeTraining) -> None:
    settings = EVERY_TWO | {"steps": None, "tokens": 4 * BATCH * 32}  # so the number of steps also hangs on the batch
    run = training_run(settings)
    assert fork_stage(run, "pretrain", **{VARIABLE: "files-synced@4"}).wait() == -signal.SIGKILL
    before = sha256(run.checkpoints / "step-2" / MANIFEST)
    for processes, micro_batch, made, hint in [
        (5, 1, 15, "resume on 1, 2, 3, 4, 6 or 12 process(es)"),
        (4, 2, 16, "resume with --set pretrain.micro_batch=1, or resume on 1, 2, 3 or 6 process(es)"),
        (8, 5, 40, "resume on 1, 2, 3, 4, 6 or 12 process(es) with --set pretrain.micro_batch=1"),
    ]:
        plan_again(run, processes, micro_batch=micro_batch)
        with pytest.raises(InputError) as error:
            find_start(load_context(run, "pretrain"), facts_of(run))
        assert f"was trained with 12 sequences in a step; {processes} process(es) of micro_batch {micro_batch} make {made}" in str(error.value)  # fmt: skip
        assert f"-> {hint}; to start from the beginning" in str(error.value)
    assert sha256(verify(run.checkpoints / "step-2").path / MANIFEST) == before
    assert not list(run.root.glob("checkpoints.old*"))
    plan_again(run, 1, micro_batch=5)
    stage = fork_stage(run, "pretrain")
    assert stage.wait() == 64
    assert "error: " in stage.output
    assert "Traceback" not in stage.output
    plan_again(run, 1, micro_batch=4)
    stage = fork_stage(run, "pretrain")
    assert stage.wait() == 0, stage.output
    assert "at step 2 (attempt 2)" in stage.output
    assert list(by_step(run)) == [1, 2, 3, 4]


def test_a_batch_that_was_rounded_up_is_asked_for_by_its_own_number(training_run: MakeTraining) -> None:
    """8 sequences asked for, 9 made by 3 x 3: one process alone would make 8."""
    run = training_run(EVERY_TWO | {"steps": 4, "global_batch": 8, "micro_batch": 3})
    assert fork_stage(run, "pretrain", **{VARIABLE: "files-synced@4"}).wait() == -signal.SIGKILL
    plan_again(run, 1, micro_batch=1)
    stage = fork_stage(run, "pretrain")
    assert stage.wait() == 64
    assert (
        "-> resume with --set pretrain.global_batch=9, or resume on 3 or 9 process(es) --set pretrain" in stage.output
    )
    plan_again(run, 1, micro_batch=1, global_batch=9)
    assert fork_stage(run, "pretrain").wait() == 0
    assert list(by_step(run)) == [1, 2, 3, 4]


@pytest.mark.parametrize("batch", [1, 7, 12, 256])
@pytest.mark.parametrize("processes", [1, 3, 4, 16])
@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_what_is_suggested_makes_the_batch(batch: int, processes: int, micro_batch: int) -> None:
    for asked in (batch, batch + 1):
        for way in what_makes(batch, processes, micro_batch, asked).split(", or "):
            found = dict(re.findall(r"pretrain\.(\w+)=(\d+)", way))
            micro = int(found.get("micro_batch", micro_batch))
            assert int(found.get("global_batch", asked)) == batch
            for number in re.findall(r"\d+", way.split("process(es)")[0]) if "process(es)" in way else [processes]:
                assert batch % (int(number) * micro) == 0, way


def facts_of(run: RunDirectory) -> dict[str, Any]:
    """What the training itself compares with a checkpoint."""
    context = load_context(run, "pretrain")
    return {
        "config_hash": lineage.config_hash(context.preset, context.plan["derived"]),
        "data_hash": lineage.data_hash(run.data_prefix),
        "code_hash": lineage.code_hash(),
    }


def sequences(run: RunDirectory) -> int:
    """Training sequences in the run's data."""
    preset = load_context(run, "pretrain").preset
    return len(open_sequences(run.data_prefix, preset.data.split, preset.model.sequence_length, 300)[0])
