"""The fields of one step of the walk, one below the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from textual.app import ComposeResult
from textual.containers import VerticalScroll

from tui.widgets.field_row import FieldRow


class StepForm(VerticalScroll, can_focus=False):
    """Rows by their key; what they hold comes from outside."""

    DEFAULT_CSS = "StepForm { height: 1fr; }"

    def __init__(self, rows: Iterable[FieldRow]) -> None:
        super().__init__()
        self.rows: Mapping[str, FieldRow] = {row.spec.key: row for row in rows}

    def compose(self) -> ComposeResult:
        yield from self.rows.values()

    def focus_first(self) -> None:
        next(iter(self.rows.values())).editor.focus()

    def beside(self, row: FieldRow, by: int) -> FieldRow | None:
        """The row after (1) or before (-1) another; None behind either end."""
        rows = list(self.rows.values())
        place = rows.index(row) + by
        return rows[place] if 0 <= place < len(rows) else None
