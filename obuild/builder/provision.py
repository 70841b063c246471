"""Machines for layers: which base they stand on, and what its guests need, seen to be there once for each base."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from obuild.bases import catalog
from obuild.errors import StoreError, UsageError
from obuild.executors.qemu.shape import ARCHES, Settings
from obuild.guests import profile
from obuild.host import process, qemu_img
from obuild.plan import keys
from obuild.plan.keys import LayerId
from obuild.plan.steps import Base
from obuild.store.layers import Layer, Store

if TYPE_CHECKING:
    from obuild.executors.qemu.chains import Qemu


@dataclass(frozen=True, slots=True)
class Machines:
    """Executors by the base that their guests stand on. `say` hears what a user should know of the choice."""

    store: Store
    settings: Settings
    say: Callable[[str], None]
    _made: dict[str, Qemu] = field(default_factory=dict, init=False)

    def of(self, found: Base) -> Qemu:
        """Machines for all layers of a base. UsageError if this host cannot run them."""
        if found.name not in self._made:
            gc.enable()  # __main__ switched it off for the short run that a cached build is
            from obuild.executors.qemu import kvm  # late: a cached build needs no machine
            from obuild.executors.qemu.chains import Qemu
            from obuild.executors.qemu.snapshot import identity
            from obuild.guests.all import GUESTS, HOMES
            from obuild.store.warm import Warm

            shape = self.settings.shape(found.card, "tcg")
            kernel = catalog.kernel(self.store, found)
            row = ARCHES[shape.arch]
            process.require(row.binary)
            if row.firmware and kernel is None:
                process.require_file(Path(row.firmware[-1]), row.firmware_package)
            memo = self.store.state / "accel.json"
            chosen = kvm.choose(self.settings.accel, shape.arch, memo=memo, note=self.say)
            key = catalog.key_path(self.store, found.card)
            shape = replace(shape, accel=chosen, kernel=kernel)
            lasts = shape.warm and self.settings.vm != "boot" and self._can_be_told()
            home = HOMES[found.card.os] if lasts else None
            warm = Warm(self.store, self.settings.warm_budget, self.say) if lasts else None
            self._made[found.name] = Qemu(
                shape,
                found.card.login,
                key,
                GUESTS[found.card.os],
                warm,
                home,
                identity(shape, home) if home else "",
            )
        return self._made[found.name]

    def _can_be_told(self) -> bool:
        """Whether a running QEMU can be told of files in the store: it takes JSON, which has no other bytes."""
        try:
            str(self.store.root).encode()
        except UnicodeEncodeError:
            self.say("the store's path is not UTF-8, so no machine can be saved: each step boots one")
            return False
        return True

    def of_layer(self, id: LayerId) -> Qemu:
        """Machines for a layer in the store. Errors as for `of` and `base_below`."""
        return self.of(self.base_of(id))

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
            return Base(root.id, root.image, digest, qemu_img.stamp(root.image), about, beside)
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
    layer = Layer(id, store.result / id)
    while (parent := layer.parent) is not None:
        layer = Layer(parent, store.result / parent)
    return layer


def _same_base(store: Store, digest: str) -> Base | None:
    """A base image with this very content: layers that were made before layers had cards need one."""
    for image in catalog.listing(store):
        with suppress(UsageError):  # damaged, or without its kernel: not the one
            found = catalog.look(store, image.name)
            if found is not None and found.digest == digest:
                return found
    return None
