"""Doctor: the checks fill in as they are made; a problem opens with what was found, why it matters and what mends it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import OptionList, Static

from core.language import tr, tr_later
from core.text.plain import plain
from tui.doctor_board import DoctorBoard, Line
from tui.doctor_process import examine
from tui.doctor_words import detail, list_items
from tui.messages import DoctorEnded, DoctorSaid, FixRan
from tui.screens.base import WizardScreen
from tui.screens.fix import FixScreen
from tui.status_marks import mark
from tui.verb import preset_options
from tui.widgets.keyed_list import KeyedList

REFRESH_S = 0.2
NARROW_TITLE, WIDE_TITLE = 22, 32
"""Cells of the column that says what a check is about."""
UNCHOSEN = "quickstart"
"""The preset that `llm-wizard doctor` judges by where none is named."""


class DoctorScreen(WizardScreen[None]):
    """The list of checks, and beside or below it the details of one."""

    MODE = "doctor"
    HELP = tr_later("What the training needs of this machine and of every node: found, expected, and what mends it.")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f",
            "fix",
            tr_later("Fix"),
            tooltip=tr_later("Show the commands that mend this, and run them if you agree."),
        ),
        Binding(
            "F",
            "fix_all",
            tr_later("Fix all"),
            show=False,
            tooltip=tr_later("Mend all that can be mended; shows the commands first."),
        ),
        Binding(
            "p",
            "only_problems",
            tr_later("Problems"),
            tooltip=tr_later("Show only what is wrong, or everything again."),
        ),
        Binding("r", "again", tr_later("Run again"), tooltip=tr_later("Make all checks again.")),
        Binding("a", "full", tr_later("All checks"), tooltip=tr_later("Make the slow checks too; asks first.")),
        Binding(
            "c", "copy", tr_later("Copy"), tooltip=tr_later("Copy the commands that mend this, or else the finding.")
        ),
        Binding("escape", "back", tr_later("Back"), tooltip=tr_later("Back to the list")),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._board = DoctorBoard()
        self._lines: dict[str, Line] = {}
        self._run = 0
        self._running = False
        self._started = 0.0
        self._seconds = 0.0
        self._tier = "quick"
        self._preset: tuple[str, ...] = ()
        """The preset that was judged by, as options of the command line."""
        self._preset_name = UNCHOSEN
        self._only_problems = False
        self._changed = False
        self._moved = False
        """Whether the user has moved the cursor: then it is not put on the first problem."""
        self._wanted = ""
        """A check to put the cursor on as soon as it is in the list."""

    def body(self) -> Iterable[Widget]:
        yield Static(id="summary", markup=False)
        yield Static(id="readiness", markup=False)
        yield Static(id="trouble", markup=False)
        with Container(id="main"):
            with Vertical(id="checks-box") as checks_box:
                checks_box.border_title = tr("Checks")
                yield Static(id="none", markup=False)
                yield KeyedList(id="checks")
            with VerticalScroll(id="detail-box") as detail_box:
                detail_box.border_title = tr("Details")
                yield Static(id="detail", markup=False)

    def on_mount(self) -> None:
        for hidden in ("#readiness", "#trouble", "#none"):
            self.query_one(hidden).display = False
        self.query_one("#checks").focus()
        self.set_interval(REFRESH_S, self._tick)

    def on_screen_resume(self) -> None:
        """Judge for the preset that is open now; coming back with the same preset changes nothing."""
        if self._run == 0 or preset_options(self.wizard.draft) != self._preset:
            self._start(self._tier)

    def _start(self, tier: str) -> None:
        self._board, self._lines = DoctorBoard(), {}
        draft = self.wizard.draft
        self._tier, self._preset, self._moved = tier, preset_options(draft), False
        self._preset_name = draft.source if draft else UNCHOSEN
        self._begin()

    def _scope(self) -> tuple[str, ...]:
        return (*self._preset, "--tier", self._tier)

    def _begin(self, *only: str) -> None:
        self._run += 1
        self._running, self._started, self._changed = True, time.monotonic(), True
        self._say_trouble("")
        self.examine(self._run, (*self._scope(), *only))

    @work(exclusive=True, group="doctor", exit_on_error=False)
    async def examine(self, run: int, arguments: tuple[str, ...]) -> None:
        """Pass on what the doctor says, line by line; ends it when the screen goes or another examination begins."""
        await examine(self, run, self.wizard.runs_dir, *arguments)

    @on(DoctorSaid)
    def take_record(self, message: DoctorSaid) -> None:
        if message.run == self._run and self._board.take(message.record):
            self._changed = True

    @on(DoctorEnded)
    def take_end(self, message: DoctorEnded) -> None:
        if message.run != self._run:
            return
        self._running, self._seconds = False, time.monotonic() - self._started
        self._board.close(tr("the doctor ended before it got to it"))
        self._say_trouble(message.trouble)
        self._show()
        if not message.trouble:
            self._make_wanted()
        if not self._moved:
            self._go_to_first_problem()

    @on(FixRan)
    def check_again(self, message: FixRan) -> None:
        if self._running:  # the list is not complete yet: made as a whole, it will be
            self._start(self._tier)
        else:
            self._begin("--only", ",".join(message.checks))

    def show_check(self, check: str) -> None:
        """Put the cursor on a check; one that is not made in this tier is made for it."""
        self._wanted, self._moved, self._only_problems = check, True, False
        self._changed = True
        if self._run and not self._running:
            self._make_wanted()

    def _make_wanted(self) -> None:
        if self._wanted and not self._board.has(self._wanted):
            self._begin("--only", self._wanted)

    def on_resize(self) -> None:
        self._changed = True

    def _tick(self) -> None:
        if self._running:
            self._seconds = time.monotonic() - self._started
            self.query_one("#summary", Static).update(self._summary())
        if self._changed and self.is_current:
            self._show()

    def _show(self) -> None:
        self._changed = False
        lines = self._board.lines(self._only_problems)
        self._lines = {line.key: line for line in lines}
        checks = self.query_one("#checks", KeyedList)
        with self.prevent(OptionList.OptionHighlighted):
            checks.show(list_items(lines, NARROW_TITLE if self.has_class("-narrow") else WIDE_TITLE))
            if self._board.has(self._wanted):
                checks.go_to(f"{self._wanted}#0")
                self._wanted = ""
            elif checks.highlighted is None and lines:
                checks.go_to(lines[0].key)
        nothing = self.query_one("#none", Static)
        nothing.display = not lines
        nothing.update(self._nothing())
        self.query_one("#summary", Static).update(self._summary())
        readiness = self._readiness()
        self.query_one("#readiness", Static).update(readiness)
        self.query_one("#readiness").display = bool(readiness)
        self._show_detail()

    def _nothing(self) -> str:
        if self._only_problems and not self._board.is_empty():
            return tr("No problem so far.") if self._running else tr("No problem. p shows all checks.")
        return tr("Looking at the machine ...") if self._running else tr("No check was made. r tries again.")

    def _summary(self) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        for status, count in self._board.counts().items():
            text.append_text(mark(status)).append(f" {count}   ")
        text.append(f"{self._seconds:.1f} s", style="bold" if self._running else "")
        tier = tr("quick checks") if self._tier == "quick" else tr("all checks")
        preset = tr("for preset {name}", name=plain(self._preset_name))
        return text.append(f"   {tier} {preset}", style="bright_black")

    def _readiness(self) -> Text:
        """Which stages can run, and what stands in the way of the others."""
        ready, blocked = self._board.readiness()
        text = Text()
        if ready and not blocked:
            text.append_text(mark("pass")).append("  ").append(tr("every stage of this preset can run here"))
        elif ready:
            text.append_text(mark("pass")).append("  ").append(tr("ready: {stages}", stages=", ".join(ready)))
        for checks, stages in blocked.items():
            text.append("\n" if text else "").append_text(mark("fail")).append("  ")
            text.append(tr("not ready: {stages} ({checks})", stages=", ".join(stages), checks=", ".join(checks)))
        return text

    def _say_trouble(self, trouble: str) -> None:
        widget = self.query_one("#trouble", Static)
        widget.display = bool(trouble)
        widget.update(trouble)

    def _go_to_first_problem(self) -> None:
        first = next(iter(self._board.lines(only_problems=True)), None)
        if first is not None:
            with self.prevent(OptionList.OptionHighlighted):
                self.query_one("#checks", KeyedList).go_to(first.key)
            self._show_detail()

    def _line(self) -> Line | None:
        return self._lines.get(self.query_one("#checks", KeyedList).key or "")

    def _show_detail(self) -> None:
        line = self._line()
        self.query_one("#detail", Static).update(detail(line) if line else "")

    @on(OptionList.OptionHighlighted, "#checks")
    def follow_cursor(self) -> None:
        self._moved = True
        self._show_detail()

    @on(OptionList.OptionSelected, "#checks")
    def open_detail(self) -> None:
        self._moved = True
        box = self.query_one("#detail-box")
        box.add_class("-open")
        box.scroll_home(animate=False)
        box.focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The footer names the way back only where details are open."""
        return action != "back" or bool(self.query("#detail-box.-open"))

    def action_back(self) -> None:
        self.query_one("#detail-box").remove_class("-open")
        self.query_one("#checks").focus()

    def action_only_problems(self) -> None:
        self._only_problems = not self._only_problems
        self._show()

    def action_again(self) -> None:
        self._start(self._tier)

    def action_full(self) -> None:
        from tui.screens.confirm import ConfirmDialog

        def answered(yes: bool | None) -> None:
            if yes:
                self._start("full")

        details = tr(
            "The slow checks import torch, reserve a little memory on every GPU and let the nodes exchange data. They "
            "take a minute or so, and can slow down a training that runs on these GPUs."
        )
        self.app.push_screen(ConfirmDialog(tr("Make all checks?"), details, tr("Yes, make them")), answered)

    def action_copy(self) -> None:
        line = self._line()
        if line is None:
            return
        fix = line.answer.fix
        self.app.copy_to_clipboard("\n".join(fix.preview) if fix else detail(line).plain)
        self.wizard.say(tr("Copied the commands.") if fix else tr("Copied the finding."))

    def action_fix(self) -> None:
        line = self._line()
        if line is None or line.answer.fix is None:
            self.wizard.say(tr("There is nothing to mend here."))
            return
        checks = self._board.mended_by(line.answer.fix.id)
        self.app.push_screen(FixScreen(self, line.answer.fix, line.answer.summary, self._scope(), checks))

    def action_fix_all(self) -> None:
        fixes = [line.answer.fix for line in self._board.lines(only_problems=True)]
        if not self._running and not any(fix is not None and fix.runnable for fix in fixes):
            self.wizard.say(tr("There is nothing to mend here."))
            return
        self.app.push_screen(FixScreen(self, None, tr("Everything that can be mended from here"), self._scope(), []))
