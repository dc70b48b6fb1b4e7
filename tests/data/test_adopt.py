"""Token files made elsewhere: taken when they fit the tokenizer, refused by name when they do not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sentencepiece
from small_tokenizer import texts, write_jsonl

from core.data.adopt import link
from core.data.indexed import IndexedDataset, write_indexed
from core.files import read_json
from core.runs.directory import RunDirectory

if TYPE_CHECKING:
    from conftest import RunStage

DataRun = Callable[..., RunDirectory]


def manifest(run: RunDirectory) -> dict[str, Any]:
    document: dict[str, Any] = read_json(Path(f"{run.data_prefix}.manifest.json"))
    return document


def test_our_own_files_are_taken_with_the_same_numbers(data_run: DataRun, run_stage: RunStage, tmp_path: Path) -> None:
    run = data_run([write_jsonl(tmp_path / "a.jsonl")])
    assert run_stage(run, "data").returncode == 0
    again = data_run([], name="again", data={"prefix": str(run.data_prefix)})
    done = run_stage(again, "data")
    assert done.returncode == 0, done.stdout
    assert "warning" not in done.stdout
    first, second = manifest(run), manifest(again)
    same = (
        *("documents", "tokens", "text_bytes", "longest_document", "bytes_per_token", "unigram_entropy_nats", "dtype"),
        *("splits", "split", "vocab_size", "tokenizer_sha256", "bin_sha256", "idx_sha256", "eod_id", "append_eod"),
    )
    assert [first[name] for name in same] == [second[name] for name in same]
    assert second["source"] == str(run.data_prefix)
    assert Path(f"{again.data_prefix}.bin").samefile(f"{run.data_prefix}.bin")


def test_the_original_files_are_never_changed_by_a_later_run(
    data_run: DataRun, run_stage: RunStage, tmp_path: Path
) -> None:
    prefix = tmp_path / "given"
    write_indexed(prefix, [np.arange(300, 340), np.append(np.arange(300, 320), 6)], np.uint16)
    before = [Path(f"{prefix}{ending}").read_bytes() for ending in (".bin", ".idx")]
    run = data_run([write_jsonl(tmp_path / "a.jsonl")])
    run.data_prefix.parent.mkdir(parents=True)
    link(prefix, run.data_prefix)
    assert run_stage(run, "data").returncode == 0
    assert IndexedDataset(run.data_prefix).documents == len(texts())
    assert [Path(f"{prefix}{ending}").read_bytes() for ending in (".bin", ".idx")] == before


def test_files_of_another_file_system_are_linked_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write_indexed(tmp_path / "given", [np.array([1, 2])], np.uint16)
    link(tmp_path / "given", tmp_path / "linked")
    assert (tmp_path / "linked.bin").is_symlink()
    assert IndexedDataset(tmp_path / "linked").tokens.tolist() == [1, 2]


def refused(data_run: DataRun, run_stage: RunStage, prefix: Path) -> str:
    run = data_run([], data={"prefix": str(prefix)})
    done = run_stage(run, "data")
    assert done.returncode == 64, done.stdout
    assert "Traceback" not in done.stdout
    assert list(run.data_prefix.parent.iterdir()) == []
    return done.stdout[done.stdout.index("error: ") :]


def test_ids_of_a_larger_vocabulary_are_refused(data_run: DataRun, run_stage: RunStage, tmp_path: Path) -> None:
    write_indexed(tmp_path / "a", [np.arange(1400, 1500), np.array([1500, 6])], np.int32)
    said = refused(data_run, run_stage, tmp_path / "a")
    assert f"{tmp_path / 'a'}.bin holds the id 1500; the tokenizer has the ids 0 to 1499" in said
    assert "--set tokenizer.model=PATH" in said


def test_files_of_preprocess_data_with_its_eod_bug_are_refused_by_name(
    data_run: DataRun, run_stage: RunStage, models: dict[str, Path], tmp_path: Path
) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(models["bpe"]))
    documents = [np.array(ids) for ids in processor.encode(texts()[:50])]
    write_indexed(tmp_path / "a", documents, np.uint16)
    (tmp_path / "a.bin").write_bytes(b"".join(np.append(ids, 6).astype("<u2").tobytes() for ids in documents))
    assert "preprocess_data.py --append-eod" in refused(data_run, run_stage, tmp_path / "a")


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([np.arange(300, 310)] * 9, "no document reaches model.sequence_length = 16: the longest has 10 tokens"),
        ([np.arange(300, 400)], "there is only one document"),
    ],
    ids=["short", "single"],
)
def test_files_that_cannot_be_trained_on_are_refused(
    data_run: DataRun, run_stage: RunStage, tmp_path: Path, documents: list[Any], said: str
) -> None:
    write_indexed(tmp_path / "a", documents, np.uint16)
    assert said in refused(data_run, run_stage, tmp_path / "a")


def test_an_index_without_documents_is_refused(data_run: DataRun, run_stage: RunStage, tmp_path: Path) -> None:
    (tmp_path / "a.idx").write_bytes(struct.pack("<9sQBQQq", b"MMIDIDX\0\0", 1, 8, 0, 1, 0))
    (tmp_path / "a.bin").write_bytes(b"")
    assert "a.bin is empty" in refused(data_run, run_stage, tmp_path / "a")


def test_documents_without_their_end_are_taken_with_a_warning(
    data_run: DataRun, run_stage: RunStage, tmp_path: Path
) -> None:
    write_indexed(tmp_path / "a", [np.arange(300, 340), np.append(np.arange(300, 320), 6)], np.uint16)
    done = run_stage(data_run([], data={"prefix": str(tmp_path / "a")}), "data")
    assert done.returncode == 0, done.stdout
    assert "warning: only 1 of 2 documents end with <EOD> (id 6)" in done.stdout
