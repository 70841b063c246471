"""What `--on-failure` does in the machine where a step failed, before the machine goes away."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from obuild.errors import MachineError, UsageError

if TYPE_CHECKING:
    from obuild.events import Teller
    from obuild.executors.protocol import OnFailure, Session
    from obuild.plan.steps import Command

WAYS = ("stop", "shell", "keep")


def chosen(way: str, *, jobs: int) -> OnFailure | None:
    """Return what `--on-failure` asks for. UsageError if it is unknown, or not possible with several jobs."""
    if way not in WAYS:
        raise UsageError(f"--on-failure {way}: it can be {', '.join(WAYS)}")
    if way == "stop":
        return None
    if jobs > 1:
        raise UsageError(f"--on-failure {way} works only for one stage at a time", hint="leave out --jobs")

    def shell(session: Session, command: Command, status: int, tell: Teller) -> None:
        tell.note(
            f"the command failed with exit status {status}; opening a shell in its machine, until you leave it"
        )
        session.interact(command)

    def keep(session: Session, command: Command, status: int, tell: Teller) -> None:
        from obuild.executors.protocol import Reachable  # late: seldom needed

        if not isinstance(session, Reachable):
            tell.note(
                f"the command failed with exit status {status}; its session allows no login, so it is not kept"
            )
            return
        tell.note(f"the command failed with exit status {status}; its machine is kept until you press Ctrl-C:")
        tell.note(f"    {session.address()}")
        with suppress(KeyboardInterrupt, MachineError):  # or until it powers off
            session.wait()

    return shell if way == "shell" else keep
