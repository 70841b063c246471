"""Runs the steps of a chain in one machine where possible, and saves it after each step for other builds.

A step continues in the machine whose disk is the step's parent, else resumes one saved there, else boots one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from obuild.errors import MachineError, ObuildError
from obuild.events import SILENT, Teller
from obuild.executors.qemu import machine, snapshot, ssh
from obuild.executors.qemu.argv import Memory
from obuild.executors.qemu.boots import Boots
from obuild.executors.qemu.config import Config
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.session import Session
from obuild.executors.qemu.snapshot import Lasting
from obuild.guests.all import LACKING, Home
from obuild.host import failpoints
from obuild.host.fs import discard
from obuild.host.tail import Tail
from obuild.plan.keys import LayerId
from obuild.store.layers import Draft
from obuild.store.warm import Warm


class _NeedsBoot(Exception):
    """This step must boot its own machine."""


@dataclass
class WarmChain:
    """Runs the steps of a chain in one machine where possible."""

    config: Config
    warm: Warm  # its notes become events of the current step
    home: Home
    _running: ExitStack = field(default_factory=ExitStack)  # owns the next two
    _live: Lasting | None = None
    _booted: Machine | None = None  # one that cannot be kept warm
    _made: tuple[LayerId, Path] | None = (
        None  # where the live machine was saved for a layer that does not exist yet
    )
    _refused: bool = False
    _tell: Teller = SILENT  # of the current step

    def __post_init__(self) -> None:
        self.warm = replace(self.warm, note=self._note)

    def _note(self, text: str) -> None:
        self._tell.note(text)

    @contextmanager
    def open(self, draft: Draft, *, network: bool, tell: Teller = SILENT) -> Iterator[Session]:
        """As Boots.open, but the guest may stay: its disks are then frozen, and it waits for the next draft.

        After a step with secrets, or one that changed what a boot sets up, the machine is powered off as in Boots.
        """
        self._tell = tell
        try:
            session = None
            if not self._refused:
                with suppress(_NeedsBoot):
                    session = self._session(draft, network)
            if session is None:
                self._end()
                with Boots(self.config).open(draft, network=network, tell=tell) as session:
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
        """Return a session for the draft. _NeedsBoot if the step must boot its own machine."""
        kept = self._keep()
        live = self._live
        if live and live.stands_on(draft) and not (live.heavy and kept):
            try:
                with self._tell.phase("resuming"):
                    return self._go_on(live, draft, network)
            except MachineError as error:
                if self.config.scope.cancelled:
                    raise
                self._note(f"the machine cannot continue ({_first_line(error)}); starting another")
        self._end()
        return self._resume(draft, network) or self._boot(draft, network)

    def _go_on(self, live: Lasting, draft: Draft | None, network: bool) -> Session:
        if not live.go_on(draft, network=network):
            self._note("the guest must boot to get its network")
            raise _NeedsBoot
        return Session(self.config, live.machine, live.shell, "root", self._tell)

    def _resume(self, draft: Draft, network: bool) -> Session | None:
        """Resume the saved machine of the draft's parent. None if there is none, or if that fails."""
        parent = _parent(draft)
        with self.warm.use(parent, self.config.identity) as state:
            if state is None:
                return None
            try:
                with self._tell.phase("resuming"):
                    folder = self._running.enter_context(self.warm.folder(draft.id[:12]))
                    saved = snapshot.resumed(state, self.config.shape, draft, folder, self.config.scope)
                    self._live = self._running.enter_context(saved)
                    session = self._go_on(self._live, None, network)
                failpoints.reach("machine.resumed")
                return session
            except (ObuildError, OSError, ValueError) as error:
                reason = _first_line(error)
                if self.config.scope.cancelled:
                    raise
        self._end()
        self._note(f"the saved machine of layer {parent[:12]} cannot be used ({reason}); booting")
        self.warm.drop(parent)
        return None

    def _boot(self, draft: Draft, network: bool) -> Session:
        """Boot a machine with its network closed. If it can be kept warm, save it and continue from there."""
        with ExitStack() as lock:
            with self._tell.phase("waiting"):
                lock.enter_context(self.warm.boots(_parent(draft)))
            if session := self._resume(draft, network):  # another build was faster
                return session
            with self._tell.phase("booting"):
                booted, live, lacks = self._start(draft)
            if lacks:
                return self._make_do(booted, lacks, network)
            self._live = live
            self._save(live, _parent(draft), disk=draft.image)
            if not self._keep():
                with self._tell.phase("resuming"):
                    return self._go_on(live, None, network)
            self._end()
            if session := self._resume(draft, network):
                return session
        self._refused = True
        raise _NeedsBoot

    def _start(self, draft: Draft) -> tuple[Machine, Lasting, str]:
        """Boot a machine, and freeze it if it can be kept warm; else return why not, in words."""
        folder = self._running.enter_context(self.warm.folder(draft.id[:12]))
        draft.lay()
        booted = self._running.enter_context(
            machine.start(self.config.shape, draft.image, self.config.scope, network=False, memory=Memory())
        )
        booted.qmp.execute("cont")
        failpoints.reach("machine.started")
        lacks = self._settle(booted)
        failpoints.reach("machine.ready")
        live = Lasting(booted, folder, None)
        try:
            return booted, live, lacks or live.freeze()
        except MachineError as error:  # it has booted and let us in, so a step can still run there
            if self.config.scope.cancelled:
                raise
            self._refuse(_first_line(error))
            raise _NeedsBoot from error

    def _settle(self, booted: Machine) -> str:
        """Start the resident shell in the guest. Return what the guest lacks for that, in words."""
        said = Tail()
        with ssh.connect(booted, login=self.config.login, key=self.config.key) as connection:
            status = connection.run(self.config.guest.root_shell(self.config.login), self.home.start, said)
        return "" if status == 0 else said.text if status == LACKING else f"preparing it failed: {said.text}"

    def _make_do(self, booted: Machine, lacks: str, network: bool) -> Session:
        """Use a machine that cannot be kept warm for one step, over SSH."""
        self._refuse(lacks)
        if network:
            raise _NeedsBoot
        self._booted = booted
        connection = ssh.connect(booted, login=self.config.login, key=self.config.key)
        return Session(self.config, booted, self._running.enter_context(connection), self.config.login, self._tell)

    def _refuse(self, lacks: str) -> None:
        self._note(
            f'this guest cannot be kept warm ({lacks}): each step boots it; warm = "no" in its card avoids this'
        )
        self._refused = True

    # -- how a step ends

    def _seal(self, draft: Draft, session: Session) -> None:
        """Complete the draft's image, and save the machine if it can be kept warm."""
        live = self._live
        with self._tell.phase("sealing"):
            kept = live is not None and not session.secret and self._freeze(live, draft)
            if not kept:
                running = live.machine if live else self._booted
                if running:
                    running.power_off()
                self._end()
                failpoints.reach("machine.off")
        if live and kept:
            self._save(live, draft.id)

    def _freeze(self, live: Lasting, draft: Draft) -> bool:
        """Freeze the machine and complete the draft. Return False if the next step must boot."""
        if why := live.freeze():
            self._note(f"the next step needs a boot: {why}")
            return False
        live.seal(draft)
        failpoints.reach("machine.sealed")
        return True

    def _save(self, live: Lasting, layer: LayerId, *, disk: Path | None = None) -> None:
        """Save the frozen machine, for a layer that need not exist yet."""
        made = live.folder / "made"
        if not self.warm.budget or not live.saves:
            return
        try:
            with self._tell.phase("saving"):
                live.save(made, disk)
            self._made = layer, made
        except (ObuildError, OSError) as error:
            live.saves = False
            self._note(f"this machine cannot be saved: {_first_line(error)}")
            discard(made)

    def _keep(self) -> bool:
        """Publish the saved machine, now that its layer exists. Return whether that worked."""
        if self._made is None:
            return False
        (layer, made), self._made = self._made, None
        with self.warm.store.use(layer) as there:
            kept = there is not None and self.warm.keep(layer, self.config.identity, made)
        if self._live and not kept:
            self._live.saves = False  # it would fail the next time, too
        return kept


def _first_line(error: Exception) -> str:
    """Return an error's message without the console that it may include."""
    return str(error).partition("\n")[0]


def _parent(draft: Draft) -> LayerId:
    if draft.parent is None:
        raise TypeError("a base is imported, not run")
    return draft.parent
