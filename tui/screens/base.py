"""What every screen shares: the mode bar above, the footer below."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer

from tui.widgets.mode_bar import ModeBar

if TYPE_CHECKING:
    from tui.app import WizardApp


class WizardScreen(Screen[None]):
    """A mode's first screen, or one pushed above it. `MODE` is the mode it belongs to."""

    MODE: ClassVar[str] = "home"

    @property
    def wizard(self) -> WizardApp:
        """The application, with its own type."""
        return cast("WizardApp", self.app)

    def compose(self) -> ComposeResult:
        yield ModeBar(self.MODE)
        yield from self.body()
        yield Footer(compact=True, show_command_palette=False)

    def body(self) -> Iterable[Widget]:
        """The widgets between the mode bar and the footer."""
        raise NotImplementedError
