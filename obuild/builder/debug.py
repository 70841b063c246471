"""Look into a layer with a throw-away machine: run a command, open a shell, copy files out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from obuild.builder import inside
from obuild.builder.provision import Machines
from obuild.errors import MachineError, ObuildError, UsageError
from obuild.events import Teller
from obuild.executors.protocol import Session
from obuild.guests import rules
from obuild.plan.keys import LayerId
from obuild.plan.steps import Base, Command, Extract
from obuild.spec import UnixUser, WindowsUser
from obuild.store.layers import Draft, Store

_NUMBERS = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?")


@dataclass(frozen=True, slots=True)
class Source:
    """A file or folder of a guest: its absolute path, and its name there ("" for a root).

    `strict` is the argument of `tar_reader` for archives of this guest's tar.
    """

    path: str
    name: str
    strict: bool


@dataclass(frozen=True, slots=True)
class Debugger:
    """Starts machines on one layer. The layer itself never changes.

    Each method raises a StoreError if the layer has been removed, and otherwise what Machines and Session raise.
    """

    store: Store
    machines: Machines
    layer: LayerId
    tell: Teller

    def run(
        self, argv: tuple[str, ...], output: Callable[[bytes], object], *, network: bool = False, user: str = ""
    ) -> int:
        """Run a command as the layer's own command ran, or as `user`. Return its exit status."""
        found, command = self._command(argv, network, user)
        if "=" in argv[0]:
            raise UsageError(f"{argv[0]!r} cannot be run: '=' in its name would make it a variable")
        rules.check_command(found.card.os, argv, command.env)
        with self.store.scratch(self.layer) as draft, self._machine(found, draft, network=network) as session:
            return session.run(command, (), {}, output).status

    def shell(self, *, network: bool = False, user: str = "") -> int:
        """Open a shell for the user, where the layer's own command ran. Return its exit status."""
        found, command = self._command((), network, user)
        with self.store.scratch(self.layer) as draft, self._machine(found, draft, network=network) as session:
            return session.interact(command)

    def source(self, path: str) -> Source:
        """Check a path and return it as a Source. UsageError if it is not absolute, or contains `..`."""
        os = self.machines.base_of(self.layer).card.os
        if not re.match(r"([A-Za-z]:)?[/\\]" if os == "windows" else "/", path):
            raise UsageError(f"{path!r} is not absolute", hint="a layer has no current folder: ID:/etc/passwd")
        rules.check_sources(os, (path,), (), None)
        place = rules.join(os, rules.start(os).workdir, path)
        return Source(place, rules.split(place)[1], strict=os not in rules.PAX)

    @contextmanager
    def packed(self, source: Source) -> Iterator[Path]:
        """Yield an archive of a file or folder, removed afterwards. ObuildError if the path does not exist."""
        found = self.machines.base_of(self.layer)
        user = rules.start(found.card.os).user
        with self.store.scratch(self.layer) as draft:
            archive = draft.path / "taken.tar"
            try:
                with self._machine(found, draft, network=False) as session:
                    session.take(Extract(self.layer[:12], (source.path,), (), None, user), archive)
            except MachineError as error:
                if "No such file or directory" in error.message:
                    raise ObuildError(f"there is no {source.path} in the layer {self.layer[:12]}") from error
                raise
            yield archive

    @contextmanager
    def _machine(self, found: Base, draft: Draft, *, network: bool) -> Iterator[Session]:
        with (
            self.machines.of(found, self.tell)() as executor,
            executor.open(draft, network=network, tell=self.tell) as session,
        ):
            yield session

    def _command(self, argv: tuple[str, ...], network: bool, user: str) -> tuple[Base, Command]:
        found = self.machines.base_of(self.layer)
        command = inside.command(self.store, self.layer, found.card.os, argv, network=network)
        if user:
            command = command._replace(user=_user(user))
            rules.check_user(command.user, found.card)
        return found, command


def _user(text: str) -> UnixUser | WindowsUser:
    """Parse UID, UID:GID (GID defaults to UID) or a name."""
    found = _NUMBERS.fullmatch(text)
    return UnixUser(int(found[1]), int(found[2] or found[1])) if found else WindowsUser(text)
