"""Token files: Megatron's bytes exactly, and no damage goes unnoticed."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.indexed import IndexedDataset, IndexedWriter, token_dtype, write_indexed
from core.errors import InputError

THREE = [np.array([5, 300, 6]), np.array([6]), np.array([7, 8, 9, 6])]
IDX_BY_HAND = bytes.fromhex(
    "4d4d4944494458 0000"  # MMIDIDX, two zero bytes
    "01000000 00000000"  # version 1
    "08"  # uint16
    "03000000 00000000"  # three sequences
    "04000000 00000000"  # four boundaries
    "03000000 01000000 04000000"  # sizes, int32
    "00000000 00000000 06000000 00000000 08000000 00000000"  # byte offsets, int64
    "00000000 00000000 01000000 00000000 02000000 00000000 03000000 00000000"  # boundaries, int64
)
BIN_BY_HAND = bytes.fromhex("0500 2c01 0600 0600 0700 0800 0900 0600")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Three documents; the name has a dot, as a name may."""
    prefix = tmp_path / "corpus.v1_text_document"
    write_indexed(prefix, THREE, np.uint16)
    return prefix


def file(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def test_the_files_are_byte_for_byte_megatrons(prefix: Path) -> None:
    assert len(IDX_BY_HAND) == 34 + 12 * 3 + 8 * 4
    assert file(prefix, ".idx").read_bytes() == IDX_BY_HAND
    assert file(prefix, ".bin").read_bytes() == BIN_BY_HAND
    assert sorted(path.name for path in prefix.parent.iterdir()) == [f"{prefix.name}.bin", f"{prefix.name}.idx"]


def test_ids_are_16_bits_below_65500_pieces_as_in_megatron() -> None:
    assert [token_dtype(size).name for size in (300, 65499, 65500, 250_000)] == ["uint16", "uint16", "int32", "int32"]


def test_the_reader_gives_back_what_was_written(prefix: Path) -> None:
    data = IndexedDataset(prefix)
    assert isinstance(data.tokens, np.memmap)
    assert data.tokens.ndim == 1
    assert data.sizes.dtype == np.int32
    assert data.document_offsets.dtype == np.int64
    assert data.document_offsets.tolist() == [0, 3, 4, 8]
    assert [data.document(number).tolist() for number in range(data.documents)] == [d.tolist() for d in THREE]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 65535), max_size=20), min_size=1, max_size=20).filter(any),
    st.sampled_from([np.uint16, np.int32, np.int64]),
)
def test_any_documents_survive_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], dtype: type
) -> None:
    prefix = tmp_path_factory.mktemp("round") / "a"
    write_indexed(prefix, [np.array(document, np.int64) for document in documents], dtype)
    data = IndexedDataset(prefix)
    assert data.dtype == dtype
    assert [data.document(number).tolist() for number in range(data.documents)] == documents


def test_several_sequences_of_one_document_are_one_document(tmp_path: Path) -> None:
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 4, 3, 3)
    rest = np.array([2, 1, 3], "<i4").tobytes() + np.array([0, 8, 12, 0, 2, 3], "<i8").tobytes()
    (tmp_path / "a.idx").write_bytes(header + rest)
    (tmp_path / "a.bin").write_bytes(np.arange(6, dtype="<i4").tobytes())
    data = IndexedDataset(tmp_path / "a")
    assert data.sizes.tolist() == [2, 1, 3]
    assert data.document_offsets.tolist() == [0, 3, 6]
    assert data.document(1).tolist() == [3, 4, 5]


def damage(prefix: Path) -> str:
    with pytest.raises(InputError) as caught:
        IndexedDataset(prefix)
    return str(caught.value)


def test_every_cut_of_either_file_is_noticed(prefix: Path) -> None:
    for ending, whole in ((".idx", IDX_BY_HAND), (".bin", BIN_BY_HAND)):
        for size in range(len(whole)):
            file(prefix, ending).write_bytes(whole[:size])
            assert str(file(prefix, ending)) in damage(prefix)
        file(prefix, ending).write_bytes(whole + b"\0")
        assert str(file(prefix, ending)) in damage(prefix)
        file(prefix, ending).write_bytes(whole)


def test_every_changed_byte_of_the_index_is_noticed(prefix: Path) -> None:
    for place in range(len(IDX_BY_HAND)):
        changed = bytearray(IDX_BY_HAND)
        changed[place] ^= 0x01
        file(prefix, ".idx").write_bytes(bytes(changed))
        try:
            data = IndexedDataset(prefix)
        except InputError:
            continue
        # The only change that leaves a whole index is a document boundary that moved to another sequence's start.
        assert place >= 34 + 12 * 3
        assert data.document_offsets[0] == 0
        assert data.document_offsets[-1] == len(data.tokens)


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (0, b"TNTIDX\0\0\0", "old format"),
        (0, b"PK", "is no Megatron index"),
        (9, b"\x02", "format version 2"),
        (17, b"\x07", "unknown token type 7"),
        (34, b"\xff\xff\xff\xff", "a sequence of negative size"),
        (46, b"\x02", "sequence 0 begins at byte 2"),
        (70, b"\x01", "the document boundaries"),
    ],
)
def test_damage_is_named(prefix: Path, place: int, value: bytes, expected: str) -> None:
    changed = bytearray(IDX_BY_HAND)
    changed[place : place + len(value)] = value
    file(prefix, ".idx").write_bytes(bytes(changed))
    assert expected in damage(prefix)


def test_a_missing_file_is_named(prefix: Path) -> None:
    file(prefix, ".bin").unlink()
    assert f"{prefix}.bin does not exist" in damage(prefix)


def test_megatrons_append_eod_bug_is_named(tmp_path: Path) -> None:
    """preprocess_data.py --append-eod: the token is in the .bin, not in the sizes; an empty document has none."""
    short = [document[:-1] for document in THREE] + [np.array([], int)]
    write_indexed(tmp_path / "a", [document for document in short if len(document)], np.uint16)
    with (tmp_path / "a.bin").open("wb") as out:
        for document in short[:1] + short[2:3]:
            out.write(np.append(document, 6).astype("<u2").tobytes())
    said = damage(tmp_path / "a")
    assert "2 tokens more than its index counts, one a document" in said
    assert "--append-eod" in said


def test_ids_that_do_not_fit_are_never_stored(tmp_path: Path) -> None:
    for bad in (65536, -1):
        with pytest.raises(ValueError, match="do not fit uint16"):
            write_indexed(tmp_path / "a", [np.array([1, bad])], np.uint16)
    with (
        IndexedWriter(tmp_path / "a", np.uint16) as writer,
        pytest.raises(ValueError, match="3 tokens for documents of 2"),
    ):
        writer.add(np.array([1, 2, 3]), [1, 1])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_and_nothing_replaced_when_writing_fails(prefix: Path) -> None:
    def failing() -> object:
        yield np.array([1, 2])
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_indexed(prefix, failing(), np.uint16)  # type: ignore[arg-type]
    assert file(prefix, ".idx").read_bytes() == IDX_BY_HAND
    assert len(list(prefix.parent.iterdir())) == 2


def test_the_writer_knows_the_hashes_of_its_files(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "a", np.int32) as writer:
        writer.add(np.array([1, 2, 3]), [2, 1])
        writer.commit()
    for ending, stated in ((".bin", writer.bin_sha256), (".idx", writer.idx_sha256)):
        assert hashlib.sha256((tmp_path / f"a{ending}").read_bytes()).hexdigest() == stated
