"""What the doctor has said of this machine while the user walks through Setup."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.text import Text

from core.language import tr
from tui.doctor_board import DoctorBoard
from tui.messages import DoctorEnded, DoctorSaid
from tui.status_marks import mark


@dataclass
class EnvironmentLook:
    """One examination; a new one begins with other options."""

    options: tuple[str, ...] | None = None
    """The preset that was judged by, as options of the command line."""
    run: int = 0
    board: DoctorBoard = field(default_factory=DoctorBoard)
    ended: bool = False
    trouble: str = ""

    def begin(self, options: tuple[str, ...] | None) -> None:
        """Forget what was said before; None where nobody looks yet."""
        self.options, self.run = options, self.run + 1
        self.board, self.ended, self.trouble = DoctorBoard(), False, ""

    def take(self, message: DoctorSaid | DoctorEnded) -> None:
        """Take in a message of this examination; those of an earlier one are passed over."""
        if message.run != self.run:
            return
        if isinstance(message, DoctorSaid):
            self.board.take(message.record)
        else:
            self.ended, self.trouble = True, message.trouble

    def text(self) -> Text:
        """How many checks came out how, and every problem in a line."""
        if self.options is None:
            return Text(tr("The doctor looks at this machine once the values are right."))
        lines = []
        if not self.ended:
            lines.append(Text(tr("The doctor looks at this machine ..."), style="bold"))
        if self.trouble:
            lines.append(mark("unknown").append(f"  {self.trouble}", style="none"))
        counts = [mark(status).append(f" {number}", style="none") for status, number in self.board.counts().items()]
        lines += [Text("  ").join(counts)] if counts else []
        for line in self.board.lines(only_problems=True):
            lines.append(mark(line.status).append(f"  {line.title}: {line.answer.summary}", style="none"))
        if self.ended:
            lines.append(Text(tr("2 shows all checks, and mends."), style="bright_black"))
        return Text("\n").join(lines)
