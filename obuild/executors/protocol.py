"""What every executor offers to a build, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from obuild.events import SILENT, Teller
from obuild.executors.settings import Settings
from obuild.guests.profile import Card
from obuild.host.process import CancelScope
from obuild.plan.steps import Base, Command, Extract, Graft, Transfer
from obuild.store.layers import Draft, Store


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended, and what its caches hold now: an archive for each, in the command's order."""

    status: int
    caches: tuple[Path, ...] = ()


class Session(Protocol):
    """A draft that is open: commands run on it, and files go in and out.

    Every method raises a MachineError if the place where they run is lost.
    """

    def run(
        self,
        command: Command,
        caches: Sequence[Path],
        secrets: Mapping[str, bytes],
        output: Callable[[bytes], object],
    ) -> Outcome:
        """Run a command to its end. A status other than 0 is no error here, and its caches come back all the same.

        `output` gets stdout and stderr in the order in which they were written. `caches` has a path for each cache
        of the command: the archive to begin with, or no file for an empty cache. The new archives are beside
        these; the caller commits them. `secrets` has the value of each of the command's secrets; they are files at
        their targets while it runs, and nothing of them is there afterwards.
        """

    def interact(self, command: Command) -> int:
        """A shell at our own terminal, where the command would run; returns the shell's exit status."""

    def send(self, action: Transfer) -> None:
        """Put a tree into the draft. ObuildError if one of its files has changed meanwhile."""

    def take(self, extract: Extract, archive: Path) -> None:
        """Write files of the draft to a new tar archive. MachineError, in tar's words, if one is not there."""

    def graft(self, action: Graft, archive: Path) -> None:
        """Put the files of such an archive into the draft."""


@runtime_checkable
class Reachable(Protocol):
    """What a session offers besides if people can log in to it while it is open."""

    def address(self) -> str:
        """The command that logs in from this host."""

    def wait(self) -> None:
        """Wait until the session is lost: then a MachineError says why."""


#: Called with the session, the command that failed in it, its exit status, and what hears what a user should know.
#: What it does there is thrown away.
OnFailure = Callable[[Session, Command, int, Teller], None]


class Executor(Protocol):
    """Where the steps of one chain run, one at a time."""

    def open(self, draft: Draft, *, network: bool, tell: Teller = SILENT) -> AbstractContextManager[Session]:
        """A session on a draft, whose image is made here. Without `network` it reaches nothing.

        Leaving the block seals the image: it is complete, and other drafts can be made on it. Leaving it by an
        exception does not, and the image is not to be used; neither is that of a scratch draft.

        `tell` hears the phases of the session, from opening to sealing it, and what a user should know.
        """


#: Opens an executor for one chain of steps. Leaving it ends whatever it kept running between them.
OpenExecutor = Callable[[], AbstractContextManager[Executor]]


@dataclass(frozen=True, slots=True)
class Setup:
    """What an executor is made of: the base that its guests stand on, and the private key that logs in to them.

    `say` hears what a user should know of the choices that are made. Whatever is started belongs to `scope`.
    """

    store: Store
    base: Base
    key: Path
    settings: Settings
    say: Callable[[str], None]
    scope: CancelScope


class Kind(Protocol):
    """One kind of executor. A module, as the table in `all` has it."""

    def check(self, settings: Settings, card: Card) -> None:
        """UsageError if the settings do not go with a base that has this card. Starts nothing."""

    def provision(self, setup: Setup) -> OpenExecutor:
        """See that this host has what these guests need. UsageError if it has not."""
