"""Machines for layers: which base they stand on, and what its guests need, seen to be there once for each base."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace

from obuild.bases import catalog
from obuild.errors import StoreError, UsageError
from obuild.events import Teller
from obuild.executors.all import EXECUTORS
from obuild.executors.protocol import OpenExecutor, Setup
from obuild.executors.settings import Settings
from obuild.guests import profile
from obuild.host import stamp
from obuild.host.process import CancelScope
from obuild.plan import keys
from obuild.plan.keys import LayerId
from obuild.plan.steps import Base
from obuild.store.layers import Layer, Store


@dataclass(frozen=True, slots=True)
class Machines:
    """Executors by the base that their guests stand on, all of one kind; what they start belongs to `scope`."""

    store: Store
    settings: Settings
    kind: str = "qemu"
    scope: CancelScope = field(default_factory=CancelScope)
    _made: dict[str, OpenExecutor] = field(default_factory=dict, init=False)

    def check(self, base: Base) -> None:
        """UsageError if the settings do not go with a base."""
        EXECUTORS[self.kind].check(self.settings, base.card)

    def of(self, base: Base, tell: Teller) -> OpenExecutor:
        """Machines for all layers of a base. UsageError if this host cannot run them.

        `tell` hears what a user should know of the choices, when they are made.
        """
        if base.name not in self._made:
            key = catalog.key_path(self.store, base.card)
            setup = Setup(self.store, base, key, self.settings, tell.note, self.scope)
            self._made[base.name] = EXECUTORS[self.kind].provision(setup)
        return self._made[base.name]

    def base_of(self, id: LayerId) -> Base:
        """The base that a layer stands on, with the OS that the user named, if any. Errors as for `base_below`."""
        return as_os(base_below(self.store, id), self.settings.os)


def as_os(found: Base, os: str) -> Base:
    """The base as one that runs `os`, if the user says so."""
    return replace(found, card=replace(found.card, os=os), own_card=found.card) if os else found


def base_below(store: Store, id: LayerId) -> Base:
    """The base that a layer stands on, as its own layer has it: whatever has become of the image in base-image/.

    StoreError if a layer has just been removed, UsageError if nobody knows any more how these boot.
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
    same = _same_base(store, digest)
    if same is None:
        raise UsageError(
            f"the layer {id[:12]} stands on {root.id[:12]}, a base that was taken in without its card",
            hint="only that says how to boot it: add the image that it was made of again (`obuild base add`)",
        )
    return same


def _root(store: Store, id: LayerId) -> Layer:
    """The first layer of the chain that ends in `id`. FileNotFoundError if a part of it is gone."""
    layer = store.layer(id)
    while (parent := layer.parent) is not None:
        layer = store.layer(parent)
    return layer


def _same_base(store: Store, digest: str) -> Base | None:
    """A base image with this very content: layers that were made before layers had cards need one."""
    for image in catalog.listing(store):
        with suppress(UsageError):  # damaged, or without its kernel: not the one
            found = catalog.look(store, image.name)
            if found is not None and found.digest == digest:
                return found
    return None
