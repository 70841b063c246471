"""The keys of a store, which its copy of a base image gets: the base itself is the same for everybody.

An image that is made from packages has two files of one block each, full of newlines, and its card says where on
the disk these are. So nothing is mounted, and no guest has to be told anything when it boots.
"""

from __future__ import annotations

from obuild.bases import catalog
from obuild.errors import UsageError
from obuild.guests.profile import Card
from obuild.host.qemu_img import KEY_BLOCK
from obuild.host.regular import read_bytes
from obuild.store.layers import Store


def blocks(store: Store, card: Card) -> list[tuple[int, bytes]]:
    """Offsets on the disk, and what the copy of the base in this store has there; none if its keys came with it.

    All guests of a store have one host key, so that a first layer that is made again is the same.
    """
    from obuild.executors.qemu.ssh import make_key

    found: list[tuple[int, bytes]] = []
    if card.authorized_keys:
        found.append((card.authorized_keys, make_key(catalog.key_path(store, card)).encode() + b"\n"))
    if card.host_key:
        path = store.ssh / "host_ed25519"
        make_key(path)
        found.append((card.host_key, read_bytes(path)))
    for _, content in found:
        if len(content) > KEY_BLOCK:
            raise UsageError(f"a key of {len(content)} bytes does not fit into the base image's {KEY_BLOCK}")
    return [(offset, content.ljust(KEY_BLOCK, b"\n")) for offset, content in found]
