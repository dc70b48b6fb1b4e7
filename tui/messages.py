"""What workers tell the screens. Where only the newest counts, it replaces an older one that a slow screen has not handled yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.message import Message

if TYPE_CHECKING:  # the first frame does not wait for what only some screens need
    from core.cluster.samples import NodeView
    from core.plan import Plan
    from core.runs.directory import RunDirectory
    from core.runs.series import Series
    from core.troubleshoot.signature import Signature
    from tui.draft import Draft
    from tui.log_reader import LogLine
    from tui.plan_review import Review
    from tui.preset_listing import PresetRow
    from tui.run_listing import RunRow
    from tui.run_reader import RunSnapshot
    from tui.widgets.node_grid import NodeRow


class Newest(Message):
    """Of these only the newest counts: it replaces one of the same class that still waits."""

    def can_replace(self, message: Message) -> bool:
        return type(message) is type(self)


class WorkFailed(Message):
    """What tui.background was asked to do under this name could not be done; `reason` is plain."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__()
        self.name = name
        self.reason = reason


class RunsListed(Newest):
    """The runs of the runs folder, the newest first."""

    def __init__(self, rows: list[RunRow]) -> None:
        super().__init__()
        self.rows = rows


class PresetsListed(Message):
    """The presets to start from."""

    def __init__(self, presets: list[PresetRow]) -> None:
        super().__init__()
        self.presets = presets


class DraftOpened(Message):
    """A preset was read for editing."""

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self.draft = draft


class RunStarted(Message):
    """A run's supervisor holds the run."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__()
        self.run = run


class PlanReviewed(Message):
    """A draft was looked at; `edition` tells apart the reviews of one that has changed meanwhile."""

    def __init__(self, edition: int, review: Review) -> None:
        super().__init__()
        self.edition = edition
        self.review = review


class Planned(Message):
    """A plan of the draft as it was at `edition`, or why there is none; a later edition makes it stale."""

    def __init__(self, edition: int, plan: Plan | None, trouble: str = "") -> None:
        super().__init__()
        self.edition = edition
        self.plan = plan
        self.trouble = trouble

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Planned) and message.edition <= self.edition


class DoctorSaid(Message):
    """One record of `llm-wizard doctor --stream`; `run` tells apart the records of a doctor that was ended meanwhile."""

    def __init__(self, run: int, record: object) -> None:
        super().__init__()
        self.run = run
        self.record = record


class DoctorEnded(Message):
    """The doctor's process has ended; `trouble` is a sentence where it did not end as it should, else empty."""

    def __init__(self, run: int, trouble: str) -> None:
        super().__init__()
        self.run = run
        self.trouble = trouble


class FixPlanned(Message):
    """What `doctor --fix ID --dry-run` printed; `trouble` is a sentence where it could not."""

    def __init__(self, commands: list[str], trouble: str) -> None:
        super().__init__()
        self.commands = commands
        self.trouble = trouble


class FixEnded(Message):
    """The process of a fix has ended; the exit code is negative for a signal."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


class FixRan(Message):
    """A fix has run, whatever came of it: these checks are to be made again."""

    def __init__(self, checks: list[str]) -> None:
        super().__init__()
        self.checks = checks


class FailuresLoaded(Message):
    """The known failures."""

    def __init__(self, signatures: tuple[Signature, ...]) -> None:
        super().__init__()
        self.signatures = signatures


class TargetFound(Message):
    """What is to be diagnosed: a run, a file or a folder; None where there is no run yet. `turn` numbers the looks for it."""

    def __init__(self, turn: int, target: Path | None, label: str, options: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.turn = turn
        self.target = target
        self.label = label
        self.options = options


class TargetsListed(Message):
    """The runs that can be diagnosed, the newest first."""

    def __init__(self, rows: list[RunRow]) -> None:
        super().__init__()
        self.rows = rows


class Diagnosed(Message):
    """What `diagnose --json` printed about a target; `trouble` is a sentence where it printed something else."""

    def __init__(self, target: Path, document: object, trouble: str) -> None:
        super().__init__()
        self.target = target
        self.document = document
        self.trouble = trouble


class OfRun(Newest):
    """Something that was read of a run; `turn` tells apart what was read of the run before, or of its other stage."""

    def __init__(self, turn: int) -> None:
        super().__init__()
        self.turn = turn


class RunLooked(OfRun):
    """The state, the curves and the events of a run."""

    def __init__(self, turn: int, snapshot: RunSnapshot) -> None:
        super().__init__(turn)
        self.snapshot = snapshot


class RunFound(Message):
    """The run that the Run mode is to show; None where none runs."""

    def __init__(self, run: RunDirectory | None) -> None:
        super().__init__()
        self.run = run


class NodesLooked(OfRun):
    """The nodes of a run, as rows of the grid."""

    def __init__(self, turn: int, rows: list[NodeRow]) -> None:
        super().__init__(turn)
        self.rows = rows


class NodeLooked(Newest):
    """One node with its last minutes."""

    def __init__(self, view: NodeView | None, history: list[dict[str, Any]]) -> None:
        super().__init__()
        self.view = view
        self.history = history


class LogEndRead(OfRun):
    """The newest lines of a log."""

    def __init__(self, turn: int, lines: list[LogLine], skipped: int) -> None:
        super().__init__(turn)
        self.lines = lines
        self.skipped = skipped


class LogPartRead(Message):
    """Lines of a log that were asked for: "older", "newer", or "found" by a search for `needle`."""

    def __init__(
        self,
        turn: int,
        part: str,
        lines: list[LogLine],
        needle: str = "",
        byte: int | None = None,
        backwards: bool = True,
    ) -> None:
        super().__init__()
        self.turn, self.part, self.lines = turn, part, lines
        self.needle, self.byte, self.backwards = needle, byte, backwards


class DetailRead(OfRun):
    """The records of these steps."""

    def __init__(self, turn: int, series: Series, steps: tuple[int, int]) -> None:
        super().__init__(turn)
        self.series = series
        self.steps = steps
