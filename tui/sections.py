"""Texts of details: headings with what belongs below them."""

from __future__ import annotations

from rich.text import Text


def add_section(text: Text, heading: str, content: str) -> None:
    """A heading and its content; nothing where there is no content."""
    if content:
        text.append(f"\n{heading}\n", style="bold").append(f"{content}\n")
