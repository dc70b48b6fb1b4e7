"""Errors a user can cause. They are printed as a message and a next step, never as a traceback."""

from core.exit_codes import ExitCode


class WizardError(Exception):
    """Something failed and the user should read why: what was found, what was expected, what to type next."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


class InputError(WizardError):
    """The user's input is wrong: a preset, an option, a file. The process exits with 64."""

    exit_code = ExitCode.USAGE


class StageError(WizardError):
    """A stage could not do its work, though its input was usable. The process exits with 2."""
