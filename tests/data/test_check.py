"""`llm-wizard data check`: each damage is named, mended to the very bytes it should have had, and never guessed at."""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import wizard
from core.cli import main
from core.data.check import Report, Vocabulary, check, vocabulary_of
from core.data.ends import not_empty_ends, with_end_counted
from core.data.indexed import Index, IndexedDataset, read_index, write_index, write_indexed
from core.data.manifest import manifest_path
from core.data.repair import repair_append_eod
from core.errors import InputError, StageError

EOD = 6
VOCABULARY = Vocabulary(pieces=1500, size=1503, eods=(EOD,))
Damage = Callable[[Path], None]


def documents(number: int = 40, eod: int | None = EOD, seed: int = 1) -> list[NDArray[np.int64]]:
    """Documents of 1 to 60 ids between 300 and 1,499, the end-of-document token behind each."""
    order = np.random.default_rng(seed)
    texts = [order.integers(300, 1500, order.integers(1, 60)) for _ in range(number)]
    return texts if eod is None else [np.append(text, eod) for text in texts]


def file(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def content(prefix: Path) -> tuple[bytes, bytes]:
    return file(prefix, ".bin").read_bytes(), file(prefix, ".idx").read_bytes()


def forget_the_end(prefix: Path) -> None:
    """What preprocess_data.py --append-eod leaves: the index of the documents without their last token."""
    dtype, sizes, boundaries = read_index(file(prefix, ".idx"))
    write_index(file(prefix, ".idx"), Index(dtype, sizes - 1, boundaries))


def cut(prefix: Path, size: int, ending: str = ".bin") -> None:
    path = file(prefix, ending)
    path.write_bytes(path.read_bytes()[:size])


def say_type(prefix: Path, dtype: str) -> None:
    index = read_index(file(prefix, ".idx"))
    write_index(file(prefix, ".idx"), index._replace(dtype=np.dtype(dtype)))


def make_old(prefix: Path) -> None:
    """The index in the old format, as IndexedDatasetBuilder.finalize lays it out."""
    dtype, sizes, boundaries = read_index(file(prefix, ".idx"))
    code = {2: 8, 4: 4}[dtype.itemsize]
    header = struct.pack("<8sQQQQQQ", b"TNTIDX\0\0", 1, code, dtype.itemsize, len(sizes), len(sizes), len(boundaries))
    numbers = (np.arange(len(sizes) + 1), np.append(0, np.cumsum(sizes)), sizes, boundaries)
    file(prefix, ".idx").write_bytes(header + b"".join(np.asarray(part, "<i8").tobytes() for part in numbers))


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    prefix = tmp_path / "corpus.v1_text_document"
    write_indexed(prefix, documents(), np.uint16)
    return prefix


def problems(report: Report) -> list[str]:
    return [one.id for one in report.found if one.status != "pass"]


def mend(prefix: Path, vocabulary: Vocabulary | None) -> Report:
    report = check(prefix, vocabulary)
    assert report.repair is not None, [one.document() for one in report.found]
    assert report.repair.preview()
    report.repair.carry_out()
    return report


def test_whole_files_are_fine_with_and_without_the_tokenizer(prefix: Path) -> None:
    for vocabulary in (VOCABULARY, None):
        report = check(prefix, vocabulary)
        assert (report.status, report.repair) == ("pass", None)
        assert "40 documents" in report.found[0].summary


@pytest.mark.parametrize("vocabulary", [VOCABULARY, None], ids=["tokenizer", "no tokenizer"])
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (forget_the_end, ["idx.eod-not-counted"]),
        (make_old, ["idx.old-format"]),
        (lambda prefix: say_type(prefix, "<i4"), ["dtype.other"]),
        (lambda prefix: (forget_the_end(prefix), say_type(prefix, "<i4")), ["dtype.other", "idx.eod-not-counted"]),
    ],
    ids=["eod", "old", "type", "type and eod"],
)
def test_an_index_is_mended_to_the_bytes_it_should_have_had(
    prefix: Path, damage: Damage, named: list[str], vocabulary: Vocabulary | None
) -> None:
    right = content(prefix)
    damage(prefix)
    damaged = file(prefix, ".idx").read_bytes()
    assert problems(mend(prefix, vocabulary)) == named
    assert content(prefix) == right
    assert file(prefix, ".idx.bak").read_bytes() == damaged
    assert check(prefix, vocabulary).status == "pass"


@pytest.mark.parametrize(
    "damage", [lambda p: file(p, ".idx").unlink(), lambda p: cut(p, 0, ".idx"), lambda p: cut(p, 99, ".idx")]
)
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_lost_index_is_made_again_from_the_ends_of_the_documents(tmp_path: Path, damage: Damage, dtype: type) -> None:
    prefix = tmp_path / "a"
    write_indexed(prefix, documents(), dtype)
    right = content(prefix)
    damage(prefix)
    without = check(prefix, None)
    assert without.repair is None
    assert "--tokenizer" in without.found[0].hint
    mend(prefix, VOCABULARY)
    assert content(prefix) == right


@pytest.mark.parametrize("vocabulary", [VOCABULARY, None], ids=["tokenizer", "no tokenizer"])
@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("lost", [1, 2, 37, 500, 1001])
def test_a_cut_off_bin_keeps_its_whole_documents(
    prefix: Path, lost: int, forgotten: bool, vocabulary: Vocabulary | None
) -> None:
    """Whether or not the index forgot the ends, which decides where the last whole document ends."""
    whole = file(prefix, ".bin").read_bytes()
    if forgotten:
        forget_the_end(prefix)
    cut(prefix, len(whole) - lost)
    named = problems(mend(prefix, vocabulary))
    assert named == ["bin.cut-off", "idx.eod-not-counted"] if forgotten else named == ["bin.cut-off"]
    kept = []
    for document in documents():
        if 2 * sum(map(len, [*kept, document])) <= len(whole) - lost:
            kept.append(document)
        else:
            break
    data = IndexedDataset(prefix)
    assert [data.document(number).tolist() for number in range(data.documents)] == [some.tolist() for some in kept]
    left = file(prefix, ".bin").read_bytes() + file(prefix, ".bin.end.bak").read_bytes()
    assert left == whole[:-lost]


def test_documents_behind_the_end_of_the_index_are_taken_in(prefix: Path) -> None:
    right = content(prefix)
    index = read_index(file(prefix, ".idx"))
    write_index(file(prefix, ".idx"), Index(index.dtype, index.sizes[:10], index.documents[:11]))
    assert problems(mend(prefix, None)) == ["bin.longer"]
    assert content(prefix) == right


def test_without_ends_of_documents_a_cut_off_bin_is_mended_only_where_the_tokenizer_tells(tmp_path: Path) -> None:
    prefix = tmp_path / "a"
    write_indexed(prefix, documents(eod=None), np.uint16)
    cut(prefix, 600)
    report = check(prefix, None)
    assert (report.status, report.repair) == ("fail", None)
    mend(prefix, VOCABULARY)
    assert IndexedDataset(prefix).documents > 5


def test_empty_documents_and_documents_of_several_sequences_are_mended_too(tmp_path: Path) -> None:
    """--split-sentences writes a sequence a sentence; the token follows the last one. An empty document has none."""
    prefix = tmp_path / "a"
    sizes, boundaries = np.array([2, 3, 1, 4], np.int32), np.array([0, 2, 2, 3, 4], np.int64)
    tokens = np.array([300, 301, 302, 303, 304, EOD, 305, EOD, 306, 307, 308, 309, EOD], "<u2")
    file(prefix, ".bin").write_bytes(tokens.tobytes())
    write_index(file(prefix, ".idx"), Index(np.dtype("<u2"), sizes, boundaries))
    assert repair_append_eod(prefix, EOD) == 3
    index = read_index(file(prefix, ".idx"))
    assert index.sizes.tolist() == [2, 4, 2, 5]
    assert index.documents.tolist() == boundaries.tolist()


def test_the_repair_after_preprocess_data_says_how_many_and_does_nothing_twice(prefix: Path) -> None:
    right = content(prefix)
    forget_the_end(prefix)
    with pytest.raises(InputError, match="id 7"):
        repair_append_eod(prefix, 7)
    assert repair_append_eod(prefix, EOD) == 40
    assert content(prefix) == right
    assert repair_append_eod(prefix, EOD) == 0
    assert [path.name for path in prefix.parent.glob("*.bak*")] == [f"{prefix.name}.idx.bak"]
    cut(prefix, 100)
    with pytest.raises(InputError, match="data check"):
        repair_append_eod(prefix, EOD)


def test_what_only_looks_like_the_forgotten_end_is_refused(prefix: Path) -> None:
    """As many tokens too many as there are documents, but behind the last document instead of behind each."""
    with file(prefix, ".bin").open("ab") as out:
        out.write(np.arange(400, 440, dtype="<u2").tobytes())
    before = content(prefix)
    report = check(prefix, VOCABULARY)
    assert problems(report) == ["bin.longer"]
    with pytest.raises(InputError, match="not every document"):
        repair_append_eod(prefix, EOD)
    assert content(prefix) == before


def test_one_document_alone_shows_nothing_without_the_tokenizer(tmp_path: Path) -> None:
    prefix = tmp_path / "a"
    write_indexed(prefix, documents(1), np.uint16)
    forget_the_end(prefix)
    report = check(prefix, None)
    assert (report.status, report.repair) == ("fail", None)
    assert "--tokenizer" in report.found[0].hint
    mend(prefix, VOCABULARY)


def test_two_files_of_different_data_are_refused(prefix: Path, tmp_path: Path) -> None:
    write_indexed(tmp_path / "other", documents(55, seed=9), np.uint16)
    file(tmp_path / "other", ".idx").replace(file(prefix, ".idx"))
    for vocabulary in (VOCABULARY, None):
        report = check(prefix, vocabulary)
        assert (report.status, report.repair) == ("fail", None)


def test_an_empty_or_missing_bin_cannot_be_mended(prefix: Path) -> None:
    cut(prefix, 0)
    assert problems(check(prefix, VOCABULARY)) == ["bin.empty"]
    file(prefix, ".bin").unlink()
    report = check(prefix, VOCABULARY)
    assert (problems(report), report.repair) == (["bin.missing"], None)


def test_ids_beyond_the_vocabulary_are_named_and_left_alone(prefix: Path) -> None:
    report = check(prefix, Vocabulary(1000, 1003, (EOD,)))
    assert (problems(report), report.repair) == (["ids.beyond-vocabulary"], None)
    assert "the ids 0 to 1002" in report.found[0].summary
    added = check(prefix, Vocabulary(1480, 1503, (EOD,)))
    assert (added.status, problems(added)) == ("warn", ["ids.added-by-megatron"])
    assert problems(check(prefix, Vocabulary(70_000, 70_003, (EOD,)))) == ["dtype.too-small"]


def test_ids_read_as_signed_are_mended(tmp_path: Path) -> None:
    prefix = tmp_path / "a"
    write_indexed(prefix, [np.array([40_000, 50_000, EOD]), np.array([7, EOD])], np.uint16)
    right = content(prefix)
    say_type(prefix, "<i2")
    assert problems(mend(prefix, Vocabulary(60_000, 60_003, (EOD,)))) == ["dtype.other"]
    assert content(prefix) == right


def test_32_bits_where_16_would_do_are_fine_and_said(tmp_path: Path) -> None:
    write_indexed(tmp_path / "a", documents(), np.int32)
    report = check(tmp_path / "a", VOCABULARY)
    assert report.status == "pass"
    assert "uint16 would do" in report.found[0].summary


def test_documents_without_an_end_are_a_warning(tmp_path: Path) -> None:
    write_indexed(tmp_path / "a", [*documents(10), *documents(3, eod=None)], np.uint16)
    report = check(tmp_path / "a", VOCABULARY)
    assert (report.status, problems(report)) == ("warn", ["eod.missing"])
    assert "10 of 13" in report.found[0].summary


def order_of_samples(prefix: Path, length: int, epochs: int, name: str = "train", split: str = "1,0,0") -> Path:
    """An index-cache as Megatron's _build_index_mappings writes it, with its own plain loop (_build_sample_idx)."""
    sizes = read_index(file(prefix, ".idx")).sizes
    order = np.random.RandomState(1)
    chosen = np.tile(np.arange(len(sizes), dtype=np.int32), epochs)
    order.shuffle(chosen)
    total = int(sizes.sum()) * epochs
    samples, place, offset = [(0, 0)], 0, 0
    for _ in range((total - 1) // length):
        left = length + 1
        while left:
            here = int(sizes[chosen[place]]) - offset
            left -= here
            if left <= 0:
                offset, left = offset + left + here - 1, 0
            else:
                place, offset = place + 1, 0
        samples.append((place, offset))
    folder = prefix.parent / "index-cache"
    folder.mkdir(exist_ok=True)
    stem = folder / ("0" * 31 + "a")
    stem.with_suffix(".dsc").write_text(
        f"GPT Dataset\n\nData prefix {prefix}\nDataset name {name}\nNumber of samples 9\nNumber of epochs {epochs}\n"
        f"Sequence length {length}\nRandom seed 1234\nSplit {split}\n"
    )
    np.save(f"{stem}_doc_idx.npy", chosen)
    np.save(f"{stem}_sample_idx.npy", np.array(samples, np.int64))
    np.save(f"{stem}_shuffle_idx.npy", np.arange(len(samples) - 1, dtype=np.uint32))
    return stem


@pytest.mark.parametrize("epochs", [1, 3])
def test_an_order_of_samples_is_stale_where_the_files_were_made_again(prefix: Path, epochs: int) -> None:
    stem = order_of_samples(prefix, 16, epochs)
    assert check(prefix, None).status == "pass"
    write_indexed(prefix, documents(40, seed=2), np.uint16)
    assert problems(check(prefix, None)) == ["cache.stale"]
    write_indexed(prefix, [*documents(), *documents(2)], np.uint16)
    report = mend(prefix, VOCABULARY)
    assert problems(report) == ["cache.stale"]
    assert sorted(path.name for path in stem.parent.iterdir()) == [
        *(f"{stem.name}{end}.bak" for end in (".dsc", "_doc_idx.npy", "_sample_idx.npy", "_shuffle_idx.npy"))
    ]
    assert check(prefix, VOCABULARY).status == "pass"


def test_a_mended_index_makes_the_orders_of_the_damaged_one_stale(prefix: Path) -> None:
    forget_the_end(prefix)
    order_of_samples(prefix, 16, 2)
    assert problems(mend(prefix, None)) == ["idx.eod-not-counted", "cache.stale"]
    assert check(prefix, None).status == "pass"


def test_a_cut_off_order_is_stale_and_one_of_other_files_is_no_matter(prefix: Path) -> None:
    stem = order_of_samples(prefix, 16, 1)
    path = Path(f"{stem}_sample_idx.npy")
    path.write_bytes(path.read_bytes()[:200])
    assert problems(check(prefix, None)) == ["cache.stale"]
    said = stem.with_suffix(".dsc")
    said.write_text(said.read_text().replace(prefix.name, "another"))
    assert check(prefix, None).status == "pass"


def test_nothing_is_mended_that_has_changed_since_it_was_looked_at(prefix: Path) -> None:
    forget_the_end(prefix)
    report = check(prefix, None)
    cut(prefix, 500)
    assert report.repair is not None
    before = content(prefix)
    with pytest.raises(StageError, match="changed"):
        report.repair.carry_out()
    assert content(prefix) == before


def test_a_backup_never_takes_the_place_of_another_and_the_manifest_goes_aside(prefix: Path) -> None:
    file(prefix, ".idx.bak").write_text("kept")
    manifest_path(prefix).write_text(json.dumps({"vocab_size": 1500, "eod_id": EOD}))
    forget_the_end(prefix)
    mend(prefix, None)
    assert file(prefix, ".idx.bak").read_text() == "kept"
    assert file(prefix, ".idx.bak-1").is_file()
    assert not manifest_path(prefix).exists()
    assert file(prefix, ".manifest.json.bak").is_file()


def test_the_ends_are_those_of_the_tokenizer_even_where_megatron_adds_it(models: dict[str, Path]) -> None:
    vocabulary = vocabulary_of(models["bpe"])
    assert (vocabulary.pieces, vocabulary.size, vocabulary.eods) == (1500, 1503, (6,))


def test_the_index_of_the_forgotten_end_has_as_many_ends_as_documents() -> None:
    index = with_end_counted(Index(np.dtype("<u2"), np.array([1, 2], np.int32), np.array([0, 1, 1, 2], np.int64)))
    assert not_empty_ends(index).tolist() == [2, 5]


def test_the_verb_finds_shows_mends_and_exits_by_the_table(prefix: Path, models: dict[str, Path]) -> None:
    folder, right = prefix.parent, content(prefix)
    tokenizer = ("--tokenizer", str(models["bpe"]))
    both = [str(file(prefix, ".bin")), str(file(prefix, ".idx"))]
    fine = wizard("data", "check", *both, *tokenizer, "--json", cwd=folder)
    assert fine.returncode == 0, fine.stderr
    assert [one["documents"] for one in json.loads(fine.stdout)["files"]] == [40]

    forget_the_end(prefix)
    damaged = content(prefix)
    found = wizard("data", "check", prefix.name, cwd=folder)
    assert (found.returncode, content(prefix)) == (2, damaged)
    assert "idx.eod-not-counted" in found.stdout
    assert "data check --fix" in found.stdout
    shown = wizard("data", "check", prefix.name, "--fix", "--dry-run", "--json", cwd=folder)
    assert (shown.returncode, content(prefix)) == (2, damaged)
    assert len(json.loads(shown.stdout)["files"][0]["repair"]) == 2
    asked = wizard("data", "check", prefix.name, "--fix", cwd=folder)
    assert (asked.returncode, content(prefix)) == (64, damaged)
    assert "no terminal to ask on" in asked.stderr
    mended = wizard("data", "check", prefix.name, "--fix", "--yes", *tokenizer, cwd=folder)
    assert (mended.returncode, content(prefix)) == (0, right), mended.stdout + mended.stderr

    write_indexed(prefix, documents(eod=None), np.uint16)
    assert wizard("data", "check", prefix.name, *tokenizer, cwd=folder).returncode == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere"], "neither nowhere.bin nor nowhere.idx"),
        (["a.idx", "--yes"], "go with --fix"),
        (["a.bin", "--fix", "--json"], "--json cannot ask"),
        (["a", "--tokenizer", "a.bin"], "no SentencePiece model"),
        (["a", "--tokenizer", "none.model"], "cannot be read"),
        (["b"], "b.idx is a folder"),
        (["x" * 300], "File name too long"),
    ],
)
def test_wrong_usage_is_64_and_no_traceback(tmp_path: Path, argv: list[str], words: str) -> None:
    write_indexed(tmp_path / "a", documents(2), np.uint16)
    (tmp_path / "b.bin").touch()
    (tmp_path / "b.idx").mkdir()
    done = wizard("data", "check", *argv, cwd=tmp_path)
    assert done.returncode == 64
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_cannot_be_read_is_64_and_no_traceback(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(*_: object) -> None:  # chmod keeps root from nothing
        raise PermissionError(errno.EACCES, "Permission denied", str(file(prefix, ".bin")))

    monkeypatch.setattr("core.data.check._compare", closed)
    assert main(["data", "check", str(prefix)]) == 64
    assert "document.bin cannot be read: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_backup_that_breaks_off_leaves_nothing_behind(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    cut(prefix, 1001)
    report, before = check(prefix, None), sorted(prefix.parent.iterdir())
    assert report.repair is not None

    def full(_source: BinaryIO, copy: BinaryIO, _length: int) -> None:
        copy.write(b"half")
        raise stop

    monkeypatch.setattr("core.data.repair.shutil.copyfileobj", full)
    with pytest.raises((StageError, KeyboardInterrupt)):
        report.repair.carry_out()
    assert sorted(prefix.parent.iterdir()) == before
    assert file(prefix, ".bin").stat().st_size == 1001


def test_the_readers_errors_name_the_command(prefix: Path) -> None:
    forget_the_end(prefix)
    with pytest.raises(InputError, match="data check --fix"):
        IndexedDataset(prefix)
    make_old(prefix)
    with pytest.raises(InputError, match="data check --fix"):
        IndexedDataset(prefix)
