"""Which part of a screen is shown where there is no room for all of them: one row, each with its key."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import Static


class PaneBar(Static):
    """`panes` are (id, key, title). A click on one calls the screen's `show_pane`."""

    DEFAULT_CSS = "PaneBar { height: 1; text-wrap: nowrap; background: $panel; }"

    def __init__(self, panes: Sequence[tuple[str, str, str]], *, id: str | None = None) -> None:
        super().__init__(markup=False, id=id)
        self._panes = panes

    def show(self, chosen: str) -> None:
        """Mark this one."""
        parts = []
        for pane, key, title in self._panes:
            label = f"{key} {title}"
            if pane == chosen:
                parts.append(Content.styled(f"[{label}]", "bold reverse"))
            else:
                parts.append(Content.styled(f" {label} ", f"@click=screen.show_pane('{pane}')"))
        self.update(Content("").join(parts), layout=False)
