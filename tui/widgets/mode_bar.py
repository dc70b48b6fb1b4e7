"""The line at the top: the modes with their keys, the one that is shown in brackets."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from core.language import tr, tr_later

MODES = {
    "home": tr_later("Home"),
    "doctor": tr_later("Doctor"),
    "setup": tr_later("Setup"),
    "plan": tr_later("Plan"),
    "run": tr_later("Run"),
    "troubleshoot": tr_later("Troubleshoot"),
}
"""Mode id: title. The key of each is its place, from 1."""


class ModeBar(Static):
    """One row. A click on a mode goes there."""

    DEFAULT_CSS = "ModeBar { dock: top; height: 1; background: $panel; text-wrap: nowrap; }"

    def __init__(self, mode: str) -> None:
        super().__init__(markup=False)
        self.mode = mode

    def on_mount(self) -> None:
        parts = []
        for number, (mode, title) in enumerate(MODES.items(), 1):
            label = f"{number} {tr(title)}"
            if mode == self.mode:
                parts.append(Content.styled(f"[{label}]", "bold reverse"))
            else:
                parts.append(Content.styled(f" {label} ", f"@click=app.open_mode('{mode}')"))
        self.update(Content("").join(parts))
