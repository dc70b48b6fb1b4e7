"""Troubleshoot: why a run failed, by its logs; and all failures that are known, to search by a word of the message."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import orjson
from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Input, OptionList, Static

from core.language import tr, tr_later
from core.runs.directory import RunDirectory
from core.text.plain import plain
from tui.background import in_background
from tui.diagnosis import (
    Diagnosis,
    Evidence,
    evidence_text,
    fix_command,
    read_diagnosis,
    search,
    signature_text,
    verdict_text,
)
from tui.doctor_board import FixOffer
from tui.log_target import find_target
from tui.messages import Diagnosed, FailuresLoaded, TargetFound, TargetsListed, WorkFailed
from tui.run_listing import RunListing
from tui.screens.base import WizardScreen
from tui.screens.choose_log import ChooseLogDialog
from tui.status_marks import mark
from tui.verb import Verb, preset_options
from tui.widgets.keyed_list import Item, KeyedList, in_columns

if TYPE_CHECKING:
    from core.troubleshoot.signature import Signature

VERDICT = "verdict"
"""The key of the line that stands for a verdict without a finding."""
NARROW_ID, WIDE_ID = 26, 34


class SearchInput(Input):
    """Down goes on to what was found."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "down", "submit", tr_later("To the list"), key_display="↓", tooltip=tr_later("Go on to what was found.")
        )
    ]


class TroubleshootScreen(WizardScreen[None]):
    """The findings of one diagnosis or the known failures, and beside or below them the details of one."""

    MODE = "troubleshoot"
    HELP = tr_later("Why a run failed, from its logs: the line that says so, the cause, and what to do.")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "choose", tr_later("Run or log"), tooltip=tr_later("Choose another run, or a log by its path.")),
        Binding("slash", "search", tr_later("Search"), key_display="/", tooltip=tr_later("Search all known failures.")),
        Binding(
            "d", "mend", tr_later("Mend"), tooltip=tr_later("What the doctor can do about it: shows its commands.")
        ),
        Binding("c", "copy", tr_later("Copy"), tooltip=tr_later("Copy the details: evidence, cause, fix and sources.")),
        Binding("r", "again", tr_later("Read again"), tooltip=tr_later("Read the logs again.")),
        Binding(
            "escape",
            "back",
            tr_later("Back"),
            tooltip=tr_later("From the details to the list; from the known failures to the verdict."),
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0
        """Numbers the looks for a target: an older one's answer counts no more."""
        self._chosen: Path | None = None
        """What the user chose here; the run of the Run mode, or the newest that failed, where nothing was chosen."""
        self._target: Path | None = None
        self._label = ""
        self._options: tuple[str, ...] = ()
        self._watched: RunDirectory | None = None
        """The run of the Run mode that was diagnosed last."""
        self._reading_since: float | None = None
        self._diagnosis: Diagnosis | None = None
        self._trouble = ""
        self._signatures: dict[str, Signature] = {}
        self._known: list[Signature] = []

    def body(self) -> Iterable[Widget]:
        yield Static(id="target", markup=False)
        yield Static(id="verdict", markup=False)
        with Container(id="main"):
            with Vertical(id="list-box"):
                yield KeyedList(id="findings")
                yield SearchInput(
                    id="words", compact=True, placeholder=tr("words of the message, the cause or the fix")
                )
                yield KeyedList(id="known")
            with VerticalScroll(id="detail-box") as detail_box:
                detail_box.border_title = tr("Details")
                yield Static(id="detail", markup=False)

    def on_mount(self) -> None:
        self._show_list(known=False)
        self.query_one("#findings").focus()
        self.set_interval(0.5, self._tick)
        in_background(self, _failures, "failures")

    def on_screen_resume(self) -> None:
        """Another run is watched, or there was none that failed: look again. What was chosen here stays."""
        if self.wizard.watched != self._watched:
            self._watched, self._chosen = self.wizard.watched, None
            self._find_target()
        elif self._target is None and self._chosen is None:
            self._find_target()

    # What is diagnosed

    def choose(self, path: Path) -> None:
        """Diagnose a run's folder, a log or a folder with logs."""
        self._chosen = path
        self._show_list(known=False)
        self._find_target()

    def _find_target(self) -> None:
        """Look at the run, or for one, beside the screen."""
        self._turn += 1
        chosen = self._chosen or (self._watched.root if self._watched is not None else None)
        in_background(self, partial(find_target, self._turn, self.wizard.runs_dir, chosen), "target")

    @on(TargetFound)
    def take_target(self, message: TargetFound) -> None:
        if message.turn != self._turn:
            return
        self._target, self._label, self._options = message.target, message.label, message.options
        self._diagnosis, self._trouble, self._reading_since = None, "", None
        if message.target is not None:
            self._read()
        self._show()

    def _read(self) -> None:
        assert self._target is not None
        self._reading_since = time.monotonic()
        self.diagnose(self._target, self._options)

    @work(exclusive=True, group="diagnose", exit_on_error=False)
    async def diagnose(self, target: Path, options: tuple[str, ...]) -> None:
        """`llm-wizard diagnose --json` as a process: a log of gigabytes neither blocks the screen nor fills its memory."""
        document: object = None
        trouble = ""
        try:
            async with Verb(self.wizard.runs_dir, "diagnose", str(target), "--json", *options) as verb:
                printed = "\n".join([line async for line in verb.lines()])
            try:
                document = orjson.loads(printed)
            except orjson.JSONDecodeError:
                words = verb.last_words or plain(printed)[-500:] or tr("it said nothing")
                trouble = tr("The logs could not be read (exit code {code}): {words}", code=verb.exit_code, words=words)
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            trouble = tr("The diagnosis could not be started: {reason}", reason=plain(str(error)))
        self.post_message(Diagnosed(target, document, trouble))

    @on(Diagnosed)
    def take_diagnosis(self, message: Diagnosed) -> None:
        if message.target != self._target:
            return
        self._reading_since = None
        self._diagnosis = read_diagnosis(message.document)
        self._trouble = message.trouble
        if self._diagnosis is None and not self._trouble:
            self._trouble = tr("The diagnosis printed something else than a diagnosis.")
        self._show()

    # The known failures

    @on(FailuresLoaded)
    def take_failures(self, message: FailuresLoaded) -> None:
        self._signatures = {one.id: one for one in message.signatures}
        self._show_known()
        self._show_detail()

    @on(Input.Changed, "#words")
    def search_again(self) -> None:
        self._show_known()

    @on(Input.Submitted, "#words")
    def go_to_hits(self) -> None:
        self.query_one("#known").focus()

    @on(WorkFailed)
    def say_failure(self, message: WorkFailed) -> None:
        if message.name == "target":
            self._trouble = message.reason
            self._show()
        else:
            self.wizard.say(message.reason, error=True)

    # What is shown

    def on_resize(self) -> None:
        self._show()
        self._show_known()

    def _tick(self) -> None:
        if self._reading_since is not None:
            self._show_verdict()

    def _show(self) -> None:
        target = self.query_one("#target", Static)
        target.display = bool(self._label)
        target.update(self._label)
        self._show_verdict()
        findings = self.query_one("#findings", KeyedList)
        with self.prevent(OptionList.OptionHighlighted):
            findings.show(self._finding_items())
            if findings.highlighted is None and findings.option_count:
                findings.highlighted = 0
        self._show_detail()

    def _show_verdict(self) -> None:
        self.query_one("#verdict", Static).update(self._verdict_line())

    def _verdict_line(self) -> Text:
        if self._reading_since is not None:
            seconds = f"{time.monotonic() - self._reading_since:.0f}"
            return mark("running").append("  ").append(tr("reading the logs, {seconds} s", seconds=seconds))
        if self._trouble:
            return mark("unknown").append("  ").append(self._trouble)
        if self._diagnosis is None:
            return Text(tr("No run has failed. o chooses a run or a log; / searches the known failures."))
        verdict = mark(self._diagnosis.state)
        if self._diagnosis.state == "failed":
            verdict.append(f"  {self._diagnosis.verdict}", style="bold")
        others = len(self._diagnosis.evidence) - (self._diagnosis.state == "failed")
        return verdict.append("  ").append(tr("and {count} other findings", count=others) if others > 0 else "")

    def _finding_items(self) -> list[Item]:
        if self._diagnosis is None:
            return []
        items: list[Item] = []
        if self._diagnosis.state != "failed":
            items.append((VERDICT, mark(self._diagnosis.state)))
        for number, evidence in enumerate(self._diagnosis.evidence):
            items.append((str(number), _one_line(evidence, self._id_cells())))
        return items

    def _show_known(self) -> None:
        words = self.query_one("#words", Input).value
        self._known = search(self._signatures.values(), words)
        known = self.query_one("#known", KeyedList)
        with self.prevent(OptionList.OptionHighlighted):
            known.show(_known_items(self._known, self._id_cells()))
            if known.highlighted is None or known.key not in {one.id for one in self._known}:
                known.go_to(self._known[0].id if self._known else "")
        self._show_title()
        self._show_detail()

    def _show_title(self) -> None:
        box = self.query_one("#list-box")
        if not self._is_known_shown():
            box.border_title = tr("Findings")
        else:
            total = len(self._signatures)
            box.border_title = tr("Known failures: {count} of {total}", count=len(self._known), total=total)

    def _show_list(self, known: bool) -> None:
        self.query_one("#findings").display = not known
        self.query_one("#words").display = self.query_one("#known").display = known
        self._show_title()

    def _is_known_shown(self) -> bool:
        return bool(self.query_one("#known").display)

    def _id_cells(self) -> int:
        return NARROW_ID if self.has_class("-narrow") else WIDE_ID

    def _detail(self) -> Text:
        if self._is_known_shown():
            signature = self._signatures.get(self.query_one("#known", KeyedList).key or "")
            return signature_text(signature) if signature else Text(tr("No known failure has these words."))
        evidence = self._evidence()
        if evidence is not None:
            is_verdict = self._diagnosis is not None and evidence.id == self._diagnosis.verdict
            return evidence_text(evidence, self._signatures.get(evidence.id), is_verdict)
        return verdict_text(self._diagnosis) if self._diagnosis is not None else Text("")

    def _evidence(self) -> Evidence | None:
        key = self.query_one("#findings", KeyedList).key
        if self._diagnosis is None or key is None or key == VERDICT:
            return None
        return self._diagnosis.evidence[int(key)]

    def _signature(self) -> Signature | None:
        """Of the failure whose details are shown."""
        if self._is_known_shown():
            return self._signatures.get(self.query_one("#known", KeyedList).key or "")
        evidence = self._evidence()
        return self._signatures.get(evidence.id) if evidence else None

    def _show_detail(self) -> None:
        self.query_one("#detail", Static).update(self._detail())

    @on(OptionList.OptionHighlighted)
    def follow_cursor(self) -> None:
        self._show_detail()

    @on(OptionList.OptionSelected)
    def open_detail(self) -> None:
        box = self.query_one("#detail-box")
        box.scroll_home(animate=False)
        box.focus()

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """In the search field a slash is a character like any other; from the findings there is nowhere to go back to."""
        place = self.focused.id if self.focused is not None else None
        return (action, place) not in (("search", "words"), ("back", "findings"), ("back", None))

    def action_back(self) -> None:
        if self.query_one("#detail-box").has_focus:
            self.query_one("#known" if self._is_known_shown() else "#findings").focus()
        elif self._is_known_shown():
            self._show_list(known=False)
            self.query_one("#findings").focus()
            self._show_detail()

    def action_search(self) -> None:
        self._show_list(known=True)
        self.query_one("#words").focus()
        self._show_detail()

    def action_again(self) -> None:
        self._find_target()

    def action_choose(self) -> None:
        runs_dir = self.wizard.runs_dir
        in_background(self, lambda: TargetsListed(RunListing(runs_dir).read()), "runs")

    @on(TargetsListed)
    def ask_what(self, message: TargetsListed) -> None:
        def chosen(path: Path | None) -> None:
            if path is not None:
                self.choose(path)

        self.app.push_screen(ChooseLogDialog(message.rows), chosen)

    async def action_mend(self) -> None:
        signature = self._signature()
        command = fix_command(signature)
        if signature is None or not command:
            self.wizard.say(tr("The doctor has nothing for this; what to do is in the details."))
        elif signature.doctor_fix and "--fix" in command:
            from tui.screens.fix import FixScreen

            offer = FixOffer(signature.doctor_fix, "", (), runnable=True)
            checks = [signature.check] if signature.check else []
            preset = preset_options(self.wizard.draft)
            self.app.push_screen(FixScreen(self, offer, tr(signature.cause), preset, checks, self.MODE))
        else:
            await self.wizard.open_check(str(signature.check))

    def action_copy(self) -> None:
        if detail := self._detail().plain.strip():
            self.app.copy_to_clipboard(detail)
            self.wizard.say(tr("Copied the details."))


def _failures() -> FailuresLoaded:
    from core.troubleshoot.signatures import load_signatures

    return FailuresLoaded(load_signatures())


def _one_line(evidence: Evidence, id_cells: int) -> Text:
    roles = max(mark(role).cell_len for role in ("root", "cascade", "advisory", "info")) + 2
    text = in_columns(mark(evidence.role), roles).append_text(in_columns(Text(evidence.id), id_cells)).append("  ")
    if evidence.line is not None:
        text.append(f"{evidence.line}: ", style="bold")
    return text.append(evidence.text.replace("\n", " "))


def _known_items(known: Sequence[Signature], id_cells: int) -> list[Item]:
    items: list[Item] = []
    category = None
    for one in known:
        if one.category != category:
            category = one.category
            items.append((f"#{category}", Text(category.replace("_", " "), style="bold")))
        line = Text("  ").append_text(in_columns(Text(one.id), id_cells)).append("  ")
        items.append((one.id, line.append(tr(one.cause).replace("\n", " "))))
    return items
