"""One field of a form in one row: name, value, unit and default; a second row only says what is wrong with the value."""

from __future__ import annotations

from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import DescendantBlur, DescendantFocus
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, Static

from core.language import tr
from core.text.plain import plain
from tui.form import FieldSpec
from tui.status_marks import glyph, mark
from tui.widgets.cells import fitted
from tui.widgets.choice_line import ChoiceLine


class ValueInput(Input):
    """While nobody types in it, it shows the beginning of its value, and that there is more."""

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        if self.has_focus or y or cell_len(self.value) <= width:
            return super().render_line(y)
        return Strip([Segment(fitted(self.value, width), self.visual_style.rich_style)], width)


class FieldRow(Widget):
    """The row draws name and hint itself, in the margins of its one child, the editor: a form of thirty fields stays quick.

    A value takes the room of a hint that there is not. The margins for narrow screens are in setup.tcss.
    """

    DEFAULT_CSS = """
    FieldRow { height: auto; layout: vertical; }
    FieldRow > .editor { width: 1fr; margin: 0 26 0 26; }
    FieldRow.-no-hint > .editor { margin: 0 0 0 26; }
    FieldRow > .problem { height: auto; padding: 0 1 0 4; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
    ]

    class Changed(Message):
        """The user has typed or chosen another value; `text` is as typed."""

        def __init__(self, spec: FieldSpec, text: str) -> None:
            super().__init__()
            self.spec = spec
            self.text = text

    class Focused(Message):
        """The cursor is here now."""

        def __init__(self, spec: FieldSpec) -> None:
            super().__init__()
            self.spec = spec

    class Left(Message):
        """The user is done with this field; `by` is 1 for the next, -1 for the one before."""

        def __init__(self, row: FieldRow, by: int, moved: bool) -> None:
            super().__init__()
            self.row = row
            self.by = by
            self.moved = moved
            """Whether it was an arrow key, which stays within the step."""

    def __init__(self, spec: FieldSpec, text: str, changed: bool, default: str) -> None:
        super().__init__()
        self.spec = spec
        self.problem = ""
        self.changed = changed
        """Whether the value is not the preset's own."""
        self.default = default
        """As it is shown."""
        self._editor: Input | ChoiceLine
        if spec.choices:
            self._editor = ChoiceLine(spec.choices, text, tr(spec.if_empty))
        else:
            self._editor = ValueInput(plain(text), placeholder=f"({tr(spec.if_empty)})", compact=True)
            self._editor.cursor_blink = False
        self._editor.add_class("editor")
        self.set_class(not spec.unit, "-no-unit")
        self.set_class(not spec.unit and not default, "-no-hint")

    def compose(self) -> ComposeResult:
        yield self._editor

    def render(self) -> Text:
        narrow = self.screen.has_class("-narrow")
        label_cells, hint_cells = (self._editor.styles.margin.left, self._editor.styles.margin.right)
        pointer = "›" if self._editor.has_focus else " "
        sign, style = (glyph("fail"), "red") if self.problem else ("*", "yellow") if self.changed else (" ", "")
        text = Text(pointer, no_wrap=True, style="bold" if self._editor.has_focus else "")
        text.append(sign, style=style).append(fitted(self.spec.name, label_cells - 3))
        text.append(" " * max(0, self.size.width - label_cells - hint_cells + 1))
        return text.append(fitted(f" {self._hint(narrow)}", hint_cells), style="bright_black")

    def _hint(self, narrow: bool) -> str:
        unit = tr(self.spec.unit)
        if narrow:
            return unit
        default = tr("default {value}", value=self.default) if self.default else ""
        return ", ".join(filter(None, (unit, default)))

    @property
    def editor(self) -> Input | ChoiceLine:
        """What takes the focus."""
        return self._editor

    def show(self, text: str, changed: bool) -> None:
        """Show another value; nobody is told."""
        self.changed = changed
        with self.prevent(Input.Changed):
            if isinstance(self._editor, ChoiceLine):
                self._editor.show(text)
            elif self._editor.value != plain(text):
                self._editor.value = plain(text)
        self.refresh()

    def say(self, problem: str, changed: bool) -> None:
        """Show what is wrong with the value, or that nothing is."""
        if (problem, changed) == (self.problem, self.changed):
            return
        appears = bool(problem) and not self.query(".problem")
        self.problem, self.changed = problem, changed
        line = mark("fail").append(f"  {problem}")
        if appears:
            self.mount(Static(line, classes="problem", markup=False))
        for said in self.query(".problem").results(Static):
            said.update(line)
            said.display = bool(problem)
        self.refresh()

    @on(DescendantFocus)
    def tell_focus(self) -> None:
        self.refresh()
        self.post_message(self.Focused(self.spec))

    @on(DescendantBlur)
    def forget_focus(self) -> None:
        self.refresh()

    @on(Input.Changed)
    def tell_typed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Changed(self.spec, event.value))

    @on(ChoiceLine.Changed)
    def tell_chosen(self, event: ChoiceLine.Changed) -> None:
        event.stop()
        self.post_message(self.Changed(self.spec, event.line.value))

    @on(Input.Submitted)
    @on(ChoiceLine.Submitted)
    def tell_done(self, event: Message) -> None:
        event.stop()
        self.post_message(self.Left(self, 1, moved=False))

    def action_move(self, by: int) -> None:
        self.post_message(self.Left(self, by, moved=True))
