"""Take our login key out of the image of a guest that has set itself up: each store writes its own there.

A guest fills its authorized_keys up to one block with newlines. If the file has no other key, and lies in one
place of a file system of ext or xfs, the block in the image becomes newlines, and the card says where it is:
as in images made from packages (see `own_keys`). Otherwise the image keeps the key, and its guests can be entered
only from stores that have it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from obuild.bases.kind import Making
from obuild.errors import ObuildError, UsageError
from obuild.guests.profile import Card
from obuild.host import nbd, process, qemu_img
from obuild.host.blocks import Blocks
from obuild.host.qemu_img import KEY_BLOCK
from obuild.host.trees import root
from obuild.host.trees.in_place import InPlace
from obuild.host.trees.nodes import Tree


def clear(name: str, image: Path, card: Card, making: Making) -> Card:
    """Clear the key of the card's user on the disk of a qcow2 image; returns the card with the place.

    If there is no such place, a note says why, and the image and its card stay as they are.
    """
    if card.os != "linux":
        return card
    block = making.public_key.strip().encode().ljust(KEY_BLOCK, b"\n")
    try:
        process.require(nbd.PROGRAM)
        with nbd.disk_of(image) as disk:
            offset = _place(disk, root.of_disk(disk), card.login, block)
    except ObuildError as error:
        making.say(f"{name}: its login key stays in it, so other stores cannot enter its guests: {error.message}")
        return card
    qemu_img.write_at(image, offset, b"\n" * KEY_BLOCK)
    return replace(card, authorized_keys=offset)


def place(tree: Tree, path: str) -> int | None:
    """The offset on the disk of a file that is one block for keys; None if it is something else.

    UsageError if there is no such file, or on another kind of file system.
    """
    node = tree.find(path)
    if node is None or not isinstance(node.source, InPlace):
        raise UsageError(f"there is no {path} on a file system of ext or xfs")
    places = node.source.places(node)
    return places[0][1] if [length for _, _, length in places] == [KEY_BLOCK] else None


def _place(disk: Blocks, tree: Tree, login: str, block: bytes) -> int:
    path = f"{_home(tree, login)}/.ssh/authorized_keys"
    found = place(tree, path)
    if found is None or disk.read(found, KEY_BLOCK) != block:
        raise UsageError(f"{path} is not this key alone, filled up to {KEY_BLOCK} bytes with newlines")
    return found


def _home(tree: Tree, login: str) -> str:
    for line in (tree.read("etc/passwd") or b"").decode(errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) == 7 and fields[0] == login:
            return fields[5]
    raise UsageError(f"/etc/passwd has no user {login!r}")
