"""The exceptions a user may see: what went wrong, what to do about it, and the exit code.

An expected failure is always an ObuildError and is printed as `message` and `hint`, never as a
traceback. Everything else that escapes is a defect in obuild.

Exit codes: 2, found wrong before anything was built; 1, a build or an action that failed;
130, interrupted or cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obuild.events import Place


class ObuildError(Exception):
    """A failure of a build or an action. `place` is where in a build it happened, if it was in a stage."""

    exit_code = 1
    place: Place | None = None

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ObuildError):
    """Input found wrong before anything was built: command line, spec, base, source, secret."""

    exit_code = 2


class SpecError(UsageError):
    """A mistake in a spec. `line` and `column` count from 1; 0 means the whole text."""

    def __init__(self, message: str, *, line: int = 0, column: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.line = line
        self.column = column


class ProcessError(ObuildError):
    """Another program ended badly; `message` holds its command line and the end of its stderr."""


class Cancelled(ObuildError):
    """The build was told to stop."""

    exit_code = 130


class StepFailed(ObuildError):
    """A step's command said no: its exit status is not 0."""


class MachineError(ObuildError):
    """A guest that would not start, was lost, or would not stop."""


class StoreError(ObuildError):
    """The store cannot do what it was asked: no space, no permission, damaged, in use."""


class OutputError(ObuildError):
    """What we print cannot be written; whatever was built stays."""


def words(error: Exception) -> str:
    """What an error says, without the number that an error of the system's has."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
