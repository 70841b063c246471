"""Native steps as an executor: whether this host can run them on a base, and what runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import TYPE_CHECKING

from obuild.errors import UsageError
from obuild.executors.settings import Settings
from obuild.guests.profile import Card

if TYPE_CHECKING:  # late: a cached build needs no executor
    from obuild.executors.native.chain import Chain, Config
    from obuild.executors.protocol import OpenExecutor, Setup
    from obuild.host.capability import Capability


def check(settings: Settings, card: Card) -> None:
    """UsageError if steps on a base with this card cannot be native."""
    os_name = settings.os or card.os
    if os_name != "linux":
        from obuild.executors.native.requirements import INSTEAD

        raise UsageError(f"native steps run on Linux only, and this base is {os_name}", hint=INSTEAD)


def provision(setup: Setup) -> OpenExecutor:
    """Return what opens the executor for one chain of steps. UsageError if this host cannot run them."""
    from obuild.executors.native import requirements
    from obuild.executors.native.chain import Config
    from obuild.executors.native.container import limits

    runtime = requirements.see_host(setup.store.state / "runc.json")
    requirements.see_arch(setup.settings.arch or setup.base.card.arch)
    return partial(_chain, Config(setup.store, runtime, limits(setup.settings.memory), setup.scope))


def capabilities() -> Iterator[Capability]:
    """See `Kind.capabilities`."""
    from obuild.executors.native import requirements
    from obuild.host.capability import checked

    yield checked("native steps", requirements.see_host)


def _chain(config: Config) -> AbstractContextManager[Chain]:
    from obuild.executors.native.chain import Chain

    return closing(Chain(config))
