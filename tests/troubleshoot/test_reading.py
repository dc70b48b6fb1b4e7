"""Logs of any size: what matters is kept with its line number, in bounded memory, and nothing in a line stops the reading."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from core.troubleshoot import reading
from core.troubleshoot.diagnose import diagnose
from core.troubleshoot.matching import Matcher
from core.troubleshoot.reading import read_log
from core.troubleshoot.signatures import load_signatures

WANTED = Matcher(load_signatures()).wanted
STEP = "step {n}/900000  loss {loss:.4f}  lr 1.00e-03  grad 0.70  12,345 tokens/s\n"


def steps(count: int, first: int = 1) -> str:
    return "".join(STEP.format(n=first + n, loss=9 - n / count) for n in range(count))


@pytest.fixture
def sieved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every log counts as a large one, read in small blocks."""
    monkeypatch.setattr(reading, "WHOLE", 1)
    monkeypatch.setattr(reading, "BLOCK", 4096)


def test_a_large_log_keeps_what_matters_with_its_line_numbers(sieved: None) -> None:
    lines = steps(20_000).splitlines()
    lines[12_345] = "RuntimeError: CUDA out of memory. Tried to allocate"
    read = read_log(io.BytesIO("\n".join(lines).encode()), WANTED)
    assert read.total == 20_000
    assert (12_346, lines[12_345]) in read.lines
    assert all(lines[number - 1] == text for number, text in read.lines)
    assert len(read.lines) < 2000
    kept = {number for number, _ in read.lines}
    assert {12_346 - reading.BEFORE, 12_346 + reading.AFTER, 1, 20_000} <= kept


def test_a_large_log_gives_the_same_verdict_as_its_parts_that_matter(tmp_path: Path, sieved: None) -> None:
    mixed = Path(__file__).parent / "mixed"
    chance = random.Random(4)
    for path in chance.sample(sorted(mixed.glob("*.log")), 12):
        before = diagnose([path]).verdict
        padded = tmp_path / path.name
        padded.write_text(steps(3000) + path.read_text(encoding="utf-8"), encoding="utf-8")
        assert diagnose([padded]).verdict == before, path.name


def test_redraws_of_a_progress_bar_do_not_move_line_numbers(sieved: None) -> None:
    bar = "".join(f"\r{n}%|###| {n}/100 [00:{n:02d}<00:10]" for n in range(100))
    text = (bar + "\n") * 50 + "RuntimeError: CUDA out of memory\r\nafter\r\n"
    read = read_log(io.BytesIO(text.encode()), WANTED)
    assert read.total == 52
    assert (51, "RuntimeError: CUDA out of memory") in [(number, line.strip()) for number, line in read.lines]


@pytest.mark.parametrize("whole", [True, False])
def test_a_line_of_200000_characters_does_not_hide_what_is_in_it(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not whole:
        monkeypatch.setattr(reading, "WHOLE", 1)
    path = tmp_path / "long.log"
    path.write_text("x" * 150_000 + " RuntimeError: CUDA out of memory. Tried to allocate 2 GiB " + "y" * 50_000 + "\n")
    found = diagnose([path])
    assert (found.verdict, found.findings[0].line) == ("cuda-oom", 1)
    assert len(found.findings[0].text) <= 500


def test_a_line_without_end_is_read_in_bounded_memory(sieved: None) -> None:
    read = read_log(io.BytesIO(b"z" * 600_000 + b"\nlast\n"), WANTED)
    assert (2, "last") in read.lines
    assert sum(len(text) for _, text in read.lines) < 600_000


def test_thousands_of_different_errors_keep_the_first_and_the_last(
    sieved: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_LINES", 500)
    words = [f"{a}{b}{c}" for a in "ghijkl" for b in "mnopqr" for c in "stuvwx"]
    text = "".join(f"worker {a} {b} error: odd thing\n" for a in words for b in words[::9])
    read = read_log(io.BytesIO(text.encode()), WANTED)
    numbers = [number for number, _ in read.lines]
    assert numbers[0] == 1
    assert numbers[-1] == text.count("\n")
    assert len(numbers) <= 500 + reading.LATEST_LINES + reading.TAIL


def test_hostile_text_is_read_to_its_end(tmp_path: Path) -> None:
    chance = random.Random(7)
    parts = [
        "Traceback (most recent call last):",
        'File "',
        "a.b.",
        "A" * 90,
        "[rank",
        "[1,",
        "](",
        "\x1b[",
        "\x9b",
        "│",
        "error: ",
        "0",
        "\\",
        "Error",
    ]
    lines = ["".join(chance.choice(parts) for _ in range(chance.randint(1, 300))) for _ in range(300)]
    path = tmp_path / "hostile.log"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert diagnose([path]).verdict
    path.write_bytes(b"step 1/9  loss 4.0\n" * 500 + chance.randbytes(300_000))
    assert diagnose([path]).verdict
