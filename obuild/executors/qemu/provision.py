"""QEMU as an executor: whether this host can run a base's machines, and how they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from obuild.executors.qemu.arches import ARCHES
from obuild.executors.qemu.shape import Kernel, Nvram, require_host, shape_for
from obuild.executors.settings import Settings
from obuild.guests.profile import Card
from obuild.plan.steps import Base, Import, Step

if TYPE_CHECKING:  # late: a cached build needs no machine
    from obuild.executors.protocol import OpenExecutor, Setup
    from obuild.executors.qemu.boots import Boots
    from obuild.executors.qemu.config import Config
    from obuild.executors.qemu.warm_chain import WarmChain
    from obuild.host.capability import Capability
    from obuild.store.layers import Store


def check(settings: Settings, card: Card) -> None:
    """UsageError if the settings do not fit a base with this card."""
    shape_for(settings, card, "tcg")


def provision(setup: Setup) -> OpenExecutor:
    """Return what opens the machines for one chain of steps. UsageError if this host cannot run them."""
    return partial(chain, configure(setup))


def capabilities() -> Iterator[Capability]:
    """See `Kind.capabilities`."""
    from obuild.executors.qemu import capabilities

    return capabilities.look()


def chain(config: Config) -> AbstractContextManager[Boots | WarmChain]:
    """Open the machines for one chain of steps; leaving ends those still running."""
    from obuild.executors.qemu.boots import Boots
    from obuild.executors.qemu.warm_chain import WarmChain

    return closing(WarmChain(config, config.warm, config.home) if config.warm and config.home else Boots(config))


def configure(setup: Setup) -> Config:
    """Return how to make the machines. UsageError if this host cannot run them."""
    from obuild.executors.qemu import kvm, versions
    from obuild.executors.qemu.config import Config
    from obuild.executors.qemu.snapshot import identity
    from obuild.guests.all import GUESTS, HOMES
    from obuild.store.warm import Warm

    card, settings, store = setup.base.card, setup.settings, setup.store
    shape = shape_for(settings, card, "tcg", nvram_of(store, setup.base))
    shape = shape._replace(kernel=kernel_of(store, setup.base))
    require_host(shape)
    memo = store.state / "accel.json"
    chosen = kvm.choose(settings.accel, shape.arch, memo=memo, note=setup.say)
    shape = shape._replace(accel=chosen)
    binary, versions_memo = ARCHES[shape.arch].binary, store.state / "qemu.json"
    lasts = shape.warm and settings.vm != "boot" and _can_be_told(store, setup.say)
    if lasts and settings.vm == "auto" and (why := versions.untried(binary, memo=versions_memo)):
        setup.say(f"no machine is kept warm ({why}): each step boots one; --vm warm overrides that")
        lasts = False
    home = HOMES[card.os] if lasts else None
    return Config(
        shape,
        card.login,
        setup.key,
        GUESTS[card.os],
        warm=Warm(store, settings.warm_budget) if lasts else None,
        home=home,
        identity=identity(shape, home) if home else "",
        scope=setup.scope,
    )


def kernel_of(store: Store, base: Base) -> Kernel | None:
    """Return the kernel that QEMU loads to boot a base. It exists once the base's layer does.

    It is the layer's own copy: a base that is made again has another kernel, and other modules for it.
    """
    if base.card.firmware != "kernel":
        return None
    image, *initrd = _beside(store, base)
    return Kernel(image, initrd[0] if initrd else None, base.card.cmdline)


def nvram_of(store: Store, base: Base) -> Nvram | None:
    """Return the UEFI variables that a base keeps for its machines, if any."""
    if base.card.firmware != "uefi":
        return None
    return next((Nvram(file) for file in _beside(store, base)), None)


def _beside(store: Store, base: Base) -> list[Path]:
    """Return the base layer's own copies of the files beside the image."""
    if not base.beside:
        return []
    layer = store.layer(Step(None, Import(base)).id)
    return [layer.image.with_name(file.name) for file in base.beside]


def _can_be_told(store: Store, say: Callable[[str], object]) -> bool:
    """Return whether paths in the store can be sent to a running QEMU: it takes JSON, which must be UTF-8."""
    try:
        str(store.root).encode()
    except UnicodeEncodeError:
        say("the store's path is not UTF-8, so no machine can be saved: each step boots one")
        return False
    return True
