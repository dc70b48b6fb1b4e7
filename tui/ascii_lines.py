"""`--ascii`: every line that is about to be drawn loses its box, block and braille characters, whichever widget made it."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_SINGLE = {
    "·": ".", "•": "*", "●": "*", "○": "o", "◉": "*", "■": "#", "□": "o", "▪": "#", "◆": "*", "◇": "o",
    "▶": ">", "►": ">", "▸": ">", "◀": "<", "◄": "<", "▲": "^", "△": "^", "▼": "v", "▽": "v", "▾": "v", "▴": "^",
    "→": ">", "←": "<", "↑": "^", "↓": "v", "⏎": "<", "»": ">", "«": "<", "›": ">", "‹": "<",
    "✔": "+", "✓": "+", "✘": "x", "✗": "x", "✕": "x", "×": "x", "÷": "/", "±": "+", "≤": "<", "≥": ">", "≈": "~",
    "–": "-", "—": "-", "−": "-", "…": "~", "“": '"', "”": '"', "‘": "'", "’": "'", "\u00a0": " ", "°": "'",
}  # fmt: skip


def _box(code: int) -> str:
    """Lines by their direction; corners, tees and crossings are plus signs."""
    if code in (*range(0x2500, 0x2502), *range(0x2504, 0x2506), *range(0x2508, 0x250A), 0x254C, 0x254D, 0x2550):
        return "-"
    if code in (0x2574, 0x2576, 0x2578, 0x257A, 0x257C, 0x257E):
        return "-"
    if code in (*range(0x2502, 0x2504), *range(0x2506, 0x2508), *range(0x250A, 0x250C), 0x254E, 0x254F, 0x2551):
        return "|"
    if code in (0x2575, 0x2577, 0x2579, 0x257B, 0x257D, 0x257F):
        return "|"
    return {0x2571: "/", 0x2572: "\\", 0x2573: "X"}.get(code, "+")


def _block(code: int) -> str:
    """Blocks by how much of the cell they fill: rising bars from `_` to `#`, side bars `|`, shades `.:%`."""
    if 0x2581 <= code <= 0x2588:
        return "_.-~=+*#"[code - 0x2581]
    if 0x2589 <= code <= 0x258F or code in (0x2590, 0x2595):
        return "#" if code <= 0x258B else "|"
    return {0x2580: '"', 0x2594: "-", 0x2591: ".", 0x2592: ":", 0x2593: "%"}.get(code, "#")


def _braille(code: int) -> str:
    """Dots by their number: the shape is lost, the density stays."""
    dots = bin(code - 0x2800).count("1")
    return " " if dots == 0 else "." if dots <= 2 else ":" if dots <= 4 else "#"


_TO_ASCII = str.maketrans(
    _SINGLE
    | {chr(code): _box(code) for code in range(0x2500, 0x2580)}
    | {chr(code): _block(code) for code in range(0x2580, 0x25A0)}
    | {chr(code): _braille(code) for code in range(0x2800, 0x2900)}
)
"""One cell becomes one cell, so that no layout changes. Letters of any language stay as they are."""


class AsciiLines(LineFilter):
    """Textual's last step before a line is drawn."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            segment
            if segment.text.isascii()
            else Segment(segment.text.translate(_TO_ASCII), segment.style, segment.control)
            for segment in segments
        ]
