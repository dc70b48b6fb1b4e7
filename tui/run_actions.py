"""What can be done with a run from any screen: stop it, save a checkpoint, go on with it, look for why it failed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from core.language import tr
from core.runs import requests
from core.runs.directory import RunDirectory
from core.text.plain import plain
from tui.background import reason

if TYPE_CHECKING:
    from tui.app import WizardApp

RESUMABLE = ("failed", "stopped", "lost")
"""States of a run from which it can go on."""


def ask_to_stop(wizard: WizardApp, run: RunDirectory, already: str = "") -> None:
    """Ask, then leave a Stop request; `already` says who has asked before."""
    from tui.screens.confirm import ConfirmDialog

    def answered(yes: bool | None) -> None:
        if yes:
            _request(wizard, run, requests.STOP, tr("Stopping {name}; it saves its work first.", name=plain(run.name)))

    question = tr("Stop run {name}?", name=plain(run.name))
    details = already or tr("It saves its work first, and can be resumed from there.")
    wizard.push_screen(ConfirmDialog(question, details, tr("Yes, stop it"), tr("No, let it run")), answered)


def checkpoint(wizard: WizardApp, run: RunDirectory) -> None:
    """Ask the run for a checkpoint."""
    text = tr("Asked {name} for a checkpoint.", name=plain(run.name))
    _request(wizard, run, requests.CHECKPOINT, text)


def _request(wizard: WizardApp, run: RunDirectory, request: str, text: str) -> None:
    try:
        requests.ask(run, request)
    except OSError as error:
        wizard.say(tr("The request could not be written: {reason}", reason=plain(str(error))), error=True)
    else:
        wizard.say(text)


async def resume(wizard: WizardApp, run: RunDirectory) -> None:
    """Start the run's supervisor again, and watch it."""
    if why := await start_again(run):
        wizard.say(why, error=True)
    else:
        wizard.open_run(run)


async def start_again(run: RunDirectory) -> str:
    """Start the run's supervisor again; returns why that failed, "" where it runs."""
    from core.runs.start import start_supervisor

    if not run.plan.is_file():
        return tr("Run {name} is gone: its folder was removed or renamed.", name=plain(run.name))
    try:
        await asyncio.to_thread(start_supervisor, run)
    except Exception as error:
        return reason(error)
    return ""


def diagnose(wizard: WizardApp, run: RunDirectory) -> None:
    """Open Troubleshoot with a run."""
    wizard.watched = run
    wizard.switch_mode("troubleshoot")
