"""An open draft whose file systems are mounted: commands run in containers on it, and files go in and out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from obuild.events import Teller
from obuild.executors import transfer
from obuild.executors.native.container import Bind
from obuild.executors.native.guest_path import Places
from obuild.executors.native.lent import lent, placeholder
from obuild.executors.native.line import Line
from obuild.executors.native.volumes import Volumes
from obuild.executors.protocol import Outcome
from obuild.guests import linux
from obuild.host import failpoints
from obuild.host.fs import flushing
from obuild.plan.steps import Command, Extract, Graft, Transfer

#: Programs that talk to systemd do what they can without it, and do not fail.
OFFLINE = (("SYSTEMD_OFFLINE", "1"),)


@dataclass
class Session:
    """One draft, mounted. `places` are the folders that make up its file system, for us; `end` completes it."""

    line: Line
    places: Places
    volumes: Volumes
    tell: Teller
    end: Callable[[], None]

    def run(
        self,
        command: Command,
        caches: Sequence[Path],
        secrets: Mapping[str, bytes],
        output: Callable[[bytes], object],
    ) -> Outcome:
        """As the protocol says."""
        with ExitStack() as stack:
            stack.enter_context(lent(self.places, network=self.line.network))
            mounts, pack = stack.enter_context(self.volumes.opened(command, caches, self.places))
            hidden = stack.enter_context(self._secrets(command, secrets))
            failpoints.reach("native.running")
            with self.tell.phase("running", "host" if command.network else ""):
                line = self.line.mounting((*mounts, *hidden))
                status = line.run(linux.root_shell("root"), partial(self._script, command), output)
            root = self.places.host("/")
            # To pack caches takes a while, and leaves the disk alone.
            with flushing(root) if root and command.caches else nullcontext():
                return Outcome(status, pack())

    def interact(self, command: Command) -> int:
        """Open a shell at our own terminal, where the command would run. Return its exit status."""
        env = (*OFFLINE, *command.env)
        with lent(self.places, network=self.line.network):
            return self.line.interact(linux.shell_command("root", cwd=command.cwd, env=env, user=command.user))

    def send(self, action: Transfer) -> None:
        """As the protocol says."""
        transfer.send_tree(self.line, linux, "root", action, self.tell)

    def take(self, extract: Extract, archive: Path) -> None:
        """As the protocol says."""
        transfer.take_tree(self.line, linux, "root", extract, archive, self.tell)

    def graft(self, action: Graft, archive: Path) -> None:
        """As the protocol says."""
        transfer.send_archive(self.line, linux, "root", action, archive, self.tell)

    def finish(self) -> None:
        """As the protocol says."""
        self.end()

    def _script(self, command: Command, mark: str) -> bytes:
        return linux.run_script(
            command.argv, cwd=command.cwd, env=(*OFFLINE, *command.env), user=command.user, mark=mark
        )

    @contextmanager
    def _secrets(self, command: Command, values: Mapping[str, bytes]) -> Iterator[list[Bind]]:
        """What to mount for the secrets of a command. What had to be made for that is removed afterwards."""
        uid, gid = linux.ids(command.user)
        binds = []
        with ExitStack() as stack:
            for slot, secret in enumerate(command.secrets):
                file = self.line.work / f"secret-{slot}"
                place = self.line.namespace.path(file)
                place.touch(mode=0o400)
                stack.callback(place.unlink)
                place.write_bytes(values[secret.name])
                os.chown(place, uid, gid)
                binds.append(Bind(file, stack.enter_context(placeholder(self.places, secret.target)), ("ro",)))
            yield binds
