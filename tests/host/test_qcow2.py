"""Images that are written without QEMU."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from obuild.host import qemu_img
from obuild.host.qcow2 import BLOCK, CLUSTER, Extent, Writer


def compared(image: Path, expected: bytes, folder: Path) -> None:
    """See that QEMU finds no fault with an image, and reads this from it."""
    qemu_img.check(image)
    raw = folder / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    assert raw.read_bytes() == expected


@pytest.mark.parametrize("seed", range(4))
def test_qemu_reads_what_was_written(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    blocks = chance.randrange(1, 500)
    size = blocks * BLOCK + chance.choice((0, 512))
    below = tmp_path / "below.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", below, str(size)], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 5 0 {size}", below], check=True)
    expected = bytearray(b"\5" * size)
    data: list[Extent] = []
    zeros: list[Extent] = []
    for at in range(0, size, BLOCK):
        length = min(BLOCK, size - at)
        kind = chance.choice((data, zeros, [], []))
        kind.append((at, length))
        if kind is zeros:
            expected[at : at + length] = bytes(length)
    with Writer(tmp_path / "image.qcow2", size, data, zeros, backing="below.qcow2") as image:
        chance.shuffle(data)
        for start, length in data:
            expected[start : start + length] = chance.randbytes(length)
            image.write(start, bytes(expected[start : start + length]))
    compared(tmp_path / "image.qcow2", bytes(expected), tmp_path)
    assert qemu_img.backing_file(tmp_path / "image.qcow2") == "below.qcow2"


def test_a_long_write_crosses_clusters(tmp_path: Path) -> None:
    expected = random.Random(1).randbytes(4 * CLUSTER)
    holes = bytes(CLUSTER)
    with Writer(tmp_path / "image.qcow2", 9 * CLUSTER, [(CLUSTER, 4 * CLUSTER), (7 * CLUSTER, CLUSTER)]) as image:
        image.write(CLUSTER + 100, expected[100:])
        image.write(CLUSTER, expected[:100])
    compared(tmp_path / "image.qcow2", holes + expected + 4 * holes, tmp_path)


def test_a_writer_goes_on_where_another_has_stopped(tmp_path: Path) -> None:
    expected = random.Random(1).randbytes(4 * CLUSTER)
    path, size, data = tmp_path / "image.qcow2", 9 * CLUSTER, [(CLUSTER, 4 * CLUSTER), (7 * CLUSTER, CLUSTER)]
    with Writer(path, size, data, backing="gone.qcow2") as image:
        image.write(CLUSTER + 100, expected[100:])
    with Writer(path, size, data, go_on=True) as image:
        assert image.read(CLUSTER, 4 * CLUSTER) == bytes(100) + expected[100:]
        image.write(CLUSTER, expected[:100])
    compared(path, bytes(CLUSTER) + expected + bytes(4 * CLUSTER), tmp_path)
    with Writer(path, size, [(0, CLUSTER)], go_on=True) as image:  # that of other data holds nothing
        assert image.read(0, CLUSTER) == bytes(CLUSTER)
    compared(path, bytes(size), tmp_path)


def test_an_image_without_data_is_all_zeros(tmp_path: Path) -> None:
    with Writer(tmp_path / "image.qcow2", 3 * CLUSTER + 512, []):
        pass
    compared(tmp_path / "image.qcow2", bytes(3 * CLUSTER + 512), tmp_path)


def test_a_large_disk_has_several_tables(tmp_path: Path) -> None:
    size, far = 40 << 40, (39 << 40) + 5 * BLOCK
    with Writer(tmp_path / "image.qcow2", size, [(0, BLOCK), (far, BLOCK)]) as image:
        image.write(far, b"x" * BLOCK)
    qemu_img.check(tmp_path / "image.qcow2")
    read = f"read -q -P 120 {far} {BLOCK}"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", read, tmp_path / "image.qcow2"], check=True)
    assert qemu_img.virtual_size(tmp_path / "image.qcow2") == size


def test_the_parts_of_an_image_are_those_it_holds_itself(tmp_path: Path) -> None:
    with Writer(tmp_path / "image.qcow2", CLUSTER, [(BLOCK, BLOCK)], [(5 * BLOCK, BLOCK)], backing="gone.qcow2"):
        pass
    data, zeros = qemu_img.own_parts(tmp_path / "image.qcow2")
    assert (data.start, data.length, data.zero) == (BLOCK, BLOCK, False)
    assert (zeros.start, zeros.length, zeros.zero) == (5 * BLOCK, BLOCK, True)
