"""The application: routing only. Each screen is a file of its own; all work is done by core.

Screens are imported when they are first shown: the first frame must not wait for pydantic or numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import CommandPalette, Provider
from textual.filter import LineFilter
from textual.screen import Screen

from core.language import tr, tr_later
from core.runs.directory import RunDirectory
from core.text.plain import plain
from tui.ascii_lines import AsciiLines
from tui.line_breaks import use_line_breaks
from tui.status_marks import ascii_only
from tui.widgets.mode_bar import MODES as MODE_TITLES

if TYPE_CHECKING:
    from tui.draft import Draft

STYLES = Path(__file__).parent / "styles"
_QUIT = tr_later("Leave; runs go on.")
_SUSPEND = tr_later("Back to the shell; `fg` returns here.")


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


def _commands() -> type[Provider]:
    from tui.commands import WizardCommands

    return WizardCommands


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
    COMMANDS: ClassVar = {_commands}
    HORIZONTAL_BREAKPOINTS: ClassVar = [(0, "-narrow"), (110, "-wide")]
    VERTICAL_BREAKPOINTS: ClassVar = [(0, "-short"), (34, "-tall")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "show_keys", tr_later("Help"), key_display="?", tooltip=tr_later("Show these keys.")),
        Binding(
            "ctrl+p",
            "command_palette",
            tr_later("Commands"),
            show=False,
            priority=True,
            tooltip=tr_later("Find a command by a word of its name: presets, runs, modes, what this screen can do."),
        ),
        Binding("ctrl+z", "suspend_process", tr_later("Suspend"), show=False, tooltip=_SUSPEND),
        Binding("ctrl+q", "quit", tr_later("Quit"), show=False, priority=True, tooltip=_QUIT),
        Binding("ctrl+c", "interrupted", tr_later("Quit"), show=False, priority=True, tooltip=_QUIT),
        *(
            Binding(f"{number},f{number}", f"open_mode('{mode}')", title, show=False)
            for number, (mode, title) in enumerate(MODE_TITLES.items(), 1)
        ),
    ]

    def __init__(self, runs_dir: Path) -> None:
        use_line_breaks()
        super().__init__()
        self.runs_dir = runs_dir.absolute()
        self.draft: Draft | None = None
        """The preset that Setup edits and Plan shows."""
        self.watched: RunDirectory | None = None
        """The run that the Run mode shows."""
        self._leaving = False
        """Whether it has been asked what becomes of unsaved changes."""
        self._ascii = [AsciiLines()] if ascii_only() else []

    def on_mount(self) -> None:
        self.set_class(ascii_only(), "-ascii")
        # After `fg` the terminal is empty; Textual 8.2.8 draws it anew only where its size has changed meanwhile.
        self.app_resume_signal.subscribe(self, lambda _: self.refresh(layout=True))

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*super().get_line_filters(), *self._ascii]

    def action_open_mode(self, mode: str) -> None:
        self.switch_mode(mode)

    async def action_quit(self) -> None:
        self._leave(None)

    def action_interrupted(self) -> None:
        """Ctrl-C leaves the screen, as in every other program; runs go on."""
        self._leave(130)

    def _leave(self, code: int | None) -> None:
        """End, after a question where changes would be lost; asked for twice, at once."""
        if self._leaving or self.draft is None or not self.draft.is_unsaved:
            self.exit(code)
            return
        self._leaving = True

        def answered(throw_away: bool | None) -> None:
            self._leaving = False
            if throw_away:
                self.exit(code)

        self._ask_to_throw_away(self.draft, answered)

    def action_show_keys(self) -> None:
        from tui.screens.keys import KeysDialog

        self.push_screen(KeysDialog(self.screen))

    def action_command_palette(self) -> None:
        if not CommandPalette.is_open(self):
            self.push_screen(CommandPalette(id="--command-palette", placeholder=tr("Type a word of a command")))

    def open_run(self, run: RunDirectory) -> None:
        """Show a run in the Run mode."""
        self.watched = run
        self.switch_mode("run")

    def open_draft(self, draft: Draft, mode: str = "setup") -> None:
        """Edit a preset in Setup, or review it in Plan; changes that would be lost by it are asked about first."""
        before = self.draft
        if before is None or before is draft or not before.is_unsaved:
            self.draft = draft
            self.switch_mode(mode)
            return

        def answered(throw_away: bool | None) -> None:
            self.draft = draft if throw_away else before
            self.switch_mode(mode)

        self._ask_to_throw_away(before, answered)

    def _ask_to_throw_away(self, draft: Draft, answered: Callable[[bool | None], None]) -> None:
        from tui.screens.confirm import ConfirmDialog

        name, keys = plain(draft.source), plain(", ".join(draft.changes))
        question = tr("Throw away what you changed in {name}?", name=name)
        details = tr("Changed: {keys}. Setup can save it as a preset.", keys=keys)
        no = tr("No, go on with {name}", name=name)
        self.push_screen(ConfirmDialog(question, details, tr("Yes, throw them away"), no), answered)

    async def open_check(self, check: str) -> None:
        """Show a check in the Doctor mode."""
        from tui.screens.doctor import DoctorScreen

        await self.switch_mode("doctor")
        if isinstance(self.screen, DoctorScreen):
            self.screen.show_check(check)

    def copy_to_clipboard(self, text: str) -> None:
        """A path may hold bytes that are no UTF-8, on which Textual's own would fail."""
        super().copy_to_clipboard(text.encode("utf-8", "replace").decode())

    def say(self, text: str, error: bool = False) -> None:
        """A short message, already translated, at the edge of the screen; never markup."""
        self.notify(text, severity="error" if error else "information", markup=False)
