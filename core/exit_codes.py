"""The one table of exit codes, for all verbs."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell sees when a verb ends."""

    DONE = 0
    """The verb did what was asked; every check passed."""
    WARNINGS = 1
    """Warnings only (doctor)."""
    FAILED = 2
    """A check or a run failed."""
    UNKNOWN = 3
    """Something could not be observed and nothing failed (doctor)."""
    USAGE = 64
    """Wrong usage, an invalid preset, or input that cannot be used."""
    INTERRUPTED = 130
    """Interrupted by the user, or a run that was stopped on request."""
