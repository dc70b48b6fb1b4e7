"""YAML is read safely: every surprise is refused with its line and column."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import pytest

from core.errors import InputError
from core.yaml_source import Place, read_yaml, read_yaml_file

SHIPPED = Path(__file__).parent.parent / "presets" / "quickstart.yaml"


def test_values_keep_their_type_and_place() -> None:
    document = read_yaml("a: 1e-4\nb:\n  - yes\n  - 'no'\n  - 1_000\n  - ~\n  - true\n", "f")
    assert document.value == {"a": 1e-4, "b": ["yes", "no", 1000, None, True]}
    assert document.places[("a",)] == Place("f", 1, 1)
    assert document.places[("b", 2)] == Place("f", 5, 5)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3:1", "stands twice; first in line 1"),
        ("a: &x [1]\nb: *x\n", "f:1:4", "anchors"),
        ("a: *x\n", "f:1:4", "aliases"),
        ("a: !!python/object:os.system x\n", "f:1:4", "tags"),
        ("a: !!int 3\n", "f:1:4", "tags"),
        ("a:\n\tb: 1\n", "f:2:1", "not valid YAML"),
        ("a: [1, 2\n", "f:2:1", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "f:2:1", "second document"),
        ("? [a, b]\n: 1\n", "f:1:3", "a key must be a word"),
        ("a: " + "9" * 5000, "f:1:4", "digits"),
        ("a: 1e999", "f:1:4", "too large"),
        ("[" * 50 + "]" * 50, "f:1:21", "nested deeper"),
    ],
)
def test_surprises_are_refused_with_their_place(text: str, place: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_yaml(text, "f")
    assert caught.value.message.startswith(f"{place}:")
    assert words in caught.value.message


def test_bytes_that_are_not_utf8_are_named_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"a: 1\nb: x\xff\n")
    with pytest.raises(InputError, match=r"p\.yaml:2:5: not UTF-8 \(byte 0xff\)"):
        read_yaml_file(path)


def test_an_exploding_file_costs_nothing() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(f"k{i}: &k{i} [*a,*a,*a,*a]\n" for i in range(40))
    started = time.process_time()
    with pytest.raises(InputError):
        read_yaml(bomb, "f")
    assert time.process_time() - started < 5  # not a speed claim: an expanded bomb would never end


def test_mutants_of_a_preset_are_read_or_refused_but_never_crash() -> None:
    seed = 20261124
    generator = random.Random(seed)
    original = SHIPPED.read_text(encoding="utf-8")
    alphabet = "{}[]:,&*!|>'\"%@`#-?\t\n\x00\ufeff\u2028 a1é\\"
    for _ in range(1500):
        text = list(original)
        for _ in range(generator.randint(1, 6)):
            position = generator.randrange(len(text))
            text[position : position + generator.randint(0, 3)] = generator.choice(alphabet)
        with contextlib.suppress(InputError):
            read_yaml("".join(text), f"mutant of seed {seed}")
