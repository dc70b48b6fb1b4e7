"""Tracebacks of all styles, taken apart rank by rank."""

from __future__ import annotations

from core.troubleshoot.entries import Entry, entries_of
from core.troubleshoot.prefixes import Origin
from core.troubleshoot.reading import Reading


def annotate(text: str) -> list[Entry]:
    lines = text.splitlines()
    return list(entries_of("a.log", Reading(list(enumerate(lines, 1)), len(lines)), Origin()))


def exceptions(text: str) -> list[str]:
    return [entry.text for entry in annotate(text) if entry.kind == "exception"]


def test_two_ranks_line_by_line_are_two_tracebacks() -> None:
    text = (
        "[rank0]: Traceback (most recent call last):\n"
        "[rank1]: Traceback (most recent call last):\n"
        '[rank0]:   File "a.py", line 1, in f\n'
        '[rank1]:   File "b.py", line 2, in g\n'
        "[rank0]:     raise ValueError\n"
        "[rank1]:     raise KeyError\n"
        "[rank0]: ValueError: one\n"
        "[rank1]: KeyError: two\n"
    )
    found = [(entry.stream, entry.text) for entry in annotate(text) if entry.kind == "exception"]
    assert found == [("rank 0", "ValueError: one"), ("rank 1", "KeyError: two")]


def test_ranks_without_marks_still_give_both_exceptions() -> None:
    text = (
        "Traceback (most recent call last):\nTraceback (most recent call last):\n"
        '  File "a.py", line 1, in f\n  File "a.py", line 1, in f\n    g()\n    g()\n'
        "ValueError: one\nValueError: two\n"
    )
    assert exceptions(text) == ["ValueError: one", "ValueError: two"]
    assert [entry.kind for entry in annotate(text)].count("source") == 2


def test_the_marks_of_python_3_11_and_3_13_are_source() -> None:
    text = (
        "Traceback (most recent call last):\n"
        '  File "a.py", line 1, in f\n'
        "    torch.load(\n"
        "    ~~~~~~~~~~^\n"
        "        path,\n"
        "        ^^^^^\n"
        "    ...<2 lines>...\n"
        "    )\n"
        "    ^\n"
        "  [Previous line repeated 3 more times]\n"
        "RuntimeError: bad\n"
    )
    assert [entry.kind for entry in annotate(text)][2:-1] == ["source"] * 8
    assert exceptions(text) == ["RuntimeError: bad"]


def test_linked_tracebacks_are_one_chain() -> None:
    text = (
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\nKeyError: 1\n\n'
        "During handling of the above exception, another exception occurred:\n\n"
        'Traceback (most recent call last):\n  File "a.py", line 2, in f\n    h()\nValueError: 2\n'
    )
    assert len({entry.chain for entry in annotate(text) if entry.kind == "exception"}) == 1


def test_the_lines_of_a_message_belong_to_it() -> None:
    text = (
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\n'
        "RuntimeError: Error(s) in loading state_dict for Model:\n"
        "\tsize mismatch for a.weight\n"
        "[2024-01-01 00:00:00] [INFO] next\n"
    )
    assert [entry.kind for entry in annotate(text)][3:] == ["exception", "message", "plain"]


def test_a_progress_bar_before_the_traceback_does_not_hide_it() -> None:
    text = ' 50%|█████     | 5/10 [00:01<00:01]Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\nqueue.Empty\n'
    assert exceptions(text) == ["queue.Empty"]


def test_a_box_drawn_by_rich_is_source() -> None:
    text = (
        "╭──────── Traceback (most recent call last) ────────╮\n"
        "│ /w/a.py:96 in <module>                            │\n"
        '│    94 │   # raise RuntimeError("CUDA out of memory") │\n'
        "╰────────────────────────────────────────────────────╯\n"
        "ValueError: bad\n"
    )
    assert [entry.kind for entry in annotate(text)] == ["header", "source", "source", "source", "exception"]


def test_escapes_are_gone_before_anything_is_read() -> None:
    assert exceptions("\x1b[31mTraceback (most recent call last):\x1b[0m\n\x1b]0;title\x07ValueError: x\n") == [
        "ValueError: x"
    ]


def test_a_traceback_that_a_json_log_folds_into_one_line_is_read_as_lines() -> None:
    folded = r'{"level": "error", "exc": "Traceback (most recent call last):\n  File \"a.py\", line 1, in f\n    g()\nKeyError: \"x\""}'
    found = annotate(folded + "\nafter\n")
    assert [entry.kind for entry in found] == ["header", "frame", "source", "exception", "message"]
    assert [entry.number for entry in found] == [1, 1, 1, 1, 2]
    assert found[3].text.startswith('KeyError: "x"')


def test_an_exception_that_another_announces_belongs_to_it() -> None:
    text = "torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:\nAttributeError: no meta\n"
    one, other = annotate('Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\n' + text)[-2:]
    assert one.chain == other.chain is not None
    one, other = annotate("ValueError: one\nAttributeError: two\n")
    assert one.chain != other.chain


def test_what_the_doctor_says_has_not_happened() -> None:
    report = (
        "✗ fail    build.cxx              GCC 12 is too new for nvcc 11.8\n    found: c++ 12.2.0\n    why: nvcc ends with “unsupported GNU version”\n"
        "✓ pass    build.ninja            ninja 1.13\nerror: build.cxx: GCC 12 is too new\n"
    )
    kinds = [entry.kind for entry in annotate(report)]
    assert kinds == ["source"] * 4 + ["exception"]
