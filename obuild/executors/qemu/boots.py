"""Boots a machine for each step on the draft's overlay, and shuts it down with its power button."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from obuild.events import SILENT, Teller
from obuild.executors.qemu import machine, ssh
from obuild.executors.qemu.arches import ARCHES
from obuild.executors.qemu.config import Config
from obuild.executors.qemu.session import Session
from obuild.host import failpoints
from obuild.store.layers import Draft


@dataclass(frozen=True, slots=True)
class Boots:
    """Boots a machine for each step."""

    config: Config

    @contextmanager
    def open(self, draft: Draft, *, network: bool, tell: Teller = SILENT) -> Iterator[Session]:
        """Boot a machine on the draft's image. When the block ends, the guest has shut down and QEMU is gone;
        if it raises, QEMU is killed and the image must not be used."""
        config = self.config
        draft.lay()
        with ExitStack() as stack:
            with tell.phase("booting"):
                started = machine.start(config.shape, draft.image, config.scope, network=network)
                running = stack.enter_context(started)
                failpoints.reach("machine.started")
                import obuild.store.index  # noqa: F401  # needed soon: load it while the guest boots

                login = stack.enter_context(ExitStack())
                connection = login.enter_context(ssh.connect(running, login=config.login, key=config.key))
            failpoints.reach("machine.ready")
            yield Session(config, running, connection, config.login, tell)
            if draft.scratch:
                return
            with tell.phase("sealing"):
                if not ARCHES[config.shape.arch].button:
                    connection.power_off(config.guest.root_shell(config.login), config.guest.power_off())
                    return
                login.close()
                running.power_off()
        failpoints.reach("machine.off")

    def close(self) -> None:
        """Do nothing: no machine outlives its step."""
