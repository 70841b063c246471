"""What this host can do, for people: each room that needs something of it says whether that is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from obuild.errors import ProcessError, UsageError
from obuild.host import process


class Capability(NamedTuple):
    """Whether something works here. `said` is what was found, and `mend` what to do if it does not work.

    Without what is `essential`, no build can run steps in virtual machines.
    """

    what: str
    works: bool
    said: str
    mend: str = ""
    essential: bool = False


def checked(what: str, check: Callable[[], str], *, essential: bool = False) -> Capability:
    """Try a check that returns what it found, or raises a UsageError or a ProcessError if it does not work."""
    try:
        return Capability(what, True, check(), essential=essential)
    except (UsageError, ProcessError) as error:
        return Capability(what, False, error.message, error.hint, essential)


def programs(*names: str) -> str:
    """A check for programs. UsageError if one is missing."""
    for name in names:
        process.require(name)
    return ", ".join(names)
