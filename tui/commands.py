"""The command palette: what can be done now, on this screen and with the runs and presets that there are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content
from textual.screen import Screen

from core.errors import WizardError
from core.language import tr
from core.text.plain import plain
from tui.app import WizardApp
from tui.log_target import FAILED
from tui.run_actions import RESUMABLE, ask_to_stop, checkpoint, diagnose, resume
from tui.run_listing import RunListing, RunRow
from tui.screens.base import WizardScreen
from tui.widgets.mode_bar import MODES

if TYPE_CHECKING:
    from tui.preset_listing import PresetRow

Result = TypeVar("Result")

RUNS = 20
"""Runs that the palette offers; Home lists them all."""
FILES_TIMEOUT_S = 2.0
"""After so long without an answer of the runs' file system, the palette does without runs."""


@dataclass(frozen=True)
class Command:
    """One line of the palette. Texts are already translated and plain; they are shown without markup."""

    title: str
    help: str
    run: Callable[[], Any]


class WizardCommands(Provider):
    """Commands are gathered when the palette opens: runs and presets may have changed since."""

    def __init__(self, screen: Screen[Any], match_style: Any = None) -> None:
        super().__init__(screen, match_style)
        self._commands: list[Command] = []

    @property
    def wizard(self) -> WizardApp:
        return cast(WizardApp, self.app)

    async def startup(self) -> None:
        runs, presets = await asyncio.gather(_in_time(partial(_runs, self.wizard)), _in_time(_presets))
        self._commands = [
            *_of_screen(self.screen),
            *_of_runs(self.wizard, runs or []),
            *_of_modes(self.wizard),
            *_of_presets(self.wizard, presets or []),
            *_of_application(self.wizard),
        ]

    async def discover(self) -> Hits:
        for command in self._commands:
            yield DiscoveryHit(Content(command.title), command.run, command.title, _help(command))

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        found = False
        for command in self._commands:
            score, offsets = matcher.fuzzy_search.match(query, command.title)
            if score > 0:
                found = True
                title = Content(command.title)
                for offset in offsets:
                    title = title.stylize(matcher.match_style, offset, offset + 1)
                yield Hit(score, title, command.run, command.title, _help(command))
        if not found:  # said here, because the palette's own words are not translated
            yield Hit(0.1, Content(tr("No command has these letters")), lambda: None)


def _help(command: Command) -> str:
    # The palette reads this as markup, whatever one does; a backslash keeps a bracket what it is.
    return command.help.replace("\\", "\\\\").replace("[", "\\[")


async def _in_time(work: Callable[[], Result]) -> Result | None:
    """What `work` returns, done in a daemon thread; None where it fails or takes too long: a file system may hang for ever."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Result | None] = loop.create_future()

    def give(result: Result | None) -> None:
        if not answer.done():
            answer.set_result(result)

    def run() -> None:
        result = None
        with suppress(WizardError, OSError):
            result = work()
        with suppress(RuntimeError):  # the screen was left meanwhile: its event loop is closed
            loop.call_soon_threadsafe(give, result)

    threading.Thread(target=run, name="commands", daemon=True).start()
    with suppress(asyncio.TimeoutError):
        return await asyncio.wait_for(answer, FILES_TIMEOUT_S)
    return None


def _runs(wizard: WizardApp) -> list[RunRow]:
    """The newest runs, and the one that is being watched first: a command is most likely meant for that."""
    rows = RunListing(wizard.runs_dir).read()
    watched = [row for row in rows if row.run == wizard.watched]
    return [*watched, *[row for row in rows if row.run != wizard.watched][:RUNS]]


def _presets() -> list[PresetRow]:
    from tui.preset_listing import list_presets

    return list_presets(Path())


def _of_screen(screen: Screen[Any]) -> Iterable[Command]:
    """What the keys of the screen below do: a key that one has not learnt yet can be found by its word."""
    if not isinstance(screen, WizardScreen):
        return
    app = screen.app
    actions = set()
    for active in screen.active_bindings.values():
        binding = active.binding
        if active.node is not screen or not active.enabled or not binding.show or binding.action in actions:
            continue
        actions.add(binding.action)
        help_text = tr("{key} on this screen", key=app.get_key_display(binding))
        if active.tooltip:
            help_text = f"{active.tooltip} ({help_text})"
        yield Command(binding.description, help_text, partial(app.run_action, binding.action, screen))


def _of_runs(wizard: WizardApp, rows: Iterable[RunRow]) -> Iterable[Command]:
    for row in rows:
        run, name = row.run, plain(row.run.name)
        state = tr("It is {state} now.", state=tr(row.state))
        yield Command(tr("Watch run {name}", name=name), state, partial(wizard.open_run, run))
        if row.state == "running":
            help_text = tr("It saves its work first; `resume` goes on from there.")
            yield Command(tr("Stop run {name}", name=name), help_text, partial(ask_to_stop, wizard, run))
        if row.state == "running" and row.stage == "pretrain":
            help_text = tr("At the end of this step; the run goes on.")
            yield Command(
                tr("Save a checkpoint of run {name} now", name=name), help_text, partial(checkpoint, wizard, run)
            )
        if row.state in RESUMABLE:
            help_text = tr("From its last verified checkpoint.")
            yield Command(tr("Resume run {name}", name=name), help_text, partial(resume, wizard, run))
        if row.state in FAILED:
            help_text = tr("Look for the cause in its logs.")
            yield Command(tr("Why did run {name} fail?", name=name), help_text, partial(diagnose, wizard, run))


def _of_modes(wizard: WizardApp) -> Iterable[Command]:
    for number, (mode, title) in enumerate(MODES.items(), 1):
        help_text = tr("{key} on every screen", key=number)
        yield Command(tr("Go to {mode}", mode=tr(title)), help_text, partial(wizard.switch_mode, mode))
    yield Command(
        tr("Search the known failures"),
        tr("By a word of the error message, its cause or its fix."),
        partial(search_failures, wizard),
    )


def _of_presets(wizard: WizardApp, rows: Iterable[PresetRow]) -> Iterable[Command]:
    for row in rows:
        if not row.trouble:
            title = tr("New run from preset {name}", name=plain(row.source))
            yield Command(title, plain(tr(row.description)), partial(start_preset, wizard, row.source))


def _of_application(wizard: WizardApp) -> Iterable[Command]:
    yield Command(tr("Keys"), tr("What each key does on this screen."), wizard.action_show_keys)
    yield Command(tr("Change the colours"), tr("Choose a theme."), wizard.action_change_theme)
    yield Command(tr("Quit"), tr("Runs go on."), wizard.action_quit)


async def start_preset(wizard: WizardApp, source: str) -> None:
    """Open a preset in Setup."""
    from tui.draft import Draft

    try:
        draft = await asyncio.to_thread(Draft.from_preset, source)
    except (WizardError, OSError) as error:
        wizard.say(plain(str(error)), error=True)
    else:
        wizard.open_draft(draft)


async def search_failures(wizard: WizardApp) -> None:
    """Open Troubleshoot with the cursor in the search of the known failures."""
    from tui.screens.troubleshoot import TroubleshootScreen

    await wizard.switch_mode("troubleshoot")
    if isinstance(wizard.screen, TroubleshootScreen):
        wizard.screen.action_search()
