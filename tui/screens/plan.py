"""Plan: every stage as it will run, what stands in the way, and Launch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar

from rich.console import Group
from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import DescendantFocus
from textual.widget import Widget
from textual.widgets import OptionList, Static

from core.language import tr, tr_later
from core.runs.directory import RunDirectory
from core.stages import BY_ID
from core.text.plain import plain
from tui.background import in_background, reason
from tui.draft import Draft
from tui.messages import PlanReviewed, RunStarted, WorkFailed
from tui.plan_review import Problem, Review, review
from tui.plan_view import as_table, command_row, file_rows, number_rows, process_rows
from tui.run_actions import RESUMABLE, start_again
from tui.screens.base import WizardScreen
from tui.status_marks import glyph, mark
from tui.walk import has_fields
from tui.widgets.keyed_list import ChoiceList, Item, KeyedList, in_columns

STATE_CELLS = 11


class PlanScreen(WizardScreen[None]):
    """Stages at the left, the details of one beside them, what can be done below."""

    MODE = "plan"
    HELP = tr_later(
        "What each stage will run, read and make, what is done already, and what stands in the way of a launch."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "setup", tr_later("Setup"), tooltip=tr_later("Back to the fields.")),
        Binding("l", "to_actions", tr_later("Launch"), tooltip=tr_later("Go to what can be done with this plan.")),
        Binding("r", "again", tr_later("Check again"), tooltip=tr_later("Look at the files and the plan again.")),
        Binding(
            "ctrl+y,y",
            "copy",
            tr_later("Command"),
            key_display="^y",
            tooltip=tr_later("Show the same run as a command line, and copy it."),
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._review: Review | None = None
        self._edition = 0
        self._launching = ""
        """The name of the run that is being started."""
        self._failure = ""
        """Why the last launch or resume failed."""
        self._arrived = True
        """The screen has just been opened: the cursor goes to what most want to do."""

    def body(self) -> Iterable[Widget]:
        yield Static(tr("No preset is open. Choose one on Home (1)."), id="none", markup=False)
        with Vertical(id="main"):
            with Horizontal(id="columns"):
                with Vertical(id="stages-box") as stages_box:
                    stages_box.border_title = tr("Stages")
                    yield KeyedList(id="stages")
                with VerticalScroll(id="detail-box"):
                    yield Static(id="detail", markup=False)
            with Vertical(id="actions-box"):
                yield Static(id="notice", markup=False)
                yield ChoiceList(id="actions")

    def on_screen_resume(self) -> None:
        """Look at the draft again: it, the files or the run of its name may have changed."""
        draft = self.wizard.draft
        self.query_one("#none").display = draft is None
        self.query_one("#main").display = draft is not None
        if draft is not None:
            self._failure, self._arrived = "", True
            self._begin_review(draft)
            self.query_one("#actions").focus()

    def _begin_review(self, draft: Draft) -> None:
        self._edition += 1
        self._review = None
        self._draw_actions()
        in_background(self, partial(_reviewed, self._edition, draft.copy(), self.wizard.runs_dir), "review")

    @on(PlanReviewed)
    def take_review(self, message: PlanReviewed) -> None:
        if message.edition == self._edition:
            self._review = message.review
            self._draw_stages()
            self._draw_actions()
            self._draw_detail()

    @on(WorkFailed)
    def take_failure(self, message: WorkFailed) -> None:
        self._launching = ""
        self._failure = message.reason
        if message.name == "review":
            self._draw_actions()
        elif self.wizard.draft is not None:  # a launch that failed may have left a run
            self._begin_review(self.wizard.draft)

    def on_resize(self) -> None:
        self._draw_detail()

    def _draw_stages(self) -> None:
        items: list[Item] = []
        if self._review is not None and self._review.plan is not None:
            for stage in self._review.plan.stages:
                state = "skipped" if stage.skip else self._review.done.get(stage.id, "waiting")
                items.append((stage.id, in_columns(mark(state), STATE_CELLS).append(stage.id, style="none")))
        stages = self.query_one("#stages", KeyedList)
        with self.prevent(OptionList.OptionHighlighted):
            stages.show(items)
            if stages.highlighted is None and items:
                stages.highlighted = 0

    def _draw_actions(self) -> None:
        actions = self.query_one("#actions", KeyedList)
        before = actions.key
        with self.prevent(OptionList.OptionHighlighted):
            actions.show(list(self._actions()))
            if before is None or actions.key is None or self._arrived:
                actions.go_to(self._likely())
        self._arrived = self._arrived and self._review is None
        self._draw_notice()

    def _problems(self) -> list[Problem]:
        return list(self._review.problems) if self._review else []

    def _likely(self) -> str:
        """What Enter does first. Not a second run of a draft whose first one is running."""
        if self._problems():
            return "problem 0"
        existing = self._review.existing if self._review is not None else None
        return "watch" if existing is not None and existing.state == "running" else "launch"

    def _actions(self) -> Iterable[Item]:
        """What can be done now, one line each."""
        if self._launching:
            yield "#starting", Text(tr("Starting {name} ...", name=self._launching))
            return
        if self._review is None:
            yield "#checking", Text(tr("Checking the plan and its files ..."))
            return
        for place, problem in enumerate(self._problems()):
            yield f"problem {place}", mark("fail").append(f"  {plain(problem.text)}")
        existing, name = self._review.existing, plain(self._review.draft.name)
        if existing is not None and existing.state == "running":
            yield "watch", Text(tr("Watch {name}, which runs", name=name))
        elif existing is not None and existing.state in RESUMABLE:
            state = tr(existing.state)
            yield "resume", Text(tr("Resume {name} as it was planned then ({state})", name=name, state=state))
        if self._review.plan is not None and not self._problems():
            launch = Text(f"{glyph('running')} ", style="green")
            yield "launch", launch.append(tr("Launch {name}", name=self._review.free_name), style="bold")
        yield "name", Text(tr("Give the run another name"))
        yield "setup", Text(tr("Back to the fields"))

    def _draw_notice(self) -> None:
        text = Text()
        if self._failure:
            text.append_text(mark("fail")).append(f"  {self._failure}\n")
        if (
            self._review is not None
            and self._review.plan is not None
            and self._review.free_name != self._review.draft.name
        ):
            text.append_text(mark("warn")).append("  ").append(self._taken()).append("\n")
        notice = self.query_one("#notice", Static)
        notice.display = bool(text)
        text.rstrip()
        notice.update(text)

    def _taken(self) -> str:
        assert self._review is not None
        name, existing = plain(self._review.draft.name), self._review.existing
        if existing is None:
            return tr("{name} is taken by a folder that is no run.", name=name)
        done = [stage for stage, state in self._review.done.items() if state == "done"]
        stages = ", ".join(done) or tr("nothing")
        return tr(
            "There is a run {name} ({state}). Done in it: {stages}.", name=name, state=tr(existing.state), stages=stages
        )

    # Details

    @on(OptionList.OptionHighlighted)
    def follow_cursor(self) -> None:
        self._draw_detail()

    @on(DescendantFocus)
    def follow_focus(self) -> None:
        self._draw_detail()

    def _draw_detail(self) -> None:
        box = self.query_one("#detail-box", VerticalScroll)
        problem = self._problem_under_cursor()
        review = self._review
        if problem is not None:
            box.border_title = tr("Problem")
            self.query_one("#detail", Static).update(_about(problem))
            return
        stage_id = self.query_one("#stages", KeyedList).key
        stage = next((s for s in review.plan.stages if s.id == stage_id), None) if review and review.plan else None
        if stage is None:
            self.query_one("#detail", Static).update("")
            return
        box.border_title = tr(BY_ID[stage.id].title)
        parts = [as_table(number_rows(stage, box.size.width))]
        if not stage.skip:
            parts += [as_table(rows) for rows in (file_rows(stage), [command_row(stage), *process_rows(stage)])]
        self.query_one("#detail", Static).update(Group(*parts))

    def _problem_under_cursor(self) -> Problem | None:
        actions = self.query_one("#actions", KeyedList)
        key = actions.key or ""
        if not actions.has_focus or not key.startswith("problem "):
            return None
        problems = self._problems()
        place = int(key.rpartition(" ")[2])
        return problems[place] if place < len(problems) else None

    # Actions

    @on(OptionList.OptionSelected, "#stages")
    def read_detail(self) -> None:
        self.query_one("#detail-box").focus()

    @on(OptionList.OptionSelected, "#actions")
    async def act(self) -> None:
        key = self.query_one("#actions", KeyedList).key or ""
        problem = self._problem_under_cursor()
        if problem is not None:
            await self._to_field(problem.key)
        elif key == "launch" and self._review is not None:
            self._launch(self._review)
        elif key == "watch" and self._review is not None and self._review.existing is not None:
            self.wizard.open_run(self._review.existing.run)
        elif key == "resume" and self._review is not None and self._review.existing is not None:
            self._launching = self._review.existing.run.name
            self._draw_actions()
            self.start_again(self._review.existing.run)
        elif key == "name":
            await self._to_field("name")
        elif key == "setup":
            await self._to_field("")

    async def _to_field(self, key: str) -> None:
        from tui.screens.setup import SetupScreen

        await self.app.switch_mode("setup")
        if key and isinstance(self.app.screen, SetupScreen):
            # In its own turn: it may still be taking in the draft.
            self.app.screen.call_later(self.app.screen.go_to, key)

    def _launch(self, reviewed: Review) -> None:
        draft = self.wizard.draft
        if draft is None or self._launching:
            return
        # The command line, and Setup, name the run that was really started.
        draft.name = self._launching = reviewed.free_name
        self._failure = ""
        self._draw_actions()
        self.launch(draft.copy())

    @work(thread=True, exclusive=True, group="launch", exit_on_error=False)
    def launch(self, draft: Draft) -> None:
        """Check, make the run's folder and start its supervisor. Leaving the screen meanwhile waits for this: it writes."""
        from core.facts import facts_for
        from core.preflight import check_plan
        from core.runs.create import fill, reserve
        from core.runs.start import start_supervisor

        runs_dir = self.wizard.runs_dir
        try:
            plan = draft.plan(facts_for(draft.preset(), runs_dir), runs_dir)
            check_plan(plan, draft.run(runs_dir).root)
            run = reserve(runs_dir, draft.name)
            fill(run, plan)
            start_supervisor(run)
        except Exception as error:
            self.post_message(WorkFailed("launch", reason(error)))
        else:
            self.post_message(RunStarted(run))

    @work(exclusive=True, group="launch", exit_on_error=False)
    async def start_again(self, run: RunDirectory) -> None:
        """Start the supervisor of a run that is there."""
        why = await start_again(run)
        self.post_message(WorkFailed("resume", why) if why else RunStarted(run))

    @on(RunStarted)
    def show_run(self, message: RunStarted) -> None:
        draft = self.wizard.draft
        if draft is not None and draft.name == self._launching:
            draft.keep()
        self._launching = ""
        self.wizard.open_run(message.run)

    def action_setup(self) -> None:
        self.app.switch_mode("setup")

    def action_to_actions(self) -> None:
        self.query_one("#actions").focus()

    def action_again(self) -> None:
        if self.wizard.draft is not None and not self._launching:
            self._failure = ""
            self._begin_review(self.wizard.draft)

    def action_copy(self) -> None:
        from tui.screens.command_line import CommandLineDialog

        if self.wizard.draft is not None:
            self.app.push_screen(CommandLineDialog(self.wizard.draft))


def _reviewed(edition: int, draft: Draft, runs_dir: Path) -> PlanReviewed:
    return PlanReviewed(edition, review(draft, runs_dir))


def _about(problem: Problem) -> Text:
    text = mark("fail").append(f"  {plain(problem.text)}\n", style="none")
    if has_fields(problem.key):
        text.append("\n").append(tr("Enter goes to {key} in Setup.", key=problem.key), style="cyan")
    elif problem.key:
        text.append("\n").append(tr("In Setup, ^o opens the text of the preset in an editor."), style="cyan")
    return text
