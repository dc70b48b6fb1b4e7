"""The data stage as its own process: rows in = documents + rejected, the same bytes with any number of workers."""

from __future__ import annotations

import gzip
import hashlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import psutil
import pytest
import sentencepiece
from small_tokenizer import texts, write_jsonl

from core.data.indexed import IndexedDataset
from core.data.manifest import kind_of
from core.data.work import check_longest, worker_count
from core.errors import InputError
from core.files import read_json
from core.runs.directory import RunDirectory

if TYPE_CHECKING:
    from conftest import RunStage

DataRun = Callable[..., RunDirectory]


def manifest(run: RunDirectory) -> dict[str, Any]:
    document: dict[str, Any] = read_json(Path(f"{run.data_prefix}.manifest.json"))
    return document


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def mixed(folder: Path) -> list[Path]:
    """Four files, 700 lines, of which seven are no documents."""
    good = [orjson.dumps({"text": text}) for text in texts()[:300]]
    good.insert(17, b'{"text": "\xff"}')
    good.insert(200, b'{"text": 5}')
    good.append(b'{"text": "cut of')
    small = [orjson.dumps({"text": f"document {number}\nof a compressed file"}) for number in range(390)]
    small[7] = small[300] = b"[]"
    return [
        written(folder / "a.jsonl", b"\n".join(good)),
        written(folder / "b.jsonl.gz", gzip.compress(b"\n".join(small) + b"\n")),
        written(folder / "c.txt", "一つ目の段落。\nその続き。\n\n二つ目。\n\n\0\n".encode()),
        written(folder / "d.jsonl", b'\n{"text": "the last"}\n'),
    ]


def test_every_row_is_a_document_or_listed_with_its_place(
    data_run: DataRun, run_stage: RunStage, tmp_path: Path
) -> None:
    files = mixed(tmp_path)
    run = data_run(files, data={"workers": 2}, corpus={"max_rejected_share": 0.02})
    done = run_stage(run, "data")
    assert done.returncode == 0, done.stdout
    found = manifest(run)
    assert [(entry["rows"], entry["documents"], entry["rejected"]) for entry in found["files"]] == [
        (303, 300, 3),
        (390, 388, 2),
        (3, 2, 1),
        (2, 1, 1),
    ]
    assert found["rows"] == found["documents"] + found["rejected"] == 698
    assert [(Path(line["file"]).name, line["line"], kind_of(line["reason"])) for line in found["rejected_lines"]] == [
        ("a.jsonl", 18, "invalid UTF-8"),
        ("a.jsonl", 201, "'text' is not a string but a number"),
        ("a.jsonl", 303, "the last line is cut off, or not JSON"),
        ("b.jsonl.gz", 8, "not an object but an array"),
        ("b.jsonl.gz", 301, "not an object but an array"),
        ("c.txt", 6, "a NUL character in the text"),
        ("d.jsonl", 1, "a blank line"),
    ]
    assert found["rejected_reasons"]["not an object but an array"] == 2
    assert sum(found["rejected_reasons"].values()) == 7
    assert "warning: 7 of 698 lines were rejected: 2 x not an object but an array" in done.stdout
    result = read_json(run.result("data"))
    assert (result["metrics"]["documents"], result["metrics"]["rejected"]) == (691, 7)
    assert all(Path(path).is_file() for path in result["outputs"].values())


def test_the_tokens_are_those_of_the_texts_and_the_manifest_tells_the_truth(
    data_run: DataRun, run_stage: RunStage, tmp_path: Path
) -> None:
    some = texts()[-300:]
    run = data_run([write_jsonl(tmp_path / "a.jsonl", some)])
    assert run_stage(run, "data").returncode == 0
    data, found = IndexedDataset(run.data_prefix), manifest(run)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(run.tokenizer / "tokenizer.model"))
    expected = [[*ids, 6] for ids in processor.encode(some)]
    assert [data.document(number).tolist() for number in range(data.documents)] == expected
    assert data.dtype == np.uint16

    tokens = [token for document in expected for token in document]
    share = np.array(list(Counter(tokens).values())) / len(tokens)
    assert found["unigram_entropy_nats"] == pytest.approx(-(share * np.log(share)).sum())
    assert found["tokens"] == len(tokens)
    assert found["text_bytes"] == sum(len(text.encode()) for text in some)
    assert found["bytes_per_token"] == found["text_bytes"] / found["tokens"]
    assert found["longest_document"] == max(map(len, expected))
    assert (found["dtype"], found["vocab_size"], found["eod_id"]) == ("uint16", 1500, 6)
    for name, path in (
        ("tokenizer_sha256", run.tokenizer / "tokenizer.model"),
        ("bin_sha256", Path(f"{run.data_prefix}.bin")),
        ("idx_sha256", Path(f"{run.data_prefix}.idx")),
    ):
        assert found[name] == hashlib.sha256(path.read_bytes()).hexdigest()

    bounds = {"train": (0, 285), "valid": (285, 300), "test": (300, 300)}
    for name, (start, end) in bounds.items():
        part = found["splits"][name]
        assert (part["document_start"], part["document_end"], part["documents"]) == (start, end, end - start)
        assert part["text_bytes"] == sum(len(text.encode()) for text in some[start:end])
        assert part["tokens"] == sum(map(len, expected[start:end])) == part["token_end"] - part["token_start"]
        assert part["token_start"] == sum(map(len, expected[:start]))


def test_three_workers_make_the_same_bytes_as_one(data_run: DataRun, run_stage: RunStage, tmp_path: Path) -> None:
    files = [*mixed(tmp_path), write_jsonl(tmp_path / "z.jsonl", texts() * 6)]
    made = []
    for workers in (1, 3):
        run = data_run(files, name=f"w{workers}", data={"workers": workers})
        done = run_stage(run, "data")
        assert done.returncode == 0, done.stdout
        assert f"with {workers} process" in done.stdout
        made.append([Path(f"{run.data_prefix}{ending}").read_bytes() for ending in (".bin", ".idx", ".manifest.json")])
        assert len(list(run.data_prefix.parent.iterdir())) == 3
    assert made[0] == made[1]


def test_text_is_normalised_once_where_asked(data_run: DataRun, run_stage: RunStage, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl", ["ＡＢＣ ｶﾞｷﾞｸﾞ ①②③"] * 20)
    run = data_run(
        [corpus], corpus={"normalize": "nfkc"}, data={"append_eod": False}, model={"size": "125M", "sequence_length": 8}
    )
    assert run_stage(run, "data").returncode == 0
    processor = sentencepiece.SentencePieceProcessor(model_file=str(run.tokenizer / "tokenizer.model"))
    assert processor.decode(IndexedDataset(run.data_prefix).document(0).tolist()) == "ABC ガギグ 123"
    assert manifest(run)["text_bytes"] == 20 * len("ABC ガギグ 123".encode())


def ended_with(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stdout
    assert done.returncode == 64, done.stdout
    return done.stdout[done.stdout.index("error: ") :]


def test_too_many_rejected_lines_fail_with_the_first_of_them(
    data_run: DataRun, run_stage: RunStage, tmp_path: Path
) -> None:
    corpus = written(
        tmp_path / "a.jsonl", b'{"text": "twenty words would be enough here for a document"}\n' * 96 + b"x\n" * 4
    )
    done = run_stage(data_run([corpus]), "data")
    said = ended_with(done)
    assert "4 of 100 lines (4.0%) cannot be used; corpus.max_rejected_share allows 1.0%" in said
    assert f"{corpus}:97: not JSON" in said
    assert "--set corpus.max_rejected_share=0.04" in said
    run = data_run(
        [corpus],
        name="second",
        corpus={"max_rejected_share": 0.04},
        pretrain={"steps": 1, "allow_short_documents": True},
    )
    assert run_stage(run, "data").returncode == 0


@pytest.mark.parametrize(
    ("content", "preset", "said"),
    [
        (b"", {}, "the corpus is empty: no usable document in"),
        (b"\n\nx\n", {}, "(3 lines rejected). The first:\n  "),
        (b'{"text": "a b"}\n' * 9, {}, "no document reaches model.sequence_length = 16: the longest has "),
        (b'{"text": "' + b"a b " * 40 + b'"}\n', {}, "there is only one document"),
        (b'{"text": "a"}\n', {"corpus": {"text_key": "body"}}, "no 'body' among the keys"),
    ],
    ids=["empty", "nothing usable", "short", "single", "wrong key"],
)
def test_a_corpus_that_cannot_be_trained_on_is_refused(
    data_run: DataRun, run_stage: RunStage, tmp_path: Path, content: bytes, preset: dict[str, Any], said: str
) -> None:
    run = data_run([written(tmp_path / "a.jsonl", content)], **preset)
    assert said in ended_with(run_stage(run, "data"))
    assert list(run.data_prefix.parent.iterdir()) == []


def test_short_documents_are_refused_with_both_ways_out_and_the_first_works() -> None:
    with pytest.raises(InputError) as caught:
        check_longest(40, 64, allow_short=False)
    assert "--set model.sequence_length=40" in caught.value.hint
    assert "--set pretrain.allow_short_documents=true" in caught.value.hint
    check_longest(40, 40, allow_short=False)
    check_longest(40, 64, allow_short=True)


def test_a_file_broken_in_the_middle_leaves_no_token_files(
    data_run: DataRun, run_stage: RunStage, tmp_path: Path
) -> None:
    lines = b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts())
    packed = gzip.compress(lines)
    corpus = written(tmp_path / "a.jsonl.gz", packed[: len(packed) // 2])
    run = data_run([corpus], data={"workers": 2})
    assert f"{corpus} is broken after line " in ended_with(run_stage(run, "data"))
    assert list(run.data_prefix.parent.iterdir()) == []


def test_without_a_tokenizer_the_stage_says_which_stage_makes_one(
    data_run: DataRun, run_stage: RunStage, tmp_path: Path
) -> None:
    run = data_run([write_jsonl(tmp_path / "a.jsonl")])
    (run.tokenizer / "tokenizer.model").unlink()
    assert "run the tokenizer stage before" in ended_with(run_stage(run, "data"))


def started(run: RunDirectory) -> subprocess.Popen[str]:
    plan = next(stage for stage in read_json(run.plan)["stages"] if stage["id"] == "data")
    process = subprocess.Popen(
        plan["argv"],
        env={**os.environ, **plan["env"]},
        cwd=plan["cwd"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (run.metrics("data").exists() and len(psutil.Process(process.pid).children(recursive=True)) >= 3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.fixture
def long_run(data_run: DataRun, tmp_path: Path) -> RunDirectory:
    """Enough text for two workers to be at it for some seconds."""
    return data_run([write_jsonl(tmp_path / "a.jsonl", texts() * 150)], data={"workers": 2})


def test_a_request_to_stop_ends_the_workers_and_leaves_nothing(long_run: RunDirectory) -> None:
    process = started(long_run)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "stopped on request" in output
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert list(long_run.data_prefix.parent.iterdir()) == []


def test_workers_do_not_outlive_a_killed_stage(long_run: RunDirectory) -> None:
    process = started(long_run)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_a_killed_worker_is_told_and_not_waited_for(long_run: RunDirectory) -> None:
    process = started(long_run)
    children = psutil.Process(process.pid).children(recursive=True)
    max(children, key=lambda child: child.memory_info().rss).kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "error: a tokenizing process was killed" in output
    assert "Traceback" not in output


def test_small_input_is_not_worth_a_process_unless_asked(tmp_path: Path) -> None:
    small = str(written(tmp_path / "a.txt", b"x"))
    assert worker_count(0, [small]) == 1
    assert worker_count(3, [small]) == 3
