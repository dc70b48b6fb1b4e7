"""A log with what is going on above it, and a field for a search or a rank below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import DescendantBlur, DescendantFocus
from textual.message import Message
from textual.widgets import Input, Static

from core.language import tr, tr_later
from core.quantities import count
from tui.log_reader import LogLine
from tui.widgets.log_view import LogView

HERE = "› "
"""Stands before the row above the lines while they have the focus: a border that changes would redraw all within it."""


class LogPane(Vertical):
    """The lines with what is going on above them, and a field for a search or a rank below."""

    DEFAULT_CSS = """
    LogPane { height: 1fr; }
    LogPane #log-said { height: 1; text-wrap: nowrap; text-overflow: ellipsis; color: $text-muted; }
    LogPane Input { height: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "slash",
            "ask('search')",
            tr_later("Search"),
            key_display="/",
            tooltip=tr_later("Search the whole log, from here upwards."),
        ),
        Binding("f", "ask('rank')", tr_later("Rank"), tooltip=tr_later("Show only the lines of one rank.")),
        Binding("n", "next(True)", tr_later("Next match"), show=False, tooltip=tr_later("The next match upwards.")),
        Binding(
            "N", "next(False)", tr_later("Next match down"), show=False, tooltip=tr_later("The next match downwards.")
        ),
        Binding("y", "copy", tr_later("Copy"), show=False, tooltip=tr_later("Copy the lines that are seen.")),
        Binding(
            "escape", "give_up", tr_later("Clear"), show=False, tooltip=tr_later("Leave the search and show all ranks.")
        ),
    ]

    class SearchWanted(Message):
        """Look for the needle from this byte of the file on."""

        def __init__(self, needle: str, byte: int | None, backwards: bool) -> None:
            super().__init__()
            self.needle, self.byte, self.backwards = needle, byte, backwards

    class RankWanted(Message):
        """Show only this rank's lines; all lines for ""."""

        def __init__(self, rank: str) -> None:
            super().__init__()
            self.rank = rank

    class FollowWanted(Message):
        """The end of the log is wanted at once."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.rank = ""
        self.skipped = 0
        self.said = ""
        """How a search is doing."""
        self._asking = ""

    def compose(self) -> ComposeResult:
        yield Static(id="log-said", markup=False)
        yield LogView(id="log-view")
        yield Input(id="log-field", compact=True)

    @property
    def view(self) -> LogView:
        return self.query_one(LogView)

    def on_mount(self) -> None:
        self.query_one("#log-field").display = False
        self._say()

    # --- what it is given

    def show_end(self, lines: Sequence[LogLine], skipped: int) -> None:
        """The newest lines and how many came too fast to be looked at."""
        self.skipped = skipped
        self.view.show_end(lines)
        self._say()

    def show_found(self, needle: str, lines: Sequence[LogLine], byte: int | None, backwards: bool) -> None:
        """The end of a search; `byte` is None where nothing was found."""
        if needle != self.view.needle:
            return
        if byte is None:
            self.said = tr("no match above") if backwards else tr("no match below")
        else:
            self.said = ""
            self.view.show_part(lines, byte)
        self._say()

    def clear(self) -> None:
        """Another log."""
        self.skipped, self.said = 0, ""
        self.view.clear()
        self._say()

    def _say(self) -> None:
        view = self.view
        parts = [tr("following") if view.following else tr("paused; End follows again")]
        if self.rank:
            parts.append(tr("only rank {rank}", rank=self.rank))
        if view.needle:
            parts.append(f"/{view.needle}" + (f": {self.said}" if self.said else tr("  n next, N down")))
        if self.skipped and view.following:
            parts.append(tr("{count} lines came too fast to show; they are in the file", count=count(self.skipped)))
        text = (HERE if self.view.has_focus else "") + " | ".join(parts)
        said = self.query_one("#log-said", Static)
        if said.content != text:
            said.update(text, layout=False)

    @on(LogView.Moved)
    def _moved(self) -> None:
        self._say()
        if self.view.following:
            self.post_message(self.FollowWanted())

    # --- the field below

    def action_ask(self, what: str) -> None:
        self._asking = what
        field = self.query_one("#log-field", Input)
        field.value = self.view.needle if what == "search" else self.rank
        field.placeholder = (
            tr("Words to search for, Enter") if what == "search" else tr("Number of a rank, Enter; empty for all")
        )
        field.restrict = None if what == "search" else r"\d{0,5}"
        field.display = True
        self.screen.set_focus(field)  # at once: the next key may have been typed already

    @on(Input.Submitted, "#log-field")
    def _answered(self, event: Input.Submitted) -> None:
        event.stop()
        if self._asking == "rank":
            self.take_rank(event.value.strip())
        else:
            self.view.needle, self.said = event.value, ""
            self.view.found = None
            self.view.refresh()
            if event.value:
                self._search(backwards=True)
        self._close_field()

    @on(DescendantFocus)
    @on(DescendantBlur)
    def _focus_moved(self) -> None:
        field = self.query_one("#log-field", Input)
        if self.screen.focused is not field:
            field.display = False
        self._say()

    def _close_field(self) -> None:
        self.screen.set_focus(self.view)
        self.query_one("#log-field", Input).display = False
        self._say()

    def take_rank(self, rank: str) -> None:
        if rank != self.rank:
            self.rank = rank
            self.clear()
            self.post_message(self.RankWanted(rank))

    def action_next(self, backwards: bool) -> None:
        if self.view.needle:
            self._search(backwards)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return bool(self.view.needle) if action == "next" and self.is_mounted else True

    def _search(self, backwards: bool) -> None:
        view = self.view
        self.said = tr("searching")
        seen = view.seen
        # A new search upwards begins below the last line that is seen.
        start = view.found if view.found is not None else (seen[-1].byte + 1 if seen else None)
        self.post_message(self.SearchWanted(view.needle, start, backwards))
        self._say()

    def action_copy(self) -> None:
        self.app.copy_to_clipboard("\n".join(line.text for line in self.view.seen))
        self.notify(tr("Copied the lines that are seen."), markup=False)

    def action_give_up(self) -> None:
        self.view.needle, self.view.found, self.said = "", None, ""
        self.view.refresh()
        self.take_rank("")
        self._close_field()
