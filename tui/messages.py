"""What workers tell the screens. A newer message replaces an older one that a slow screen has not handled yet."""

from __future__ import annotations

from textual.message import Message

from core.runs.state import Status


class RunsListed(Message):
    """The runs of the runs folder, the newest first."""

    def __init__(self, statuses: list[Status]) -> None:
        super().__init__()
        self.statuses = statuses

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, RunsListed)
