"""Executors for layers: find the base below a layer, and set up an executor once for each base."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from obuild.bases import catalog
from obuild.errors import StoreError, UsageError
from obuild.events import Teller
from obuild.executors.all import EXECUTORS
from obuild.executors.settings import Settings
from obuild.guests import profile
from obuild.host import stamp
from obuild.host.process import CancelScope
from obuild.plan import keys
from obuild.plan.keys import LayerId
from obuild.plan.steps import ABSENT, Base
from obuild.store.layers import Layer, Store

if TYPE_CHECKING:
    from obuild.executors.protocol import Executor, OpenExecutor


@dataclass(frozen=True, slots=True, eq=False)
class Machines:
    """Executors of one kind, by the base of their guests. Whatever they start belongs to `scope`."""

    store: Store
    settings: Settings
    kind: str = "qemu"
    scope: CancelScope = field(default_factory=CancelScope)
    _made: dict[str, OpenExecutor] = field(default_factory=dict, init=False)

    def check(self, base: Base) -> None:
        """UsageError if the settings do not fit the base."""
        EXECUTORS[self.kind].check(self.settings, base.card)

    def of(self, base: Base, tell: Teller) -> OpenExecutor:
        """Return the executor for all layers of a base. UsageError if this host cannot run it.

        `tell` gets notes about the choices made, when they are made.
        """
        from obuild.executors.protocol import Setup  # late: a cached build needs no executor

        if base.path == ABSENT:  # then its layer has come from a remote
            base = self.base_of(keys.base_id(base.digest))
        if base.name not in self._made:
            key = catalog.key_path(self.store, base.card)
            setup = Setup(self.store, base, key, self.settings, tell.note, self.scope)
            self._made[base.name] = EXECUTORS[self.kind].provision(setup)
        return self._made[base.name]

    def lazily(self, base: Base, stack: ExitStack, tell: Teller) -> Callable[[], Executor]:
        """Return a function that gives the executor for a chain, opened on first use. It closes with the stack."""
        opened: list[Executor] = []

        def get() -> Executor:
            if not opened:
                opened.append(stack.enter_context(self.of(base, tell)()))
            return opened[0]

        return get

    def base_of(self, id: LayerId) -> Base:
        """Return the base below a layer, with the OS from the settings, if any. Errors as for `base_below`."""
        return as_os(base_below(self.store, id), self.settings.os)


def as_os(found: Base, os: str) -> Base:
    """Return the base with the OS replaced, if `os` is given."""
    return found._replace(card=replace(found.card, os=os), own_card=found.card) if os else found


def base_below(store: Store, id: LayerId) -> Base:
    """Return the base below a layer as its own layer records it, whatever has happened to the base image since.

    StoreError if a layer was just removed. UsageError if nothing records how to boot the base.
    """
    try:
        root = _root(store, id)
        digest = keys.base_digest(keys.fields(root.key))
        kept = root.path / profile.NAME
        if kept.exists():
            about = profile.read(kept)
            beside = catalog.beside(root.image, about)
            return Base(root.id, root.image, digest, stamp.of(root.image), about, beside)
    except FileNotFoundError as error:
        raise StoreError(f"layer {id} was just removed from the store", hint="build again") from error
    same = next(catalog.with_digest(store, digest), None)  # layers were made before they had cards
    if same is None:
        raise UsageError(
            f"the layer {id[:12]} is based on {root.id[:12]}, which was imported without its card",
            hint="obuild cannot boot it without one: add its base image again (`obuild base add`)",
        )
    return same


def _root(store: Store, id: LayerId) -> Layer:
    """Return the first layer of the chain that ends in `id`. FileNotFoundError if part of it is gone."""
    layer = store.layer(id)
    while (parent := layer.parent) is not None:
        layer = store.layer(parent)
    return layer
