"""The part of the plan that belongs to one step, beside the fields that it follows from."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from core.language import tr
from core.plan import Plan
from core.text.plain import plain
from tui.plan_view import as_table, command_row, file_rows, number_rows
from tui.status_marks import mark


class PlanPanel(VerticalScroll, can_focus=False):
    """Brief where it is low; `toggle()` gives it more room."""

    DEFAULT_CSS = "PlanPanel > Static { height: auto; }"

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._stage_id = ""
        self._plan: Plan | None = None
        self._trouble: Sequence[str] = ()
        self._above: Text | None = None

    def compose(self) -> ComposeResult:
        yield Static(markup=False)

    def on_mount(self) -> None:
        self.border_title = tr("Plan")

    def show(self, stage_id: str, plan: Plan | None, trouble: Sequence[str], above: Text | None) -> None:
        """Show the plan of a stage, or what stands in the way of one; `above` stands before either."""
        self._stage_id, self._plan, self._trouble, self._above = stage_id, plan, trouble, above
        self._draw()

    def toggle(self) -> None:
        """More room, or as before."""
        self.toggle_class("-open")
        self.call_after_refresh(self._draw)

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        parts: list[RenderableType] = [self._above] if self._above else []
        stage = next((stage for stage in self._plan.stages if stage.id == self._stage_id), None) if self._plan else None
        if stage is None:
            parts.append(self._why_none())
        else:
            brief = self.screen.has_class("-narrow") and not self.has_class("-open")
            numbers = number_rows(stage, self.size.width, brief)
            files = [] if brief or stage.skip else file_rows(stage)
            command = [] if stage.skip else [command_row(stage)]
            parts += [as_table(rows, brief) for rows in (numbers, files, command) if rows]
        self.query_one(Static).update(Group(*parts))

    def _why_none(self) -> Text:
        if not self._trouble:
            return Text(tr("Planning ..."))
        lines = [mark("fail").append(f"  {plain(line)}", style="none") for line in self._trouble]
        return Text("\n").join([Text(tr("There is no plan yet:")), *lines])
