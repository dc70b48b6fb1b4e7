"""Work that may wait for a file system, beside the screen."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from textual.message import Message
from textual.message_pump import MessagePump

from core.errors import WizardError
from core.text.plain import plain
from tui.messages import WorkFailed


def in_background(pump: MessagePump, work: Callable[[], Message | None], name: str) -> None:
    """Do `work` in a thread and post the message that it returns, if any, to `pump`, or WorkFailed(name, what it raised).

    A daemon thread, not one of Textual's workers: those hold up the end of the process until they return, which a hanging
    file system never lets them. So nothing that writes may be done here.
    """

    def run() -> None:
        message: Message | None
        try:
            message = work()
        except Exception as error:  # the thread's traceback would be drawn over the screen
            message = WorkFailed(name, reason(error))
        if message is None:
            return
        with contextlib.suppress(RuntimeError):  # the screen was left meanwhile: its event loop is closed
            pump.post_message(message)

    threading.Thread(target=run, name=name, daemon=True).start()


def reason(error: Exception) -> str:
    """What went wrong, for the user to read; an error that nobody foresaw says what it is."""
    return plain(str(error) if isinstance(error, (WizardError, OSError)) else f"{type(error).__name__}: {error}")
