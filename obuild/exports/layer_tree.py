"""The files of a layer, as a tree: read from its image, without a boot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from obuild.errors import StoreError, UsageError
from obuild.guests.profile import Card
from obuild.host import nbd, process
from obuild.host.trees import root
from obuild.host.trees.nodes import Tree
from obuild.plan.keys import LayerId
from obuild.store.layers import Layer, Store


@contextmanager
def opened(store: Store, id: LayerId, card: Card) -> Iterator[tuple[Layer, Tree]]:
    """A layer, which cannot be removed meanwhile, and its tree. `card` is that of its base.

    UsageError if it is not a layer of Linux, and the errors of `root.of_disk`. StoreError if it was just removed.
    """
    if card.os != "linux":
        raise UsageError(f"only the files of Linux layers can be read, and {id[:12]} has {card.os}")
    process.require(nbd.PROGRAM)
    with ExitStack() as stack:
        layer = stack.enter_context(store.use(id))
        if layer is None:
            raise StoreError(f"layer {id} was removed from the store", hint="build again")
        disk = stack.enter_context(nbd.disk_of(layer.image))
        yield layer, root.of_disk(disk)
