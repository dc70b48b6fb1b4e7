"""Setup: the guided walk through a preset, one step a stage, with the plan beside it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, Vertical
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import OptionList, Static

from core.errors import InputError, WizardError
from core.language import tr, tr_later
from core.text.plain import plain
from tui.background import in_background
from tui.doctor_process import examine
from tui.draft import Draft
from tui.editor import edited, find_editor
from tui.environment_look import EnvironmentLook
from tui.form import STEPS, FieldSpec, Step, all_fields
from tui.messages import DoctorEnded, DoctorSaid, Planned, WorkFailed
from tui.screens.base import WizardScreen
from tui.status_marks import coloured_glyph, glyph
from tui.verb import preset_options
from tui.walk import NAME, problems_by_field, specs_of, step_with, steps_for
from tui.widgets.field_row import FieldRow
from tui.widgets.keyed_list import Item, KeyedList
from tui.widgets.plan_panel import PlanPanel
from tui.widgets.step_form import StepForm

PAUSE_S = 0.2
"""The plan follows what is typed after this pause."""
SLIM, LOW = 76, 20
"""Below so many columns the units give way to the values, below so many rows the plan to the fields (^t shows it)."""
TO_PLAN = "plan"
"""The key of the last line of the steps."""


class SetupScreen(WizardScreen[None]):
    """The steps at the left, the fields of one in the middle, what they mean at the right or below."""

    MODE = "setup"
    HELP = tr_later(
        "The preset, one step a stage. Enter goes from field to field and from step to step; the plan follows what you type."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "ctrl+g,p",
            "plan",
            tr_later("Plan, launch"),
            key_display="^g",
            tooltip=tr_later("Review the plan and launch the run."),
        ),
        Binding("escape", "steps", tr_later("Steps"), tooltip=tr_later("Go to the list of steps.")),
        Binding(
            "right", "enter_step", tr_later("Fields"), show=False, tooltip=tr_later("Go to the fields of this step.")
        ),
        Binding("ctrl+n", "next_step", tr_later("Next step"), show=False, tooltip=tr_later("Go to the next step.")),
        Binding(
            "ctrl+r", "reset", tr_later("Reset"), show=False, tooltip=tr_later("Take the preset's own value again.")
        ),
        Binding(
            "ctrl+s,s",
            "save",
            tr_later("Save"),
            key_display="^s",
            tooltip=tr_later("Save these values as a preset file."),
        ),
        Binding(
            "ctrl+y,y",
            "copy",
            tr_later("Command"),
            key_display="^y",
            tooltip=tr_later("Show the same run as a command line, and copy it."),
        ),
        Binding(
            "ctrl+o,e", "edit", tr_later("Editor"), key_display="^o", tooltip=tr_later("Open the preset in $EDITOR.")
        ),
        Binding("ctrl+t,t", "widen_plan", tr_later("More of the plan"), show=False, key_display="^t"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._draft: Draft | None = None
        self._step = STEPS[0]
        self._forms: dict[str, StepForm] = {}
        self._focused: FieldSpec | None = None
        self._edited_last: dict[str, str] = {}
        """Section -> the key in it that was changed last: what does not fit together is said there."""
        self._problems: dict[str, str] = {}
        """Key -> what is wrong with it; other problems of the preset under keys that no field has."""
        self._edition = 0
        self._planning = False
        self._plan_again = False
        self._timer: Timer | None = None
        self._planned = Planned(0, None)
        self._look = EnvironmentLook()
        self._refused_text = ""
        """What came back from the editor and could not be taken over."""

    def body(self) -> Iterable[Widget]:
        yield Static(tr("No preset is open. Choose one on Home (1)."), id="none", markup=False)
        with Horizontal(id="columns"):
            yield KeyedList(id="steps")
            with Container(id="right"):
                yield Vertical(id="forms")
                yield PlanPanel("plan")
        yield Static(id="help", markup=False)

    async def on_screen_resume(self) -> None:
        """Show the draft that is open now; coming back to the same one finds everything as it was left."""
        draft = self.wizard.draft
        self.query_one("#none").display = draft is None
        self.query_one("#columns").display = draft is not None
        if draft is None:
            return
        if draft is not self._draft:
            self._draft = draft
            self._edited_last, self._refused_text = {}, ""
            self._look.begin(None)
            self._forms = {}
            await self.query_one("#forms").remove_children()
            self._step = STEPS[0]
            self._show_steps()
            self.query_one("#steps", KeyedList).go_to(self._step.id)
            self.query_one("#steps").focus()
            await self._show_step(self._step)
        self._follow()
        self._examine()

    def on_resize(self) -> None:
        self.set_class(self.size.width < SLIM, "-slim")
        self.set_class(self.size.height < LOW, "-low")
        self._show_steps()
        self._draw_help()

    # Steps and fields

    def _show_steps(self) -> None:
        items: list[Item] = []
        in_trouble = self._step_in_trouble()
        for step in self._steps():
            sign = Text("  ")
            if step is in_trouble or any(step_with(key) is step for key in self._problems):
                sign = coloured_glyph("fail")
            elif self._draft and any(step_with(key) is step for key in self._draft.changes):
                sign = Text("* ", style="yellow")
            items.append((step.id, sign.append(tr(step.title), style="none")))
        if not self.has_class("-low"):
            items.append(("#rule", Text("  ──────────────")))
        items.append((TO_PLAN, Text("  ").append(tr("Plan, launch"), style="bold")))
        with self.prevent(OptionList.OptionHighlighted):
            self.query_one("#steps", KeyedList).show(items)

    def _steps(self) -> list[Step]:
        """The steps that this draft has; the one in front of the user stays there, whatever he chooses in it."""
        counting = steps_for(self._draft) if self._draft else STEPS
        return [step for step in STEPS if step is self._step or step in counting]

    def _step_in_trouble(self) -> Step | None:
        """The step with the key that the planner's refusal begins with, where there is no plan."""
        key = self._planned.trouble.split(" ")[0].rstrip(":")
        return step_with(key) if key in all_fields() else None

    async def _show_step(self, step: Step) -> StepForm:
        """Show the fields of a step; they are made when they are first looked at."""
        self._step = step
        form = self._forms.get(step.id)
        if form is None:
            form = self._forms[step.id] = StepForm(map(self._row, specs_of(step)))
            await self.query_one("#forms").mount(form)
        for other in self._forms.values():
            other.display = other is form
        self.query_one("#forms", Vertical).border_title = tr(step.title)
        self._judge()
        self._draw_plan()
        self._draw_help()
        return form

    def _row(self, spec: FieldSpec) -> FieldRow:
        text, changed = self._value(spec)
        return FieldRow(spec, text, changed, spec.shown(spec.default))

    def _value(self, spec: FieldSpec) -> tuple[str, bool]:
        """The text of a field, and whether it is not the preset's own value."""
        assert self._draft is not None
        text = self._draft.name if spec is NAME else spec.shown(self._draft.value(spec.key))
        return text, self._is_changed(spec)

    def _is_changed(self, spec: FieldSpec) -> bool:
        assert self._draft is not None
        return self._draft.name != self._draft.preset_name if spec is NAME else spec.key in self._draft.changes

    @on(OptionList.OptionHighlighted, "#steps")
    async def follow_steps(self) -> None:
        step = self._step_under_cursor()
        if step is not None and step is not self._step:
            await self._show_step(step)
        self._draw_help()

    @on(OptionList.OptionSelected, "#steps")
    async def enter_step(self) -> None:
        await self.action_enter_step()

    def _step_under_cursor(self) -> Step | None:
        key = self.query_one("#steps", KeyedList).key
        return next((step for step in STEPS if step.id == key), None)

    @on(FieldRow.Changed)
    def take_value(self, message: FieldRow.Changed) -> None:
        assert self._draft is not None
        spec = message.spec
        if spec is NAME:
            self._draft.name = message.text.strip()
        else:
            self._draft.set(spec.key, spec.typed(message.text))
            self._edited_last[spec.key.rpartition(".")[0]] = spec.key
        self._follow()

    @on(FieldRow.Focused)
    def follow_focus(self, message: FieldRow.Focused) -> None:
        self._focused = message.spec
        self._draw_help()

    @on(FieldRow.Left)
    async def go_on(self, message: FieldRow.Left) -> None:
        form = message.row.parent
        beside = form.beside(message.row, message.by) if isinstance(form, StepForm) else None
        if beside is not None:
            beside.editor.focus()
        elif not message.moved:
            await self.action_next_step()

    async def go_to(self, key: str) -> None:
        """Put the cursor into the field of a key; into its section's first field where it is a section."""
        step = step_with(key)
        if step is None:
            return
        form = await self._show_step(step)
        self._put_cursor_on(step.id)
        row = form.rows.get(key) or next(
            (row for row in form.rows.values() if row.spec.key.startswith(f"{key}.")), None
        )
        if row is not None:
            row.editor.focus()

    def _put_cursor_on(self, line: str) -> None:
        with self.prevent(OptionList.OptionHighlighted):
            self.query_one("#steps", KeyedList).go_to(line)

    async def action_enter_step(self) -> None:
        step = self._step_under_cursor()
        if self._draft is None or step is None:
            self.action_plan()
        else:
            (await self._show_step(step)).focus_first()

    async def action_next_step(self) -> None:
        steps = self._steps()
        place = steps.index(self._step) + 1
        if self._draft is None or place == len(steps):
            self.action_plan()
            return
        form = await self._show_step(steps[place])
        self._put_cursor_on(self._step.id)
        form.focus_first()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The footer names the way to the steps only where that is another place."""
        return action != "steps" or self.focused is None or self.focused.id != "steps"

    def action_steps(self) -> None:
        self.query_one("#steps").focus()
        self.call_after_refresh(self._draw_help)

    def action_plan(self) -> None:
        if self._draft is not None:
            self.app.switch_mode("plan")

    def action_reset(self) -> None:
        spec = self._focused
        if self._draft is None or spec is None or self.query_one("#steps").has_focus:
            return
        if spec is NAME:
            self._draft.name = self._draft.preset_name
        else:
            self._draft.reset(spec.key)
        self._refresh_values()
        self._follow()

    def _refresh_values(self) -> None:
        for form in self._forms.values():
            for row in form.rows.values():
                row.show(*self._value(row.spec))

    # What follows from the values

    def _follow(self) -> None:
        """The values have changed: judge them at once, plan them after a pause."""
        self._judge()
        self._edition += 1
        self.query_one(PlanPanel).border_subtitle = tr("planning ...")
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(PAUSE_S, self._plan)

    def _judge(self) -> None:
        if self._draft is None:
            return
        self._problems = problems_by_field(self._draft, self.wizard.runs_dir, self._edited_last)
        form = self._forms.get(self._step.id)
        for row in form.rows.values() if form else ():
            said = self._problems.get(row.spec.key, "").removeprefix(f"{row.spec.key} is ")
            row.say(said, self._is_changed(row.spec))
        self._show_steps()

    def _plan(self) -> None:
        """Plan in the background: one at a time, as facts may wait for a file system."""
        if self._draft is None:
            return
        self._plan_again = self._planning
        if not self._planning:
            self._planning = True
            work = partial(planned, self._draft.copy(), self._edition, self.wizard.runs_dir)
            in_background(self, work, "plan")

    @on(Planned)
    def take_plan(self, message: Planned) -> None:
        self._planning = False
        self._planned = message
        if self._plan_again:
            self._plan()
        if message.edition == self._edition:
            self.query_one(PlanPanel).border_subtitle = ""
        self._show_steps()
        self._draw_plan()
        self._draw_help()

    @on(WorkFailed)
    def take_failure(self, message: WorkFailed) -> None:
        self.post_message(Planned(self._edition, None, message.reason))

    def _draw_plan(self) -> None:
        trouble = list(self._problems.values()) or self._planned.trouble.splitlines()
        look = self._look.text() if self._step is STEPS[0] else None
        self.query_one(PlanPanel).show(self._step.stage, self._planned.plan, trouble, look)

    def _draw_help(self) -> None:
        text = Text()
        if self.query_one("#steps").has_focus or self._focused is None:
            text.append(self._way_on())
        else:
            spec = self._focused
            default = spec.shown(spec.default)
            text.append(spec.key, style="bold").append(f"  {tr(spec.help)}")
            text.append(f"  ({spec.expected()}", style="bright_black")
            text.append(f"; {tr('default {value}', value=default)})" if default else ")", style="bright_black")
        self.query_one("#help", Static).update(text)

    def _way_on(self) -> str:
        """What somebody who has never been here can do now."""
        if self._problems:
            return tr(
                "Not right yet: {sign} marks the steps with wrong values, the plan says what. ^o opens all as text.",
                sign=glyph("fail"),
            )
        if self._planned.trouble:
            return tr("Not complete yet: the plan says what is missing, and {sign} where it is.", sign=glyph("fail"))
        return tr("Every field has a value already: ^g shows the plan and launches it. Enter goes through the fields.")

    def action_widen_plan(self) -> None:
        self.query_one(PlanPanel).toggle()
        if self.focused is not None:
            self.call_after_refresh(self.focused.scroll_visible)

    # The environment

    def _examine(self) -> None:
        """Look at this machine for the preset as it is now, where that has not been done."""
        assert self._draft is not None
        options = preset_options(self._draft)
        if options != self._look.options and not self._draft.problems():
            self._look.begin(options)
            self.examine(self._look.run, options)

    @work(exclusive=True, group="doctor", exit_on_error=False)
    async def examine(self, run: int, arguments: tuple[str, ...]) -> None:
        """Let the doctor look; the walk goes on meanwhile."""
        await examine(self, run, self.wizard.runs_dir, *arguments)

    @on(DoctorSaid)
    @on(DoctorEnded)
    def take_look(self, message: DoctorSaid | DoctorEnded) -> None:
        self._look.take(message)
        if self._step is STEPS[0]:
            self._draw_plan()

    # The other two views

    def action_save(self) -> None:
        from tui.screens.save_preset import SavePresetDialog

        if self._draft is None:
            return

        def saved(path: Path | None) -> None:
            if path is not None:
                self.wizard.say(tr("Saved as {path}.", path=plain(str(path))))

        self.app.push_screen(SavePresetDialog(self._draft), saved)

    def action_copy(self) -> None:
        from tui.screens.command_line import CommandLineDialog

        if self._draft is not None:
            self.app.push_screen(CommandLineDialog(self._draft))

    def action_edit(self) -> None:
        """Edit the preset as text; what comes back wrong is said with its lines, and opened again next time."""
        if self._draft is None:
            return
        editor = find_editor()
        if editor is None:
            self.wizard.say(tr("No editor was found; set EDITOR to the one to use."), error=True)
            return
        try:
            text = edited(self.app, editor, self._refused_text or self._draft.yaml(), self._file_name())
        except (OSError, InputError) as error:
            self.wizard.say(plain(str(error)), error=True)
        except SuspendNotSupported:
            self.wizard.say(tr("This terminal cannot make room for an editor."), error=True)
        else:
            self._take_text(text)

    def _file_name(self) -> str:
        """What the draft is called in the editor, and in messages about its lines."""
        assert self._draft is not None
        return f"{self._draft.preset_name}.yaml"

    def _take_text(self, text: str) -> None:
        from tui.screens.refused_text import RefusedTextDialog

        assert self._draft is not None
        try:
            self._draft.take_text(text, self._file_name())
        except InputError as error:
            self._refused_text = text

            def again(yes: bool | None) -> None:
                if yes:
                    self.action_edit()

            self.app.push_screen(RefusedTextDialog(plain(error.message), text), again)
            return
        self._refused_text = ""
        self._refresh_values()
        self._follow()
        self._examine()
        self.wizard.say(tr("Taken over from the editor."))


def planned(draft: Draft, edition: int, runs_dir: Path) -> Planned:
    """The plan of a draft on this machine, or why there is none."""
    from core.facts import facts_for

    try:
        return Planned(edition, draft.plan(facts_for(draft.preset(), runs_dir), runs_dir))
    except WizardError as error:
        return Planned(edition, None, error.message)
