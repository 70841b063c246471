"""An open machine: commands run in it, and files go in and out."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from obuild.errors import MachineError
from obuild.events import SILENT, Teller
from obuild.executors import transfer
from obuild.executors.protocol import Outcome
from obuild.executors.qemu import ssh
from obuild.executors.qemu.config import Config
from obuild.executors.qemu.machine import Machine
from obuild.guests.all import Freezing, Guest
from obuild.host.tail import Tail
from obuild.host.terminal import Terminal
from obuild.plan.steps import Command, Extract, Graft, Transfer


@dataclass
class Session:
    """One machine on one draft. `login` is the user whom the connection is logged in as.

    `secret` is whether the machine has seen a secret.
    """

    config: Config
    machine: Machine
    connection: transfer.Line
    login: str
    tell: Teller = SILENT
    secret: bool = False

    @property
    def guest(self) -> Guest:
        return self.config.guest

    def run(
        self,
        command: Command,
        caches: Sequence[Path],
        secrets: Mapping[str, bytes],
        output: Callable[[bytes], object],
    ) -> Outcome:
        """As the protocol says."""
        if caches:
            transfer.send_caches(self.connection, self.guest, self.login, command, caches, self.tell)
        if command.secrets:
            self.secret = True
            with self.tell.phase("sending", "secrets"):
                transfer.send_secrets(self.connection, self.guest, self.login, command, secrets)
        with self.tell.phase("running", "host" if command.network else ""):
            status = self.connection.run(self.guest.root_shell(self.login), partial(self._script, command), output)
        if command.secrets:
            transfer.remove_secrets(self.connection, self.guest, self.login, command)
        fetched: tuple[Path, ...] = ()
        if caches:
            fetched = transfer.fetch_caches(self.connection, self.guest, self.login, command, caches, self.tell)
        return Outcome(status, fetched)

    def interact(self, command: Command) -> int:
        """Open a shell at our own terminal, where the command would run. Return its exit status."""
        with self.log_in() as connection:
            line = self.guest.shell_command(self.config.login, cwd=command.cwd, env=command.env, user=command.user)
            return connection.interact(line, Terminal())

    def address(self) -> str:
        """Return the command that logs in to the guest from this host."""
        unchecked = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        port = ["-p", str(self.machine.port)]
        return shlex.join(["ssh", "-i", str(self.config.key), *port, *unchecked, f"{self.config.login}@127.0.0.1"])

    def wait(self) -> None:
        """Wait until the guest powers off; then raise a MachineError."""
        while True:
            self.machine.pause(3600.0)

    def log_in(self) -> AbstractContextManager[ssh.Connection]:
        """Open an SSH connection, since the resident shell has no terminal."""
        if isinstance(self.connection, ssh.Connection):
            return nullcontext(self.connection)
        return ssh.connect(self.machine, login=self.config.login, key=self.config.key)

    def send(self, action: Transfer) -> None:
        """Copy a tree into the guest."""
        transfer.send_tree(self.connection, self.guest, self.login, action, self.tell)

    def take(self, extract: Extract, archive: Path) -> None:
        """Copy files out of the guest, into a tar archive."""
        transfer.take_tree(self.connection, self.guest, self.login, extract, archive, self.tell)

    def graft(self, action: Graft, archive: Path) -> None:
        """Unpack such an archive in the guest."""
        transfer.send_archive(self.connection, self.guest, self.login, action, archive, self.tell)

    def finish(self) -> None:
        """As the protocol says. The disks are frozen, not unmounted, so the guest runs nothing more."""
        if not isinstance(self.guest, Freezing):
            raise MachineError("obuild does not know how to freeze the disks of this guest")
        with self.tell.phase("sealing"):
            said = Tail()
            root = self.guest.root_shell(self.login)
            if self.connection.run(root, self.guest.freeze_script, said) != 0:
                raise MachineError(f"the guest could not freeze its disks: {said.text}")
            self.machine.qmp.execute("stop")
            self.machine.quit()

    def _script(self, command: Command, mark: str) -> bytes:
        return self.guest.run_script(command.argv, cwd=command.cwd, env=command.env, user=command.user, mark=mark)
