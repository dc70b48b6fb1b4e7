"""Lines of Japanese break between any two characters: rich, by which Textual wraps, knows only spaces.

A Japanese sentence has few spaces, so that a line would end at the first one (`1 ステップが GPU` and nothing more).
"""

from __future__ import annotations

from core.text.cells import units


def use_line_breaks() -> None:
    """Let rich and Textual take their words from `core.text.cells.units`; English stays as it is.

    There is no public way in. Textual's version is exact, and a test says when this one no longer works.
    """
    import rich._wrap

    rich._wrap.words = units
