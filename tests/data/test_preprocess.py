"""The data stage by the original's preprocess_data.py: its commands, and success by what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from small_tokenizer import texts, write_jsonl

from core.data.encode import DocumentEncoder
from core.data.indexed import IndexedDataset, read_index
from core.data.preprocess_command import ORIGINALS
from core.errors import InputError
from core.exit_codes import ExitCode
from core.facts import Facts, gather_facts
from core.files import read_json
from core.plan import make_plan
from core.preset import Preset
from core.preset_source import load_preset, shipped_presets
from core.runs.create import fill, reserve
from core.runs.directory import RunDirectory

if TYPE_CHECKING:
    from conftest import RunStage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "Megatron-DeepSpeed"
    (folder / "tools").mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("like_preprocess_data.py"), folder / "tools" / "preprocess_data.py")
    monkeypatch.setenv("REPOSITORY", str(ROOT))
    return folder


def data_of(checkout: Path, **more: Any) -> dict[str, Any]:
    given = {
        "data": {"tool": "preprocess_data", "split": "8,1,1", **more.pop("data", {})},
        "megatron": {"checkout": str(checkout), **more.pop("megatron", {})},
        "pretrain": {"steps": 1, "backend": "megatron"},
        "model": {"size": "125M", "sequence_length": 16},
    }
    return {**given, **more}


def files(tmp_path: Path, *names: str) -> list[Path]:
    return [write_jsonl(tmp_path / name, texts()[40 * number : 40 * (number + 1)]) for number, name in enumerate(names)]


def ids_of(prefix: Path, tokenizer: Path, some: list[str]) -> None:
    """Each document of the token files is the text's ids and the end-of-document token."""
    encoder, data = DocumentEncoder(tokenizer, True), IndexedDataset(prefix)
    assert data.documents == len(some)
    for number, text in enumerate(some):
        assert np.array_equal(data.document(number), np.concatenate(encoder.encode(text)))


def test_each_file_becomes_a_pair_whose_index_counts_every_token(
    data_run: Any, run_stage: RunStage, checkout: Path, tmp_path: Path
) -> None:
    run = data_run(files(tmp_path, "a.jsonl", "b.jsonl"), **data_of(checkout))
    done = run_stage(run, "data")
    assert done.returncode == 0, done.stdout
    folder = run.data_prefix.parent
    tokenizer = run.tokenizer / "tokenizer.model"
    ids_of(folder / "a_text_document", tokenizer, texts()[:40])
    ids_of(folder / "b_text_document", tokenizer, texts()[40:80])
    result, manifest = read_json(run.result("data")), read_json(Path(f"{run.data_prefix}.manifest.json"))
    assert result["metrics"]["documents"] == manifest["documents"] == 80
    assert set(result["outputs"]) == {"bin 1", "idx 1", "bin 2", "idx 2", "manifest"}
    repaired = [json.loads(line) for line in run.events.read_text().splitlines() if "index-repaired" in line]
    assert [event["documents"] for event in repaired] == [40, 40]
    assert "--append-eod" in done.stdout


def test_one_file_also_feeds_our_own_training(
    data_run: Any, run_stage: RunStage, checkout: Path, tmp_path: Path
) -> None:
    run = data_run(files(tmp_path, "a.jsonl"), **data_of(checkout, pretrain={"steps": 1}))
    assert run_stage(run, "data").returncode == 0
    ids_of(run.data_prefix, run.tokenizer / "tokenizer.model", texts()[:40])


@pytest.mark.parametrize(("line", "words"), [("{broken", "JSONDecodeError"), ('{"content": "no text"}', "KeyError")])
def test_exit_code_0_is_no_success(
    data_run: Any, run_stage: RunStage, checkout: Path, tmp_path: Path, line: str, words: str
) -> None:
    (path,) = files(tmp_path, "a.jsonl")
    path.write_text(path.read_text() + f"{line}\n")
    run = data_run([path], **data_of(checkout))
    done = run_stage(run, "data")
    assert done.returncode == ExitCode.USAGE
    assert "ended with exit code 0 and left no whole token files" in done.stdout
    assert words in done.stdout
    assert "a.jsonl:41:" in done.stdout  # the line to mend
    assert not run.result("data").exists()


def test_a_whole_pair_of_this_text_is_not_made_again_and_a_half_one_is(
    data_run: Any, run_stage: RunStage, checkout: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tokens"
    corpus = files(tmp_path, "a.jsonl", "b.jsonl")
    first = data_run(corpus, **data_of(checkout, data={"output_folder": str(folder)}))
    assert run_stage(first, "data").returncode == 0
    before = (folder / "a_text_document.bin").stat().st_mtime_ns
    half = folder / "b_text_document.bin"
    half.write_bytes(half.read_bytes()[:-2])
    second = data_run(corpus, name="again", **data_of(checkout, data={"output_folder": str(folder)}))
    done = run_stage(second, "data")
    assert done.returncode == 0, done.stdout
    assert "a_text_document.bin and .idx are whole and hold this text" in done.stdout
    assert (folder / "a_text_document.bin").stat().st_mtime_ns == before
    ids_of(folder / "b_text_document", first.tokenizer / "tokenizer.model", texts()[40:80])


def test_token_files_of_another_tokenizer_are_not_used_silently(
    data_run: Any, run_stage: RunStage, checkout: Path, tmp_path: Path, models: dict[str, Path]
) -> None:
    folder, corpus = tmp_path / "tokens", files(tmp_path, "a.jsonl")
    first = data_run(corpus, **data_of(checkout, data={"output_folder": str(folder)}))
    assert run_stage(first, "data").returncode == 0
    made = (folder / "a_text_document.bin").read_bytes()
    other = data_run(corpus, name="other", **data_of(checkout, data={"output_folder": str(folder)}))
    (other.tokenizer / "tokenizer.model").write_bytes(models["unigram"].read_bytes())
    done = run_stage(other, "data")
    assert done.returncode == ExitCode.USAGE
    assert "its ids are not those of" in done.stdout
    assert (folder / "a_text_document.bin").read_bytes() == made


def test_strictly_the_index_stays_as_the_original_leaves_it(
    run_stage: RunStage, checkout: Path, tmp_path: Path, models: dict[str, Path]
) -> None:
    corpus = [str(file) for file in files(tmp_path, "a.jsonl")]
    chosen = data_of(checkout, megatron={"strict_original": True})
    preset = Preset.model_validate({**chosen, "corpus": {"files": corpus}, "tokenizer": {"vocab_size": 1500}})
    run = reserve(tmp_path / "runs", "strict")
    fill(run, make_plan(preset, "test", gather_facts(tmp_path, None, []), run, last="data"))
    run.tokenizer.mkdir()
    (run.tokenizer / "tokenizer.model").write_bytes(models["bpe"].read_bytes())
    done = run_stage(run, "data")
    assert done.returncode == 0, done.stdout
    prefix = run.data_prefix.parent / "a_text_document"
    assert Path(f"{prefix}.bin").stat().st_size == 2 * (read_index(Path(f"{prefix}.idx")).tokens + 40)


def test_a_stop_ends_the_command(data_run: Any, checkout: Path, tmp_path: Path) -> None:
    run = data_run(files(tmp_path, "slow.jsonl"), **data_of(checkout))
    stage = next(stage for stage in read_json(run.plan)["stages"] if stage["id"] == "data")
    process = subprocess.Popen(
        stage["argv"], env={**os.environ, **stage["env"]}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    while "Opening" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    process.stdout.read()
    assert process.wait(30) == ExitCode.INTERRUPTED
    assert time.monotonic() - began < 30
    assert not run.result("data").exists()


def test_progress_lines_are_read(data_run: Any, run_stage: RunStage, checkout: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", texts()[-250:])
    run = data_run([path], **data_of(checkout))
    assert run_stage(run, "data").returncode == 0
    records = [json.loads(line) for line in run.metrics("data").read_text().splitlines()]
    seen = next(record for record in records if record["unit"] == "documents")
    assert (seen["step"], seen["documents_per_s"], seen["mb_per_s"]) == (100, 200.0, 1.25)


# --- The plan


RUN = RunDirectory(Path("/runs/r"))
FACTS = Facts(python="/py/bin/python", host="head", cores=48, memory=1 << 40, disk_free=1 << 50)
PRESETS = ("gcp-play-preprocess", "gcp-play-preprocess-sbatch")
GIVEN = (
    "megatron.checkout=/m",
    "corpus.files=[/in/a.jsonl,/in/b.jsonl]",
    "data.output_folder=/out",
    "tokenizer.model=/t.model",
)


def expected(name: str, eod: bool = True) -> str:
    """As preprocess_data.sh gives it for one file (seed-pipeline 2.4), with the run's copy of the tokenizer."""
    return (
        "/py/bin/python /m/tools/preprocess_data.py --tokenizer-type SentencePieceTokenizer "
        f"--tokenizer-model /runs/r/outputs/tokenizer/tokenizer.model --input /in/{name}.jsonl --output-prefix /out/{name} "
        "--dataset-impl mmap --workers 48" + (" --append-eod" if eod else "")
    )


def planned(name: str, *sets: str) -> dict[str, Any]:
    plan = make_plan(load_preset(name, [*GIVEN, *sets]).preset, name, FACTS, RUN, last="data")
    return next(stage for stage in plan.stages if stage.id == "data").derived


@pytest.mark.parametrize("strict", ["true", "false"])
@pytest.mark.parametrize("name", PRESETS)
def test_the_commands_are_the_scripts_argument_by_argument(name: str, strict: str) -> None:
    derived = planned(name, f"megatron.strict_original={strict}")
    assert [derived["command 1"], derived["command 2"]] == [expected("a"), expected("b")]
    corrected = [entry["what"] for entry in derived["corrections"]]
    assert corrected == ([] if strict == "true" else ["success", "files that are there already", "--append-eod"])


def test_the_presets_stand_for_both_scripts() -> None:
    originals = {name: load_preset(name).preset.original for name in shipped_presets()}
    assert {name: path for name, path in originals.items() if "preprocess" in path} == dict(
        zip(PRESETS, ORIGINALS, strict=True)
    )


def test_the_job_asks_slurm_for_what_the_sbatch_script_asks_for() -> None:
    options = dict(load_preset("gcp-play-preprocess-sbatch").preset.slurm.options())
    assert options == {
        "partition": "g2", "time": "06:00:00", "nodes": "1", "gpus-per-node": "0", "cpus-per-task": "48", "mem": "370G",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("corpus.files=[/in/a.txt]", "reads uncompressed .jsonl files"),
        ("corpus.files=[/in/a.jsonl,/other/a.jsonl]", "would both become /out/a_text_document.bin"),
        ("corpus.normalize=nfkc", "does not normalise"),
        ("megatron.checkout=null", "megatron.checkout names none"),
        ("pretrain.backend=embedded", "reads one"),
        ("data.prefix=/x", "give one of them"),
        ("corpus.files=[/in/a.jsonl] pretrain.backend=embedded megatron.strict_original=true", "does not read"),
    ],
)
def test_what_preprocess_data_cannot_do_is_refused(change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned("gcp-play-preprocess", *change.split())


def test_several_pairs_are_blended_by_the_bytes_they_have_at_the_start(tmp_path: Path) -> None:
    from core.megatron.data import weigh

    plan = make_plan(load_preset("gcp-play-preprocess", GIVEN).preset, "p", FACTS, RUN)
    argv = next(stage for stage in plan.stages if stage.id == "pretrain").argv
    place = argv.index("--data-path")
    assert argv[place + 1 : place + 5] == ["{bytes}", "/out/a_text_document", "{bytes}", "/out/b_text_document"]
    for name, size in (("a", 7), ("b", 11)):
        (tmp_path / f"{name}.bin").write_bytes(bytes(size))
        (tmp_path / f"{name}.idx").write_bytes(bytes(2))
    words = ["--data-path", "{bytes}", f"{tmp_path}/a", "{bytes}", f"{tmp_path}/b"]
    assert weigh(words) == ["--data-path", "9", f"{tmp_path}/a", "13", f"{tmp_path}/b"]


def test_data_output_folder_is_for_preprocess_data() -> None:
    with pytest.raises(ValueError, match=r"data\.output_folder is for"):
        Preset.model_validate({"data": {"output_folder": "/out"}})
