"""Mending: the exact commands first, then, if the user agrees, their output as it comes, and the check once more."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Log, Static

from core.language import tr, tr_later
from core.quantities import duration
from core.text.plain import plain
from tui.doctor_board import FixOffer
from tui.doctor_words import risk_words
from tui.messages import FixEnded, FixPlanned, FixRan
from tui.screens.base import WizardScreen
from tui.status_marks import mark
from tui.verb import Verb

if TYPE_CHECKING:
    from textual.screen import Screen

FLUSH_S = 0.1
OUTPUT_LINES = 5000
GRACE_S = 20.0
"""How long a fix may take to end once it is cancelled: conda and pip tidy up."""


class FixScreen(WizardScreen[None]):
    """One fix, or with `offer` None everything that can be mended. Tells the screen that asked when one has run."""

    HELP = tr_later("The commands that would run are shown first; nothing runs before you agree.")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "y",
            "run",
            tr_later("Run these commands"),
            tooltip=tr_later("Run the commands that are shown, in this order."),
        ),
        Binding(
            "x", "cancel", tr_later("Cancel"), tooltip=tr_later("End the command that runs; what is done stays done.")
        ),
        Binding("c", "copy", tr_later("Copy"), tooltip=tr_later("Copy the commands, to run them elsewhere.")),
        Binding(
            "escape", "back", tr_later("Back"), tooltip=tr_later("Back to the checks; a fix that runs must end first.")
        ),
    ]

    def __init__(
        self,
        asked_by: Screen[None],
        offer: FixOffer | None,
        problem: str,
        scope: tuple[str, ...],
        checks: list[str],
        mode: str = "doctor",
    ) -> None:
        super().__init__()
        self.MODE = mode  # the mode bar shows where Escape leads
        self._asked_by, self._offer, self._problem = asked_by, offer, problem
        self._checks = checks
        only = ("--only", ",".join(checks)) if checks else ()
        self._arguments = ("doctor", *scope, *only, "--fix", *((offer.id,) if offer else ()))
        self._commands = list(offer.preview) if offer else []
        self._state = "planning" if offer is None or offer.runnable else "advice"
        self._pending: deque[str] = deque(maxlen=OUTPUT_LINES)
        self._started = 0.0
        self._trouble = ""
        self._verb: Verb | None = None

    def body(self) -> Iterable[Widget]:
        with Vertical(id="main"):
            yield Static(id="what", markup=False)
            with VerticalScroll(id="commands-box") as commands_box:
                commands_box.border_title = tr("What to type") if self._state == "advice" else tr("Commands")
                yield Static(id="commands", markup=False)
            yield Static(id="state", markup=False)
            output = Log(id="output", max_lines=OUTPUT_LINES)
            output.border_title = tr("Output")
            yield output

    def on_mount(self) -> None:
        self.query_one("#output").display = False
        self.query_one("#commands-box").focus()
        self.set_interval(FLUSH_S, self._flush)
        self._show()
        if self._state == "planning":
            self.plan()

    @work(exclusive=True, group="fix", exit_on_error=False)
    async def plan(self) -> None:
        """Ask the doctor what it would do now: the machine may have changed since the finding."""
        commands: list[str] = []
        trouble = ""
        try:
            async with Verb(self.wizard.runs_dir, *self._arguments, "--dry-run") as verb:
                async for line in verb.lines():
                    commands.append(plain(line))
            if verb.exit_code != 0:
                trouble = verb.last_words or tr("exit code {code}", code=verb.exit_code)
        except OSError as error:
            trouble = plain(str(error))
        self.post_message(FixPlanned(commands, trouble))

    @on(FixPlanned)
    def take_plan(self, message: FixPlanned) -> None:
        self._trouble = message.trouble
        self._state = "refused" if message.trouble else "asking"
        if message.commands:
            self._commands = message.commands
        self._show()
        self.refresh_bindings()

    @work(exclusive=True, group="fix", exit_on_error=False)
    async def mend(self) -> None:
        """Run the fix; its lines are kept for the next flush, the newest of a flood."""
        code = 1
        try:
            verb = Verb(self.wizard.runs_dir, *self._arguments, "--yes", merge_errors=True, grace_s=GRACE_S)
            async with verb as self._verb:
                async for line in verb.lines():
                    self._pending.append(plain(line))
            code = verb.exit_code if verb.exit_code is not None else code
        except OSError as error:
            self._pending.append(plain(str(error)))
        finally:
            self._verb = None
        self.post_message(FixEnded(code))

    @on(FixEnded)
    def take_end(self, message: FixEnded) -> None:
        self._flush()
        cancelled = self._state == "cancelling"
        self._state = "cancelled" if cancelled else "done" if message.exit_code == 0 else "failed"
        if self._checks:
            self._asked_by.post_message(FixRan(self._checks))
        self._show()
        self.refresh_bindings()

    def _flush(self) -> None:
        if self._pending:
            lines = list(self._pending)
            self._pending.clear()
            self.query_one("#output", Log).write_lines(lines)
        if self._state in ("running", "cancelling"):
            self._show_state()

    def _show(self) -> None:
        what = Text()
        if self._problem:
            what.append(f"{self._problem}\n", style="bold")
        if self._offer is not None and self._state != "advice":
            what.append(tr("This fix is {risk}.", risk=risk_words(self._offer.risk)))
        elif self._state == "advice":
            what.append(tr("This cannot be mended from here; these commands do it, typed by you or an administrator."))
        self.query_one("#what", Static).update(what)
        self.query_one("#commands", Static).update(_coloured(self._commands))
        self._show_state()

    def _show_state(self) -> None:
        self.query_one("#state", Static).update(self._state_line())

    def _state_line(self) -> Text:
        seconds = duration(time.monotonic() - self._started)
        if self._state == "planning":
            return Text(tr("Asking the doctor for the exact commands ..."))
        if self._state == "refused":
            return mark("fail").append("  ").append(self._trouble)
        if self._state == "asking":
            return Text(tr("y runs these commands. Escape leaves everything as it is."), style="bold")
        if self._state == "running":
            return mark("running").append("  ").append(tr("for {seconds}; x cancels it", seconds=seconds))
        if self._state == "cancelling":
            return mark("running").append("  ").append(tr("ending what runs ..."))
        if self._state == "done":
            return mark("done").append("  ").append(tr("Its check passes now."))
        if self._state == "failed":
            return (
                mark("failed")
                .append("  ")
                .append(tr("The last lines below say why. Escape goes back; f then goes on from here."))
            )
        if self._state == "cancelled":
            return mark("stopped").append("  ").append(tr("What is done stays done; f goes on from there."))
        return Text(tr("c copies these lines."))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The footer names only what can be done now."""
        if action == "run":
            return self._state == "asking"
        if action == "cancel":
            return self._state in ("running", "cancelling")
        return True

    def action_run(self) -> None:
        if self._offer is None or self._offer.risk != "destructive":
            self._begin()
            return
        from tui.screens.confirm import ConfirmDialog

        def answered(yes: bool | None) -> None:
            if yes:
                self._begin()

        details = tr("This takes something away. The commands move it aside where that is possible.")
        self.app.push_screen(ConfirmDialog(tr("Really run these commands?"), details, tr("Yes, run them")), answered)

    def _begin(self) -> None:
        self._state, self._started = "running", time.monotonic()
        output = self.query_one("#output", Log)
        output.display = True
        output.focus()
        self._show()
        self.refresh_bindings()
        self.mend()

    def action_cancel(self) -> None:
        if self._verb is not None and self._state == "running":
            self._state = "cancelling"
            self._verb.interrupt()
            self.set_timer(GRACE_S, self._cancel_hard)
            self._show_state()

    def _cancel_hard(self) -> None:
        if self._verb is not None and self._state == "cancelling":
            self._verb.kill()

    def action_copy(self) -> None:
        lines = [line for line in self._commands if not line.startswith("# ")]
        self.app.copy_to_clipboard("\n".join(lines))
        self.wizard.say(tr("Copied the commands."))

    def action_back(self) -> None:
        if self._state in ("running", "cancelling"):
            self.wizard.say(tr("The fix is running; x cancels it."))
        else:
            self.dismiss()


def _coloured(commands: list[str]) -> Text:
    """Headings, added and removed lines as in a diff; commands as they are."""
    text = Text()
    for line in commands:
        style = {"#": "bold", "+": "green", "-": "red"}.get(line[:1], "")
        text.append(f"{line}\n", style=style)
    text.right_crop(1)
    return text
