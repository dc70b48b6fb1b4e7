"""What every screen shares: the mode bar above, the footer below, and keys whose words are in the user's language."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from textual.app import ComposeResult
from textual.binding import ActiveBinding
from textual.screen import ModalScreen, Screen, ScreenResultType
from textual.widget import Widget

from core.language import tr
from tui.widgets.key_bar import KeyBar
from tui.widgets.mode_bar import ModeBar

if TYPE_CHECKING:
    from tui.app import WizardApp

STYLES = Path(__file__).parent.parent / "styles"


class _OwnScreen(Screen[ScreenResultType]):
    """A screen of this application: its stylesheet, its application's type, its keys in the user's language."""

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

    @property
    def active_bindings(self) -> dict[str, ActiveBinding]:
        """The keys that work now, as the footer, the help and the palette show them.

        BINDINGS are made when a class is, before the language is known: their words are marked with tr_later() and
        translated here.
        """
        return {
            key: active._replace(
                binding=replace(
                    active.binding,
                    description=tr(active.binding.description),
                    tooltip=tr(active.binding.tooltip),
                ),
                tooltip=tr(active.tooltip),
            )
            for key, active in super().active_bindings.items()
        }


class WizardScreen(_OwnScreen[ScreenResultType]):
    """A mode's first screen, or one pushed above it. `MODE` is the mode it belongs to; `HELP` is a sentence for `?`.

    A binding's `description` is the footer's one or two words; its `tooltip` is the sentence that `?` shows.
    """

    MODE: str = "home"

    def compose(self) -> ComposeResult:
        yield ModeBar(self.MODE)
        yield from self.body()
        yield KeyBar()

    def body(self) -> Iterable[Widget]:
        """The widgets between the mode bar and the footer."""
        raise NotImplementedError


class WizardDialog(_OwnScreen[ScreenResultType], ModalScreen[ScreenResultType]):
    """A question or a page above a screen; `dismiss(answer)` ends it."""
