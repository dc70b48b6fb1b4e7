"""The application: routing only. Each screen is a file of its own; all work is done by core.

Screens are imported when they are first shown: the first frame must not wait for pydantic or numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen

from core.language import tr_later
from core.runs.directory import RunDirectory
from tui.status_marks import ascii_only
from tui.widgets.mode_bar import MODES

if TYPE_CHECKING:
    from tui.draft import Draft

STYLES = Path(__file__).parent / "styles"


def _home() -> Screen[Any]:
    from tui.screens.home import HomeScreen

    return HomeScreen()


def _doctor() -> Screen[Any]:
    from tui.screens.doctor import DoctorScreen

    return DoctorScreen()


def _setup() -> Screen[Any]:
    from tui.screens.setup import SetupScreen

    return SetupScreen()


def _plan() -> Screen[Any]:
    from tui.screens.plan import PlanScreen

    return PlanScreen()


def _run() -> Screen[Any]:
    from tui.screens.run import RunScreen

    return RunScreen()


def _troubleshoot() -> Screen[Any]:
    from tui.screens.troubleshoot import TroubleshootScreen

    return TroubleshootScreen()


class WizardApp(App[int]):
    """llm-wizard's screens. Leaving it never touches a run."""

    TITLE = "llm-wizard"
    CSS_PATH: ClassVar = STYLES / "app.tcss"
    MODES: ClassVar[dict[str, Callable[[], Screen[Any]]]] = {
        "home": _home,
        "doctor": _doctor,
        "setup": _setup,
        "plan": _plan,
        "run": _run,
        "troubleshoot": _troubleshoot,
    }
    DEFAULT_MODE = "home"
    HORIZONTAL_BREAKPOINTS: ClassVar = [(0, "-narrow"), (110, "-wide")]
    VERTICAL_BREAKPOINTS: ClassVar = [(0, "-short"), (34, "-tall")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", tr_later("Quit"), show=False, priority=True),
        Binding("ctrl+c", "interrupted", tr_later("Quit"), show=False, priority=True),
        Binding("ctrl+z", "suspend_process", tr_later("Suspend"), show=False),
        Binding("question_mark", "toggle_help_panel", tr_later("Help"), key_display="?"),
        *(
            Binding(f"{number},f{number}", f"open_mode('{mode}')", title, show=False)
            for number, (mode, title) in enumerate(MODES.items(), 1)
        ),
    ]

    def __init__(self, runs_dir: Path) -> None:
        super().__init__()
        self.runs_dir = runs_dir.absolute()
        self.draft: Draft | None = None
        """The preset that Setup edits and Plan shows."""
        self.watched: RunDirectory | None = None
        """The run that the Run mode shows."""

    def on_mount(self) -> None:
        self.set_class(ascii_only(), "-ascii")

    def action_open_mode(self, mode: str) -> None:
        self.switch_mode(mode)

    def action_interrupted(self) -> None:
        """Ctrl-C leaves the screen, as in every other program; runs go on."""
        self.exit(130)

    def action_toggle_help_panel(self) -> None:
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()

    def open_run(self, run: RunDirectory) -> None:
        """Show a run in the Run mode."""
        self.watched = run
        self.switch_mode("run")

    def open_draft(self, draft: Draft, mode: str = "setup") -> None:
        """Edit a preset in Setup, or review it in Plan."""
        self.draft = draft
        self.switch_mode(mode)

    def say(self, text: str, error: bool = False) -> None:
        """A short message, already translated, at the edge of the screen; never markup."""
        self.notify(text, severity="error" if error else "information", markup=False)
