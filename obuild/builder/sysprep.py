"""Clean a copy of a layer for deployment, in a machine. The layer itself never changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from obuild.bases import own_keys
from obuild.builder.provision import Machines
from obuild.errors import ObuildError, UsageError
from obuild.events import Teller
from obuild.executors.protocol import Session
from obuild.exports.cleaning import linux
from obuild.guests import rules
from obuild.guests.profile import OSES, Card
from obuild.host.tail import Tail
from obuild.plan.keys import LayerId
from obuild.plan.steps import Command
from obuild.store.layers import Draft, Store

#: By the `os` of a base image's card.
SCRIPTS = {"linux": linux.script}


def knows(os: str) -> bool:
    """Return whether obuild knows how to clean such a system."""
    return os in SCRIPTS


@dataclass(frozen=True, slots=True)
class Cleaner:
    """Runs operations of `exports.cleaning.operations` on copies of a layer.

    Each method raises a StoreError if the layer has been removed, UsageError if obuild does not know how to clean
    its system, ObuildError if an operation fails, and otherwise what Machines and Session raise.
    """

    store: Store
    machines: Machines
    layer: LayerId
    operations: tuple[str, ...]
    tell: Teller

    def listed(self) -> list[tuple[str, str]]:
        """What would go: the name of an operation, and a file or another thing. Nothing is changed."""
        said = bytearray()
        with self._opened() as (session, _, card):
            self._run(session, card, dry_run=True, output=said.extend)
        lines = said.decode(errors="replace").splitlines()
        return [(name, what) for name, tab, what in (line.partition("\t") for line in lines) if tab]

    @contextmanager
    def cleaned(self) -> Iterator[Path]:
        """Yield the image of a cleaned copy, which is removed afterwards."""
        with self._opened() as (session, draft, card):
            self.tell.note(f"cleaning: {', '.join(self.operations)}")
            self._run(session, card, dry_run=False, output=lambda data: None)
            session.finish()
            yield draft.image

    @contextmanager
    def _opened(self) -> Iterator[tuple[Session, Draft, Card]]:
        found = self.machines.base_of(self.layer)
        if not knows(found.card.os):
            known = ", ".join(OSES[os] for os in SCRIPTS)
            message = f"obuild does not know how to clean {OSES[found.card.os]}: it can clean {known}"
            raise UsageError(message, hint="export it without --sysprep")
        with (
            self.store.scratch(self.layer) as draft,
            self.machines.of(found, self.tell)() as executor,
            executor.open(draft, network=False, tell=self.tell) as session,
        ):
            yield session, draft, found.card

    def _run(self, session: Session, card: Card, *, dry_run: bool, output: Callable[[bytes], object]) -> None:
        key = own_keys.login_key(self.store, card)
        text = SCRIPTS[card.os](self.operations, login=card.login, public_key=key, dry_run=dry_run)
        tail = Tail()

        def both(data: bytes) -> None:
            tail(data)
            output(data)

        command = Command(("sh", "-c", text), "/", (), rules.start(card.os).user, network=False)
        if session.run(command, (), {}, both).status != 0:
            raise ObuildError(f"the layer {self.layer[:12]} could not be cleaned: {tail.text}")
