"""Write a store's own keys into its copy of a base image. The base image itself is the same for everybody.

An image made from packages has two files of one block each, filled with newlines, and its card says where they are
on the disk. So nothing has to be mounted, and a guest needs no configuration when it boots.
"""

from __future__ import annotations

from obuild.bases import catalog
from obuild.errors import UsageError
from obuild.guests.profile import Card
from obuild.host.qemu_img import KEY_BLOCK
from obuild.host.regular import read_bytes
from obuild.store.layers import Store


def blocks(store: Store, card: Card) -> list[tuple[int, bytes]]:
    """Return the blocks to write, by their offsets on the disk; none if the image brought its keys along.

    All guests of a store have the same host key, so that a first layer is the same when it is made again.
    """
    from obuild.executors.qemu.ssh import make_key

    found: list[tuple[int, bytes]] = []
    if card.authorized_keys:
        found.append((card.authorized_keys, login_key(store, card).encode() + b"\n"))
    if card.host_key:
        path = store.ssh / "host_ed25519"
        make_key(path)
        found.append((card.host_key, read_bytes(path)))
    for _, content in found:
        if len(content) > KEY_BLOCK:
            raise UsageError(f"a key of {len(content)} bytes does not fit into the base image's {KEY_BLOCK}")
    return [(offset, content.ljust(KEY_BLOCK, b"\n")) for offset, content in found]


def login_key(store: Store, card: Card) -> str:
    """Return the public key that lets us in to guests with this card, as in authorized_keys(5)."""
    from obuild.executors.qemu.ssh import make_key

    return make_key(catalog.key_path(store, card))
