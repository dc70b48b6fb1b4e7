"""What every screen shares: the mode bar above, the footer below."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer

from tui.widgets.mode_bar import ModeBar

if TYPE_CHECKING:
    from tui.app import WizardApp

STYLES = Path(__file__).parent.parent / "styles"


class WizardScreen(Screen[None]):
    """A mode's first screen, or one pushed above it. `MODE` is the mode it belongs to."""

    MODE: ClassVar[str] = "home"

    def __init_subclass__(cls, **options: bool) -> None:
        """A screen brings the stylesheet of its module's name: parsing all of them would hold up the first frame."""
        super().__init_subclass__(**options)
        sheet = STYLES / f"{cls.__module__.rpartition('.')[2]}.tcss"
        if sheet.is_file():
            cls.CSS_PATH = sheet

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
