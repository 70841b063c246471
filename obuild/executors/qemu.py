"""Steps run in a virtual machine: booted on the draft's overlay, reached by SSH, shut down by its power button."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from obuild import machine, ssh, trace, transfer
from obuild.guests import GUESTS, Guest
from obuild.plan import Command, Extract, Graft, Transfer
from obuild.shape import ARCHES, Shape
from obuild.store import Draft
from obuild.volumes import CacheCopy


@dataclass(frozen=True, slots=True)
class Qemu:
    """How machines are made: their shape, who logs in, with which private key, and what their OS is told."""

    shape: Shape
    login: str
    key: Path
    guest: Guest = GUESTS["linux"]

    @contextmanager
    def open(self, draft: Draft, *, network: bool) -> Iterator[Session]:
        """A machine on the draft's image. When the block ends the guest has shut itself down and QEMU is
        gone; if it raises, QEMU is killed and the image is not to be used."""
        with machine.start(self.shape, draft.image, network=network) as running:
            trace.reach("machine.started")
            import obuild.index  # noqa: F401  # needed soon: loaded now, while the guest boots

            with ssh.connect(running, login=self.login, key=self.key) as connection:
                trace.reach("machine.ready")
                yield Session(connection, self.login, self.guest)
                if not ARCHES[self.shape.arch].button:
                    connection.power_off(self.guest.root_shell(self.login), self.guest.power_off())
                    return
            running.power_off()
        trace.reach("machine.off")


@dataclass(frozen=True, slots=True)
class Session:
    """An open machine: commands run in it, files go into it."""

    connection: ssh.Connection
    login: str
    guest: Guest = GUESTS["linux"]

    def run(
        self,
        command: Command,
        copies: Sequence[CacheCopy],
        secrets: Mapping[str, bytes],
        output: Callable[[bytes], object],
    ) -> int:
        """Run a command with its caches and secrets, and return its exit status.

        The caches are saved whatever the status is.
        """
        if copies:
            transfer.send_caches(self.connection, self.guest, self.login, command, copies)
        if command.secrets:
            transfer.send_secrets(self.connection, self.guest, self.login, command, secrets)
        status = self.connection.run(self.guest.root_shell(self.login), partial(self._script, command), output)
        if command.secrets:
            transfer.remove_secrets(self.connection, self.guest, self.login, command)
        if copies:
            fetched = transfer.fetch_caches(self.connection, self.guest, self.login, command, copies)
            for copy, archive in zip(copies, fetched, strict=True):
                copy.save(archive)
        return status

    def send(self, action: Transfer) -> None:
        """Put a tree into the guest."""
        transfer.send_tree(self.connection, self.guest, self.login, action)

    def take(self, extract: Extract, archive: Path) -> None:
        """Take files out of the guest, into a tar archive."""
        transfer.take_tree(self.connection, self.guest, self.login, extract, archive)

    def graft(self, action: Graft, archive: Path) -> None:
        """Put the files of such an archive into the guest."""
        transfer.send_archive(self.connection, self.guest, self.login, action, archive)

    def _script(self, command: Command, mark: str) -> bytes:
        return self.guest.run_script(command.argv, cwd=command.cwd, env=command.env, user=command.user, mark=mark)
