"""The exceptions that a user may see: what went wrong, what to do about it, and the exit code.

An expected failure is always an ObuildError and is printed as `message` and `hint`, never as a
traceback. Any other exception that escapes is a bug in obuild.

Exit codes: 1, a build or an action failed; 2, the input was found wrong before anything was
built; 130, interrupted or cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obuild.events import Place


class ObuildError(Exception):
    """A build or an action failed. `place` is where in the build, if it was in a stage."""

    exit_code = 1
    place: Place | None = None

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ObuildError):
    """Wrong input, found before anything was built: command line, spec, base, source, secret."""

    exit_code = 2


class SpecError(UsageError):
    """A mistake in a spec. `line` and `column` count from 1; 0 means the whole text."""

    def __init__(self, message: str, *, line: int = 0, column: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.line = line
        self.column = column


class ProcessError(ObuildError):
    """Another program failed; `message` holds its command line and the end of its stderr."""


class Cancelled(ObuildError):
    """The build was cancelled."""

    exit_code = 130


class StepFailed(ObuildError):
    """A step's command failed: its exit status is not 0. `parent` is the id of the layer below, if known."""

    parent: str = ""


class MachineError(ObuildError):
    """A guest did not start, was lost, or did not stop."""


class StoreError(ObuildError):
    """The store cannot do what was asked: no space, no permission, damaged, in use."""


class OutputError(ObuildError):
    """Our output cannot be written. Whatever was built is kept."""


def words(error: Exception) -> str:
    """The text of an error; for an OSError, without its number."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
