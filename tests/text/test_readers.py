"""Readers: nothing is lost, nothing is silent, and no file of a user ends in a traceback."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InputError
from core.text import records as raw
from core.text.readers import Document, Rejected, documents, look_into
from core.text.records import Position


def read(*files: Path, **options: str) -> list[Document | Rejected]:
    return list(documents([str(file) for file in files], **options))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


BAD_LINES: list[tuple[bytes, str]] = [
    (b"\xff\xfa", "invalid UTF-8 at byte 0"),
    (b'{"text": "ab\xe3\x81"}', "invalid UTF-8 at byte 12"),
    (b'{"text": "a\\u0000b"}', "a NUL character in the text"),
    (b'{"text": "a\0b"}', "a NUL byte in the line"),
    (b'{"text": "\\ud800"}', "a lone surrogate in the text"),
    (b'{"text": "a\\udc00b"}', "a lone surrogate in the text"),
    (b'[{"text": "a"}]', "not an object but an array"),
    (b"17", "not an object but a number"),
    (b'"text"', "not an object but a string"),
    (b"null", "not an object but null"),
    (b'{"body": "a"}', "no 'text' among the keys"),
    (b'{"text": null}', "'text' is not a string but null"),
    (b'{"text": ["a"]}', "'text' is not a string but an array"),
    (b'{"text": true}', "'text' is not a string but a boolean"),
    (b'{"text": "a", "text": "b"}', "'text' is there twice"),
    (b'{"text": ""}', "the text is empty"),
    (b'{"text": " \\n\\t"}', "the text is empty"),
    (b'{"text": "a"', "not JSON: "),
    (b"{'text': 'a'}", "not JSON: "),
    (b"[" * 5000, "not JSON: depth limit exceeded"),
    (b"", "a blank line"),
    (b"   ", "a blank line"),
]


def test_every_bad_line_is_listed_with_its_number_and_reason_and_every_good_one_is_read(tmp_path: Path) -> None:
    good = orjson.dumps({"text": "good"})
    lines = [line for bad, _ in BAD_LINES for line in (bad, good)]
    found = read(written(tmp_path / "a.jsonl", b"\n".join(lines) + b"\n"))
    assert [entry.line for entry in found] == list(range(1, len(lines) + 1))
    for (bad, reason), entry in zip(BAD_LINES, found[::2], strict=True):
        assert isinstance(entry, Rejected), bad
        assert entry.reason.startswith(reason), (bad, entry.reason)
    assert all(isinstance(entry, Document) and entry.text == "good" for entry in found[1::2])


def test_a_line_that_was_cut_off_is_told_from_one_that_only_lacks_its_newline(tmp_path: Path) -> None:
    whole, cut = b'{"text": "a"}\n{"text": "b"}', b'{"text": "a"}\n{"text": "b'
    assert [type(entry) for entry in read(written(tmp_path / "a.jsonl", whole))] == [Document, Document]
    assert "the last line is cut off" in read(written(tmp_path / "b.jsonl", cut))[1].reason  # type: ignore[union-attr]


def test_a_bom_windows_line_ends_and_repeated_keys_inside_do_no_harm(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n\xef\xbb\xbf{"meta": {"text": "x"}, "text": "say \\"text\\""}\r\n'
    assert [entry.text for entry in read(written(tmp_path / "a.jsonl", data))] == ["a\r\nb", 'say "text"']  # type: ignore[union-attr]


def test_a_record_may_hold_anything_beside_its_text(tmp_path: Path) -> None:
    line = {"id": 10**30 % 7, "meta": {"a": [1, {"b": None}]}, "body": "x", "text": "wrong"}
    (found,) = read(written(tmp_path / "a.jsonl", orjson.dumps(line)), text_key="body")
    assert found == Document(str(tmp_path / "a.jsonl"), 1, "x")


LINES = st.lists(
    st.one_of(
        st.binary(max_size=40).map(lambda data: data.replace(b"\n", b" ")),
        st.text(max_size=20).map(lambda text: json.dumps({"text": text}).encode()),
        st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=4).map(
            lambda value: json.dumps(value).encode()
        ),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(LINES, st.booleans(), st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst"]))
def test_no_line_is_lost_whatever_is_in_it(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], last_newline: bool, ending: str
) -> None:
    data = b"\n".join(lines) + (b"\n" if last_newline and lines else b"")
    count = data.count(b"\n") + (0 if not data or data.endswith(b"\n") else 1)
    path = tmp_path_factory.mktemp("fuzz") / f"a{ending}"
    if ending == ".jsonl" and data.startswith(tuple(raw.FOREIGN_BEGINNINGS)):
        return
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    found = read(written(path, pack(data)))
    assert [entry.line for entry in found] == list(range(1, count + 1))


TEXTS = st.lists(st.text(min_size=1, max_size=50), min_size=1, max_size=10)


@settings(max_examples=50, deadline=None)
@given(TEXTS)
def test_all_formats_give_the_same_documents(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("formats")
    data = b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)
    # Two compressed parts one after another are one file, as `cat a.gz b.gz` makes it.
    half = len(data) // 2
    paths = [
        written(folder / "a.jsonl", data),
        written(folder / "b.jsonl.gz", gzip.compress(data[:half]) + gzip.compress(data[half:])),
        written(folder / "c.jsonl.zst", zstandard.compress(data[:half]) + zstandard.compress(data[half:])),
        folder / "d.parquet",
    ]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), paths[3])
    first, *others = ([entry[1:] for entry in read(path)] for path in paths)
    assert all(other == first for other in others)


def test_a_text_file_has_a_document_a_paragraph(tmp_path: Path) -> None:
    data = "\ufeff\n\none\r\n two \n\n \t\n\nthree\n\n\u3000four".encode()
    found = read(written(tmp_path / "a.txt", data))
    assert [entry[1:] for entry in found] == [(3, "one\n two "), (8, "three"), (10, "\u3000four")]


def test_a_text_file_without_blank_lines_is_cut_at_line_ends_into_documents_of_a_megabyte(tmp_path: Path) -> None:
    line = "x" * 99 + "\n"
    found = read(written(tmp_path / "a.txt", (line * 25_000).encode()))
    texts = [entry.text for entry in found if isinstance(entry, Document)]
    assert [len(text) for text in texts] == [1_048_599, 1_048_599, 402_799]
    assert "\n".join(texts) + "\n" == line * 25_000
    assert found[1].line == 10_487


def test_a_paragraph_that_is_not_utf8_is_rejected_at_its_first_line(tmp_path: Path) -> None:
    found = read(written(tmp_path / "a.txt", b"good\n\nb\xe9\xe9\nstill bad\n\ngood"))
    assert [(entry.line, type(entry)) for entry in found] == [(1, Document), (3, Rejected), (6, Document)]


def test_nfkc_is_applied_once_where_asked(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", orjson.dumps({"text": "ＡＢＣ ｶﾞ ㍿"}))
    assert read(path)[0][2] == "ＡＢＣ ｶﾞ ㍿"
    assert read(path, normalize="nfkc")[0][2] == "ABC ガ 株式会社"


def test_parquet_rows_are_read_in_order_with_nulls_and_bad_bytes_rejected(tmp_path: Path) -> None:
    values = [b"one", None, b"\xff", "二".encode(), b""]
    table = pyarrow.table({"id": range(5), "body": pyarrow.array(values, pyarrow.binary())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert [entry[1:] for entry in read(tmp_path / "a.parquet", text_key="body")] == [
        (1, "one"),
        (2, "body is null"),
        (3, "invalid UTF-8 at byte 0"),
        (4, "二"),
        (5, "the text is empty"),
    ]


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_parquet_text_of_any_arrow_type_is_text(tmp_path: Path, kind: str) -> None:
    array = pyarrow.array(["a", "b", "a"])
    array = array.dictionary_encode() if kind == "dictionary" else array.cast(getattr(pyarrow, kind)())
    pyarrow.parquet.write_table(pyarrow.table({"text": array}), tmp_path / "a.parquet")
    assert [entry[2] for entry in read(tmp_path / "a.parquet")] == ["a", "b", "a"]


def refused(path: Path, **options: str) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    return caught.value


def test_files_that_cannot_be_read_are_named_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    paths = [tmp_path / "missing.jsonl", tmp_path / "folder.jsonl", written(tmp_path / "a.csv", b"a")]
    with pytest.raises(InputError) as caught:
        read(*paths)
    assert [str(path) in str(caught.value) for path in paths] == [True] * 3
    assert "unknown ending" in str(caught.value)


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_a_compressed_file_cut_in_the_middle_is_refused_after_the_lines_that_were_read(
    tmp_path: Path, ending: str
) -> None:
    lines = [orjson.dumps({"text": f"{number} {number * 7919 % 10007}"}) for number in range(50_000)]
    pack = gzip.compress if ending.endswith("gz") else zstandard.compress
    packed = pack(b"\n".join(lines) + b"\n")
    for cut in (len(packed) // 2, len(packed) - 1, len(packed) - 4):
        path = written(tmp_path / f"a{ending}", packed[:cut])
        got = 0
        with pytest.raises(InputError, match=r"is broken after line (\d+)") as caught:
            for got, _entry in enumerate(documents([str(path)]), start=1):  # noqa: B007
                pass
        assert f"after line {got}:" in str(caught.value)
        assert got > 0
    bad = bytearray(packed)
    bad[len(bad) // 2] ^= 0xFF
    assert "is broken after line" in str(refused(written(tmp_path / f"b{ending}", bytes(bad))))


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", gzip.compress(b"{}"), "is gzip"),
        ("a.jsonl", zstandard.compress(b"{}"), "is zstandard"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "is UTF-16"),
        ("a.txt", "text".encode("utf-16"), "is UTF-16"),
        ("a.jsonl", b"PAR1\0\0", "is Parquet"),
        ("a.jsonl.gz", b'{"text": "a"}\n', "is broken after line 0"),
        ("a.jsonl.zst", b'{"text": "a"}\n', "is broken after line 0"),
        ("a.parquet", b'{"text": "a"}\n', "is broken after row 0"),
        ("a.parquet", b"", "is broken after row 0"),
    ],
)
def test_a_file_of_another_kind_than_its_ending_says_is_refused(
    tmp_path: Path, name: str, data: bytes, expected: str
) -> None:
    assert expected in str(refused(written(tmp_path / name, data)))


def test_a_parquet_file_without_the_column_names_those_it_has(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
    assert "has no column 'text', only body, n" in str(refused(tmp_path / "a.parquet"))
    assert "holds int64, expected text" in str(refused(tmp_path / "a.parquet", text_key="n"))


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", b""), ("a.txt", b"\n\n"), ("a.jsonl.gz", gzip.compress(b"")), ("a.jsonl.zst", b"")):
        assert read(written(tmp_path / name, data)) == []


def test_the_position_ends_at_the_size_of_the_files(tmp_path: Path) -> None:
    data = b'{"text": "a"}\n' * 1000
    paths = [written(tmp_path / "a.jsonl", data), written(tmp_path / "b.jsonl.gz", gzip.compress(data))]
    position = Position()
    for _ in documents([str(path) for path in paths], position=position):
        assert 0 <= position.done <= position.total
    assert position.done == position.total == sum(path.stat().st_size for path in paths)


READ_ALL = """
import sys
from pathlib import Path
from core.text.readers import Document, documents
for entry in documents([sys.argv[1]]):
    print(entry.line, type(entry).__name__, len(entry.text) if isinstance(entry, Document) else entry.reason)
    del entry
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print("peak MiB", int(status["VmHWM"].split()[0]) >> 10)
"""


def test_lines_of_a_hundred_megabytes_are_survived_in_half_a_gigabyte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "first"}\n')
        file.write(b'{"text": "' + b"long " * (12 << 20) + b'"}\n')  # 60 MiB: read
        file.write(b'{"text": "' + b"long " * (20 << 20) + b'"}\n')  # 100 MiB: passed over
        file.write(b"[" + b"1," * (30 << 20) + b"1]\n")  # as an object in memory it would have 500 MiB
        file.write(b'{"text": "last"}\n')
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    *lines, peak = done.stdout.splitlines()
    assert lines == [
        "1 Document 5",
        f"2 Document {5 * (12 << 20)}",
        "3 Rejected the line is longer than 64 MiB",
        "4 Rejected not an object but an array or a value",
        "5 Document 4",
    ]
    assert int(peak.split()[-1]) < 512


def test_a_look_into_the_files_counts_what_a_preflight_needs(tmp_path: Path) -> None:
    data = orjson.dumps({"text": "abc"}) + b"\n" + orjson.dumps({"text": "ab\n日本日本"}) + b"\nbad\n"
    look = look_into([str(written(tmp_path / "a.jsonl", data))])
    assert (look.documents, look.rejected, look.longest_bytes, look.complete) == (2, 1, 15, True)
    assert look.distinct_characters == len(set("abc\n日本"))
    assert look.first_rejected.endswith(
        "a.jsonl:3: not JSON: unexpected character, expected a JSON value at character 0"
    )


def test_a_look_stops_at_its_limit_and_says_so(tmp_path: Path) -> None:
    path = str(written(tmp_path / "a.jsonl", b"".join(orjson.dumps({"text": "x" * 1000}) + b"\n" for _ in range(100))))
    assert look_into([path], limit_bytes=10_000).complete is False
    assert look_into([path], limit_bytes=10_000).documents < 100
    assert look_into([path], limit_bytes=1 << 20).complete is True


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_a_look_finds_all_distinct_characters(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("look") / "a.jsonl"
    path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
    usable = [entry.text for entry in read(path) if isinstance(entry, Document)]
    assert look_into([str(path)]).distinct_characters == len(set("".join(usable)))
