"""The interface between a build and its executors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from obuild.events import SILENT, Teller
from obuild.executors.settings import Settings
from obuild.guests.profile import Card
from obuild.host.capability import Capability
from obuild.host.process import CancelScope
from obuild.plan.steps import Base, Command, Extract, Graft, Transfer
from obuild.store.layers import Draft, Store


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a command: its exit status, and an archive of each of its caches, in the command's order."""

    status: int
    caches: tuple[Path, ...] = ()


class Session(Protocol):
    """An open draft: commands run on it, and files go in and out.

    Every method raises a MachineError if the place where they run is lost.
    """

    def run(
        self,
        command: Command,
        caches: Sequence[Path],
        secrets: Mapping[str, bytes],
        output: Callable[[bytes], object],
    ) -> Outcome:
        """Run a command to its end. A status other than 0 is not an error here: the caches come back all the same.

        `output` gets stdout and stderr in the order they were written. `caches` has a path for each cache of the
        command: the archive to start with, or a path without a file for an empty cache. The new archives are
        beside these, and the caller commits them; that of a cache that has not changed may be the old one.
        `secrets` has the value of each of the command's secrets. They are
        files at their targets while it runs, and nothing of them remains afterwards.
        """

    def interact(self, command: Command) -> int:
        """Open a shell at our own terminal, where the command would run. Return the shell's exit status."""

    def send(self, action: Transfer) -> None:
        """Copy a tree into the draft. ObuildError if one of its files has changed meanwhile."""

    def take(self, extract: Extract, archive: Path) -> None:
        """Write files of the draft to a new tar archive. MachineError, with tar's message, if one is missing."""

    def graft(self, action: Graft, archive: Path) -> None:
        """Unpack an archive from `take` in the draft."""

    def finish(self) -> None:
        """Complete the image of a scratch draft as it is now, with clean file systems, and end the session.

        Nothing of a shutdown gets into it. The image can be used until the draft is removed. MachineError if the
        guest cannot freeze its file systems.
        """


@runtime_checkable
class Reachable(Protocol):
    """What a session also offers if people can log in to it while it is open."""

    def address(self) -> str:
        """Return the command that logs in from this host."""

    def wait(self) -> None:
        """Wait until the session is lost; then raise a MachineError with the reason."""


#: Called with the session, the command that failed in it, its exit status, and a Teller for notes to the user.
#: Its changes in the session are thrown away.
OnFailure = Callable[[Session, Command, int, Teller], None]


class Executor(Protocol):
    """Runs the steps of one chain, one at a time."""

    def open(self, draft: Draft, *, network: bool, tell: Teller = SILENT) -> AbstractContextManager[Session]:
        """Make the draft's image and open a session on it. Without `network` it reaches nothing.

        Leaving the block seals the image: it is complete, and other drafts can be based on it. If an exception
        leaves the block, the image is not sealed and must not be used; nor is that of a scratch draft ever, except
        after `finish`.

        `tell` gets the phases of the session, from opening to sealing, and notes to the user.
        """


#: Opens an executor for one chain of steps. Leaving it ends everything that it kept running between steps.
OpenExecutor = Callable[[], AbstractContextManager[Executor]]


@dataclass(frozen=True, slots=True)
class Setup:
    """What an executor is made from: the base of its guests, and the private key that logs in to them.

    `say` gets notes to the user about the choices made. Whatever is started belongs to `scope`.
    """

    store: Store
    base: Base
    key: Path
    settings: Settings
    say: Callable[[str], None]
    scope: CancelScope


class Kind(Protocol):
    """One kind of executor. It is a module, listed in the table in `all`."""

    def check(self, settings: Settings, card: Card) -> None:
        """UsageError if the settings do not fit a base with this card. Starts nothing."""

    def provision(self, setup: Setup) -> OpenExecutor:
        """Check that this host has what the guests need. UsageError if not."""

    def capabilities(self) -> Iterator[Capability]:
        """Look at what this host can do with such an executor, for people."""
