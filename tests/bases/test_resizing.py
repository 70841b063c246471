"""A base image grows without a boot, as a whole or not at all."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from obuild.bases import catalog, resizing
from obuild.errors import UsageError
from obuild.guests.profile import Card
from obuild.store.layers import Store
from tests.support.disks import ext4_disk

LARGER = 96 << 20


def size_of(image: Path) -> int:
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", image]))
    return int(info["virtual-size"])


def fsck(image: Path, folder: Path) -> int:
    """Check the file system in the first partition; returns its size in bytes."""
    raw = folder / "check.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    start = int(
        json.loads(subprocess.check_output(["sfdisk", "--json", raw]))["partitiontable"]["partitions"][0]["start"]
    )
    place = f"{raw}?offset={start * 512}"
    subprocess.run(["e2fsck", "-fn", place], check=True, capture_output=True)
    head = subprocess.check_output(["dumpe2fs", "-h", place], text=True, stderr=subprocess.DEVNULL)
    fields = dict(line.split(":", 1) for line in head.splitlines() if ":" in line)
    return int(fields["Block count"]) * int(fields["Block size"])


def test_a_base_is_added_with_a_larger_disk(store: Store, tmp_path: Path) -> None:
    disk = ext4_disk(tmp_path / "disk.raw")
    added = catalog.add(store, disk, "big", about=Card(), key=None, size=LARGER)
    assert size_of(added) == LARGER
    assert fsck(added, tmp_path) > LARGER - (4 << 20)


def test_a_base_is_resized_and_keeps_its_card(store: Store, tmp_path: Path) -> None:
    disk = ext4_disk(tmp_path / "disk.raw")
    about = Card(login="someone")
    before = catalog.add(store, disk, "mine", about=about, key=None)
    after = resizing.resize_base(store, "mine", LARGER)
    assert size_of(after) == LARGER
    assert fsck(after, tmp_path) > LARGER - (4 << 20)
    found = catalog.look(store, "mine")
    assert found is not None
    assert found.card.login == "someone"
    assert not before.exists() or before == after


def test_a_disk_does_not_shrink(store: Store, tmp_path: Path) -> None:
    image = catalog.add(store, ext4_disk(tmp_path / "disk.raw"), "mine", about=Card(), key=None)
    content = image.read_bytes()
    with pytest.raises(UsageError, match="cannot grow to"):
        resizing.resize_base(store, "mine", 1 << 20)
    assert image.read_bytes() == content


def test_what_is_not_there_is_not_resized(store: Store) -> None:
    with pytest.raises(UsageError, match="there is no base image 'nothing'"):
        resizing.resize_base(store, "nothing", LARGER)
