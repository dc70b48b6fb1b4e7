"""A log of any size: its end is followed, what is skipped is counted, and a search goes through all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tui.log_reader import LINES, LONGEST, LogTail, around, newer, of_rank, older, search, shown


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"[rank{number % 4}]: line {number}\n" for number in range(50_000)))
    return path


def texts(lines: object) -> list[str]:
    return [line.text for line in lines]  # type: ignore[attr-defined]


def test_the_tail_holds_the_newest_lines_and_where_they_begin(log: Path) -> None:
    tail = LogTail(log)
    assert tail.read()
    assert not tail.read()
    assert len(tail.lines) == LINES
    assert tail.lines[-1].text == "[rank3]: line 49999"
    data = log.read_bytes()
    for line in tail.lines:
        assert data[line.byte :].startswith(line.text.encode() + b"\n")


def test_a_half_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"one\ntw")
    tail = LogTail(path)
    tail.read()
    assert texts(tail.lines) == ["one"]
    with path.open("ab") as file:
        file.write(b"o\n")
    tail.read()
    assert texts(tail.lines) == ["one", "two"]


def test_a_flood_is_skipped_and_the_skipped_lines_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("start\n")
    tail = LogTail(path)
    tail.read()
    tail._line_bytes = 100.0
    with path.open("a") as file:
        file.writelines(f"{number:>99}\n" for number in range(40_000))
    tail.read()
    assert tail.lines[-1].text.strip() == "39999"
    read = (4_000_000 - (tail.first_byte - len("start\n"))) / 100
    assert tail.skipped == pytest.approx(40_000 - read, abs=1)


def test_a_log_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("a long old line\n")
    tail = LogTail(path)
    tail.read()
    path.write_text("new\n")
    tail.read()
    assert texts(tail.lines) == ["new"]


def test_older_and_newer_lines_join_without_a_gap(log: Path) -> None:
    tail = LogTail(log)
    tail.read()
    lines = list(tail.lines)
    while lines[0].byte > 0:
        lines[:0] = older(log, lines[0].byte)
    assert texts(lines) == log.read_text().splitlines()
    forward = older(log, lines[3000].byte)
    while more := newer(log, forward[-1].byte):
        forward += more
    assert texts(forward) == texts(lines[lines.index(forward[0]) :])


def test_search_finds_lines_in_either_direction_through_the_whole_file(log: Path) -> None:
    size = log.stat().st_size
    data = log.read_bytes()
    found = search(log, "LINE 12345", size, backwards=True, go_on=lambda: True)
    assert found is not None
    assert data[found:].startswith(b"[rank1]: line 12345\n")
    assert search(log, "line 12345", found, backwards=True, go_on=lambda: True) is None
    # 123 stands in 123, 1230..1239, 12300..12399, and in 1123 ...: the next one behind line 12345 is 12346
    after = search(log, "line 123", found, backwards=False, go_on=lambda: True)
    assert after is not None
    assert data[after:].startswith(b"[rank2]: line 12346\n")
    assert search(log, "no such words", size, backwards=True, go_on=lambda: True) is None
    assert search(log, "line 1", size, backwards=True, go_on=lambda: False) is None


def test_a_match_is_shown_among_its_neighbours(log: Path) -> None:
    found = search(log, "line 20000", 0, backwards=False, go_on=lambda: True)
    assert found is not None
    lines = texts(around(log, found))
    place = lines.index("[rank0]: line 20000")
    assert lines[place - 1] == "[rank3]: line 19999"
    assert lines[place + 1] == "[rank1]: line 20001"


def test_a_search_does_not_match_what_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"\x1b[31mred\x1b[0m\nplain 31m\n")
    assert search(path, "31m", path.stat().st_size, backwards=True, go_on=lambda: True) == 13
    assert search(path, "31m", 13, backwards=True, go_on=lambda: True) is None


def test_only_lines_of_a_rank(log: Path) -> None:
    wanted = of_rank("3", [])
    tail = LogTail(log, wanted)
    tail.read()
    assert tail.lines
    assert all(text.startswith("[rank3]: ") for text in texts(tail.lines))
    assert all(text.startswith("[rank3]: ") for text in texts(older(log, tail.lines[0].byte, wanted)))
    found = search(log, "line 1", 200_000, backwards=False, go_on=lambda: True, wanted=wanted)
    assert found is not None
    assert log.read_bytes()[found:].startswith(b"[rank3]: line 1")


def test_ranks_behind_names_of_hosts(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"node-{n % 2}: [rank{n % 4}]: Traceback (most recent call last):\n" for n in range(8)))
    plain_tail = LogTail(path)
    plain_tail.read()
    tail = LogTail(path, of_rank("2", list(plain_tail.lines)))
    tail.read()
    assert texts(tail.lines) == ["node-0: [rank2]: Traceback (most recent call last):"] * 2


def test_hostile_lines_are_plain_text() -> None:
    assert shown(b"[red]x[/]\x1b[31m\x1b]0;title\x07y\r") == "[red]x[/]y"
    assert shown(b"10%\r20%\r30%") == "30%"
    assert shown(b"a\tb") == "a       b"
    assert shown(b"\xff\xfe") == "\ufffd\ufffd"
    long = shown(b"x" * 1_000_000)
    assert len(long) == LONGEST + 1


def test_one_line_longer_than_every_block(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"first\n" + b"x" * 3_000_000 + b"\nlast\n")
    tail = LogTail(path)
    tail.read()
    assert texts(tail.lines) == ["last"]
    before = older(path, tail.lines[0].byte)
    assert before
    assert len(before[-1].text) == LONGEST + 1
    assert search(path, "first", path.stat().st_size, backwards=True, go_on=lambda: True) == 0
