"""Steps run in virtual machines, reached by SSH when they have booted: one for each step, or one for many.

`Boots` boots a machine on each draft's overlay and shuts it down by its power button. `WarmChain` goes on in a
machine that still has the draft's parent as its disk, else resumes one saved there, else boots one and saves it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from obuild.errors import MachineError, ObuildError
from obuild.executors import transfer
from obuild.executors.qemu import machine, snapshot, ssh
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import ARCHES, Memory, Shape
from obuild.executors.qemu.snapshot import Lasting
from obuild.guests.all import GUESTS, LACKING, Guest, Home
from obuild.host import failpoints, process
from obuild.host.fs import discard
from obuild.host.terminal import Terminal
from obuild.plan.keys import LayerId
from obuild.plan.steps import Command, Extract, Graft, Transfer
from obuild.store.layers import Draft
from obuild.store.volumes import CacheCopy
from obuild.store.warm import Warm


@dataclass(frozen=True, slots=True)
class Qemu:
    """How machines are made: their shape, who logs in, with which private key, and what their OS is told.

    `warm` is where they are saved, and `home` how a guest is kept; without them each step boots one.
    `identity` is all that a machine must have in common with a saved one to go on as it.
    """

    shape: Shape
    login: str
    key: Path
    guest: Guest = GUESTS["linux"]
    warm: Warm | None = None
    home: Home | None = None
    identity: str = ""

    def chain(self) -> AbstractContextManager[Boots | WarmChain]:
        """Machines for the steps of one chain."""
        return closing(WarmChain(self, self.warm, self.home) if self.warm and self.home else Boots(self))


@dataclass(frozen=True, slots=True)
class Boots:
    """A machine for each step."""

    qemu: Qemu

    @contextmanager
    def open(self, draft: Draft, *, network: bool) -> Iterator[Session]:
        """A machine on the draft's image. When the block ends the guest has shut itself down and QEMU is
        gone; if it raises, QEMU is killed and the image is not to be used."""
        qemu = self.qemu
        draft.lay()
        with machine.start(qemu.shape, draft.image, network=network) as running:
            failpoints.reach("machine.started")
            import obuild.store.index  # noqa: F401  # needed soon: loaded now, while the guest boots

            with ssh.connect(running, login=qemu.login, key=qemu.key) as connection:
                failpoints.reach("machine.ready")
                yield Session(qemu, running, connection, qemu.login)
                if draft.scratch:
                    return
                if not ARCHES[qemu.shape.arch].button:
                    connection.power_off(qemu.guest.root_shell(qemu.login), qemu.guest.power_off())
                    return
            running.power_off()
        failpoints.reach("machine.off")

    def close(self) -> None:
        """Nothing is left."""


class _NeedsBoot(Exception):
    """This step needs a machine of its own."""


@dataclass
class WarmChain:
    """One machine for as many steps as can be; what it is in between is saved for other builds."""

    qemu: Qemu
    warm: Warm
    home: Home
    _running: ExitStack = field(default_factory=ExitStack)  # what is behind the two below
    _live: Lasting | None = None
    _booted: Machine | None = None  # one that cannot last
    _made: tuple[LayerId, Path] | None = None  # where the live machine was saved for a layer that is not there yet
    _refused: bool = False

    @contextmanager
    def open(self, draft: Draft, *, network: bool) -> Iterator[Session]:
        """As Boots.open, but the guest may stay: its disks are frozen then, and it waits for the next draft.

        A step with secrets, or one that has changed what a boot sets up, ends as in Boots.
        """
        try:
            session = None
            if not self._refused:
                with suppress(_NeedsBoot):
                    session = self._session(draft, network)
            if session is None:
                self._end()
                with Boots(self.qemu).open(draft, network=network) as session:
                    yield session
                return
            yield session
            if draft.scratch:
                self._end()
            else:
                self._seal(draft, session)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """Keep what was saved last, and end the machine."""
        self._keep()
        self._end()

    def _end(self) -> None:
        self._live = self._booted = None
        self._running.pop_all().close()

    # -- how a step gets its machine

    def _session(self, draft: Draft, network: bool) -> Session:
        """A place to run in. _NeedsBoot if that must be a machine which this step boots for itself."""
        kept = self._keep()
        live = self._live
        if live and live.stands_on(draft) and not (live.heavy and kept):
            try:
                return self._go_on(live, draft, network)
            except MachineError as error:
                if process.stopping():
                    raise
                self.warm.note(f"the machine cannot go on ({_first_line(error)}); starting another")
        self._end()
        return self._resume(draft, network) or self._boot(draft, network)

    def _go_on(self, live: Lasting, draft: Draft | None, network: bool) -> Session:
        if not live.go_on(draft, network=network):
            self.warm.note("the guest needs a boot to know its network")
            raise _NeedsBoot
        return Session(self.qemu, live.machine, live.shell, "root")

    def _resume(self, draft: Draft, network: bool) -> Session | None:
        """The saved machine of the draft's parent, running. None if there is none that can be."""
        parent = _parent(draft)
        with self.warm.use(parent, self.qemu.identity) as state:
            if state is None:
                return None
            try:
                folder = self._running.enter_context(self.warm.folder(draft.id[:12]))
                saved = snapshot.resumed(state, self.qemu.shape, draft, folder)
                self._live = self._running.enter_context(saved)
                session = self._go_on(self._live, None, network)
                failpoints.reach("machine.resumed")
                return session
            except (ObuildError, OSError, ValueError) as error:
                reason = _first_line(error)
                if process.stopping():
                    raise
        self._end()
        self.warm.note(f"the saved machine of layer {parent[:12]} cannot be used ({reason}); booting")
        self.warm.drop(parent)
        return None

    def _boot(self, draft: Draft, network: bool) -> Session:
        """Boot a machine, its network closed; if it can last, save it, and go on from what was saved."""
        with self.warm.boots(_parent(draft)):
            if session := self._resume(draft, network):  # another build was quicker
                return session
            folder = self._running.enter_context(self.warm.folder(draft.id[:12]))
            draft.lay()
            booted = self._running.enter_context(
                machine.start(self.qemu.shape, draft.image, network=False, memory=Memory())
            )
            booted.qmp.execute("cont")
            failpoints.reach("machine.started")
            lacks = self._settle(booted)
            failpoints.reach("machine.ready")
            live = Lasting(booted, folder, None)
            try:
                lacks = lacks or live.freeze()
            except MachineError as error:  # it has booted and let us in, so a step can still run there
                if process.stopping():
                    raise
                self._refuse(_first_line(error))
                raise _NeedsBoot from error
            if lacks:
                return self._make_do(booted, lacks, network)
            self._live = live
            self._save(live, _parent(draft), disk=draft.image)
            if not self._keep():
                return self._go_on(live, None, network)
            self._end()
            if session := self._resume(draft, network):
                return session
        self._refused = True
        raise _NeedsBoot

    def _settle(self, booted: Machine) -> str:
        """Have a shell stay in the guest, which no login outlives; what the guest lacks for that, in words."""
        said = bytearray()
        with ssh.connect(booted, login=self.qemu.login, key=self.qemu.key) as connection:
            status = connection.run(self.qemu.guest.root_shell(self.qemu.login), self.home.start, said.extend)
        why = said.decode(errors="replace").strip()
        return "" if status == 0 else why if status == LACKING else f"preparing it failed: {why}"

    def _make_do(self, booted: Machine, lacks: str, network: bool) -> Session:
        """Use a machine that cannot last for one step, over SSH."""
        self._refuse(lacks)
        if network:
            raise _NeedsBoot
        self._booted = booted
        connection = ssh.connect(booted, login=self.qemu.login, key=self.qemu.key)
        return Session(self.qemu, booted, self._running.enter_context(connection), self.qemu.login)

    def _refuse(self, lacks: str) -> None:
        self.warm.note(
            f'this guest cannot be kept warm ({lacks}): each step boots it; warm = "no" in its card is quicker'
        )
        self._refused = True

    # -- what becomes of it

    def _seal(self, draft: Draft, session: Session) -> None:
        """Make the draft's image complete, and save the machine, if it may last."""
        live = self._live
        if live and not session.secret:
            why = live.freeze()
            if not why:
                live.seal(draft)
                failpoints.reach("machine.sealed")
                self._save(live, draft.id)
                return
            self.warm.note(f"the next step needs a boot: {why}")
        running = live.machine if live else self._booted
        if running:
            running.power_off()
        self._end()
        failpoints.reach("machine.off")

    def _save(self, live: Lasting, layer: LayerId, *, disk: Path | None = None) -> None:
        """Write down the frozen machine, for a layer that need not be there yet."""
        made = live.folder / "made"
        if not self.warm.budget or not live.saves:
            return
        try:
            live.save(made, disk)
            self._made = layer, made
        except (ObuildError, OSError) as error:
            live.saves = False
            self.warm.note(f"this machine cannot be saved: {_first_line(error)}")
            discard(made)

    def _keep(self) -> bool:
        """Have what was written down found by others, now that its layer is there; whether it is."""
        if self._made is None:
            return False
        (layer, made), self._made = self._made, None
        with self.warm.store.use(layer) as there:
            kept = there is not None and self.warm.keep(layer, self.qemu.identity, made)
        if self._live and not kept:
            self._live.saves = False  # it would not be kept the next time either
        return kept


def _first_line(error: Exception) -> str:
    """An error without the console that it may show."""
    return str(error).partition("\n")[0]


def _parent(draft: Draft) -> LayerId:
    if draft.parent is None:
        raise TypeError("a base is imported, not run")
    return draft.parent


@dataclass
class Session:
    """An open machine: commands run in it, files go into it. `secret` is whether it has seen one.

    `login` is who we are at the other end of the connection.
    """

    qemu: Qemu
    machine: Machine
    connection: transfer.Line
    login: str
    secret: bool = False

    @property
    def guest(self) -> Guest:
        return self.qemu.guest

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
            self.secret = True
            transfer.send_secrets(self.connection, self.guest, self.login, command, secrets)
        status = self.connection.run(self.guest.root_shell(self.login), partial(self._script, command), output)
        if command.secrets:
            transfer.remove_secrets(self.connection, self.guest, self.login, command)
        if copies:
            fetched = transfer.fetch_caches(self.connection, self.guest, self.login, command, copies)
            for copy, archive in zip(copies, fetched, strict=True):
                copy.save(archive)
        return status

    def interact(self, command: Command) -> int:
        """A shell at our own terminal, where the command would run; returns its exit status."""
        with self.log_in() as connection:
            line = self.guest.shell_command(self.qemu.login, cwd=command.cwd, env=command.env, user=command.user)
            return connection.interact(line, Terminal())

    def address(self) -> str:
        """The command that logs in to the guest from this host."""
        unchecked = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        port = ["-p", str(self.machine.port)]
        return shlex.join(["ssh", "-i", str(self.qemu.key), *port, *unchecked, f"{self.qemu.login}@127.0.0.1"])

    def wait(self) -> None:
        """Wait until the guest powers off: then a MachineError says so."""
        while True:
            self.machine.pause(3600.0)

    def log_in(self) -> AbstractContextManager[ssh.Connection]:
        """An SSH connection: the shell that stays in a guest has no terminal to offer."""
        if isinstance(self.connection, ssh.Connection):
            return nullcontext(self.connection)
        return ssh.connect(self.machine, login=self.qemu.login, key=self.qemu.key)

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
