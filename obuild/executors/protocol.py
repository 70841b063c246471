"""What every executor offers to a build, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from obuild.executors.settings import Settings
from obuild.guests.profile import Card
from obuild.host.process import CancelScope
from obuild.plan.steps import Base, Command, Extract, Graft, Transfer
from obuild.store.caches import CacheCopy
from obuild.store.layers import Draft, Store


class Session(Protocol):
    """An open machine on a draft."""

    def run(
        self,
        command: Command,
        copies: Sequence[CacheCopy],
        secrets: Mapping[str, bytes],
        output: Callable[[bytes], object],
    ) -> int: ...

    def interact(self, command: Command) -> int: ...
    def address(self) -> str: ...
    def wait(self) -> None: ...
    def send(self, action: Transfer) -> None: ...
    def take(self, extract: Extract, archive: Path) -> None: ...
    def graft(self, action: Graft, archive: Path) -> None: ...


#: Called with the session, the command that failed in it, and its exit status. What it does there is thrown away.
OnFailure = Callable[[Session, Command, int], None]


class Executor(Protocol):
    """Where steps run. Leaving the session seals the draft's image; leaving it by an exception does not."""

    def open(self, draft: Draft, *, network: bool) -> AbstractContextManager[Session]: ...


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
