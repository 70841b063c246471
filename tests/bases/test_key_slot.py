"""The login key in the image of a guest: cleared where each store can write its own, else left."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.bases import key_slot
from obuild.bases.kind import Making
from obuild.guests.profile import Card
from obuild.host import qemu_img
from obuild.host.qemu_img import KEY_BLOCK
from obuild.store.layers import Store
from tests.support.disks import ext4_disk

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI key of the store"
FULL = KEY.encode().ljust(KEY_BLOCK, b"\n")

Guest = Callable[[bytes], Path]


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    """Make an image whose user `me` has these authorized_keys."""

    def make(keys: bytes) -> Path:
        (tmp_path / "keys").write_bytes(keys)
        (tmp_path / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nme:x:7:7:Me:/home/me:/bin/sh\n")
        folders = ("etc", "usr", "home", "home/me", "home/me/.ssh")
        raw = ext4_disk(
            tmp_path / "disk.raw",
            *(f"mkdir {each}" for each in folders),
            f"write {tmp_path}/passwd etc/passwd",
            f"write {tmp_path}/keys home/me/.ssh/authorized_keys",
        )
        qemu_img.pack(raw, tmp_path / "disk.qcow2")
        return tmp_path / "disk.qcow2"

    return make


def cleared(image: Path, said: list[str], card: Card) -> Card:
    folder = image.parent
    making = Making(Store(folder / "store"), folder / "key", f"{KEY}\n", said.append, lambda remote: folder)
    return key_slot.clear("mine", image, card, making)


def content(image: Path, tmp_path: Path) -> bytes:
    raw = tmp_path / "content.raw"
    qemu_img.unpack(image, raw)
    return raw.read_bytes()


def test_a_key_alone_in_its_block_is_cleared(guest: Guest, tmp_path: Path) -> None:
    said: list[str] = []
    image = guest(FULL)
    before = content(image, tmp_path)
    card = cleared(image, said, Card(login="me"))
    place, after = card.authorized_keys, content(image, tmp_path)
    assert before[place : place + KEY_BLOCK] == FULL
    assert after == before[:place] + b"\n" * KEY_BLOCK + before[place + KEY_BLOCK :]
    subprocess.run(["e2fsck", "-fn", f"{tmp_path}/content.raw?offset={1 << 20}"], check=True, capture_output=True)
    assert said == []


@pytest.mark.parametrize(
    ("keys", "card", "why"),
    [
        (KEY.encode(), Card(login="me"), "/home/me/.ssh/authorized_keys is not this key alone, filled up"),
        (b"another\n" + FULL[:-8], Card(login="me"), "/home/me/.ssh/authorized_keys is not this key alone"),
        (FULL + FULL, Card(login="me"), "/home/me/.ssh/authorized_keys is not this key alone"),
        (FULL, Card(login="root"), "there is no /root/.ssh/authorized_keys on a file system of ext or xfs"),
        (FULL, Card(login="you"), "/etc/passwd has no user 'you'"),
    ],
)
def test_another_file_keeps_its_keys_and_a_note_says_so(
    guest: Guest, tmp_path: Path, keys: bytes, card: Card, why: str
) -> None:
    said: list[str] = []
    image = guest(keys)
    before = content(image, tmp_path)
    assert cleared(image, said, card) == card
    assert content(image, tmp_path) == before
    (note,) = said
    assert note.startswith(f"mine: its login key stays in it, so other stores cannot enter its guests: {why}")


def test_other_systems_are_not_looked_at(tmp_path: Path) -> None:
    card = Card(os="freebsd")
    assert cleared(tmp_path / "nothing", [], card) is card
