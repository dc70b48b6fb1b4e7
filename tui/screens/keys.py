"""`?`: the keys of the screen below, each with its sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, Static

from core.language import tr, tr_later
from tui.screens.base import WizardDialog
from tui.widgets.key_bar import KeyBar
from tui.widgets.keyed_list import KeyedList
from tui.widgets.mode_bar import MODES

_OF_WIDGETS: tuple[tuple[type[Widget], tuple[tuple[str, str], ...]], ...] = (
    (
        Input,
        (
            ("enter", tr_later("Take what is typed.")),
            ("ctrl+u", tr_later("Clear the line up to the cursor.")),
            ("tab", tr_later("Go to the next field.")),
        ),
    ),
    (KeyedList, (("↑ ↓", tr_later("Move in the list.")),)),
)
"""The few keys of Textual's own widgets that a user has to know; the rest (Home, Page Down, ...) does what its name says."""

_PALETTE = "app.command_palette"


def key_rows(screen: Screen[object]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(keys, sentence)]) of what the keys do on this screen now."""
    app = screen.app
    here: dict[str, tuple[list[str], str]] = {}
    focused: dict[str, tuple[list[str], str]] = {}
    everywhere: dict[str, tuple[list[str], str]] = {}
    for active in screen.active_bindings.values():
        if not _ours(active) or not active.enabled or not active.binding.description:
            continue
        rows = everywhere if active.node is app else here if active.node is screen else focused
        keys, _ = rows.setdefault(active.binding.action, ([], active.tooltip or active.binding.description))
        if (shown := app.get_key_display(active.binding)) not in keys:
            keys.append(shown)
    for action in [action for action in everywhere if action.startswith("open_mode(")]:
        del everywhere[action]  # one row for all of them
    groups = [(tr("On this screen"), _joined(here)), (tr("In what is focused"), _of_focused(screen) + _joined(focused))]
    modes = f"1 .. {len(MODES)}  f1 .. f{len(MODES)}"
    titles = ", ".join(tr(title) for title in MODES.values())
    listed_modes = [(modes, tr("Go to a mode: {titles}.", titles=titles)), *_joined(everywhere)]
    return [(heading, listed) for heading, listed in (*groups, (tr("Everywhere"), listed_modes)) if listed]


def _ours(active: ActiveBinding) -> bool:
    """Whether the key is one of this application's own; those of Textual's widgets have no sentences of ours."""
    if active.binding.system:
        return False
    owners = [cls for cls in type(active.node).__mro__ if active.binding.action in _actions(cls)]
    return any(cls.__module__.startswith("tui.") for cls in owners) or active.binding.action == _PALETTE


def _actions(cls: type) -> set[str]:
    bindings = cls.__dict__.get("BINDINGS", ())
    return {binding.action for binding in Binding.make_bindings(bindings)}


def _joined(rows: Mapping[str, tuple[list[str], str]]) -> list[tuple[str, str]]:
    return [(" ".join(keys), sentence) for keys, sentence in rows.values()]


def _of_focused(screen: Screen[object]) -> list[tuple[str, str]]:
    for cls, rows in _OF_WIDGETS:
        if isinstance(screen.focused, cls):
            return [(keys, tr(sentence)) for keys, sentence in rows]
    return []


class KeysDialog(WizardDialog[None]):
    """Escape, `?` or `q` closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", tr_later("Close"), key_display="esc"),
    ]

    def __init__(self, below: Screen[object]) -> None:
        super().__init__()
        self._groups = key_rows(below)
        self._about = tr(below.HELP or "")

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="keys-box") as box:
            box.border_title = tr("Keys")
            yield from self._pages()
        yield KeyBar()

    def _pages(self) -> Iterable[Widget]:
        if self._about:
            yield Static(self._about, classes="about", markup=False)
        for heading, rows in self._groups:
            yield Static(heading, classes="heading", markup=False)
            table = Table.grid(padding=(0, 2), expand=True)
            table.add_column(no_wrap=True, min_width=10)
            table.add_column(ratio=1)
            for keys, sentence in rows:
                table.add_row(Text(keys, style="bold"), Text(sentence))
            yield Static(table)

    def on_mount(self) -> None:
        self.query_one("#keys-box").focus()
