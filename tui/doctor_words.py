"""The doctor's findings in words: the lines of the list, and all that is known of one."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from core.doctor.check import GROUPS
from core.language import tr, tr_later
from tui.doctor_board import WORST_FIRST, Line, all_nodes, nodes_label
from tui.sections import add_section
from tui.status_marks import mark
from tui.widgets.keyed_list import Item, in_columns

_RISKS = {
    "safe": tr_later("safe: it adds something that can be taken away again"),
    "rebuild": tr_later("a rebuild: it replaces what is there, and takes minutes"),
    "destructive": tr_later("destructive: it takes something away"),
}


def risk_words(risk: str) -> str:
    """A fix's risk with what it means."""
    return tr(_RISKS[risk]) if risk in _RISKS else risk


def list_items(lines: Iterable[Line], title_cells: int) -> list[Item]:
    """The list: a heading for each group, one row a line; the titles are a column of so many cells."""
    items: list[Item] = []
    group = None
    for line in lines:
        if line.group != group:
            group = line.group
            items.append((f"#{group}", Text(tr(GROUPS[group]) if group in GROUPS else group, style="bold")))
        items.append((line.key, _one_line(line, title_cells)))
    return items


def _one_line(line: Line, title_cells: int) -> Text:
    marks = max(mark(status).cell_len for status in WORST_FIRST) + 2
    text = Text("  ").append_text(in_columns(mark(line.status), marks))
    text.append_text(in_columns(Text(line.title), title_cells)).append("  ")
    if label := nodes_label(line.nodes):
        text.append(f"{label}: ", style="bold")
    return text.append(line.answer.summary.replace("\n", " "))


def detail(line: Line) -> Text:
    """All that is known of one line, to read and to copy."""
    answer = line.answer
    text = Text().append_text(mark(line.status)).append(f"  {line.title}\n", style="bold")
    text.append(f"{line.check}\n", style="bright_black")
    if answer.summary:
        text.append(f"\n{answer.summary}\n")
    if line.nodes:
        add_section(text, tr("On"), all_nodes(line.nodes))
    add_section(text, tr("Found"), answer.found)
    add_section(text, tr("Expected"), answer.expected)
    add_section(text, tr("Why it matters"), answer.why)
    if answer.fix is not None:
        heading = tr("What mends it") if answer.fix.runnable else tr("What to type")
        add_section(text, heading, "\n".join(answer.fix.preview))
        if answer.fix.runnable:
            text.append(
                f"\n{tr('f runs it, after asking. It is {risk}.', risk=risk_words(answer.fix.risk))}\n", style="cyan"
            )
    return text
