"""The disk in a qcow2 image is read in place, with all images below it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from obuild.errors import ObuildError
from obuild.host import nbd, qemu_img


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image on another; both have data, and a name that QEMU's option parser would cut."""
    below, image = tmp_path / "below,a=b", tmp_path / "above,c=d"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", below, "8M"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 1 0 3M", "-c", "write -P 2 7M 1M", below], capture_output=True)
    qemu_img.create_overlay(image, below.name)
    subprocess.run(["qemu-io", "-c", "write -P 3 1M 64k", image], capture_output=True, check=True)
    return image


def test_a_disk_is_what_qemu_img_unpacks(image: Path, tmp_path: Path) -> None:
    qemu_img.unpack(image, tmp_path / "raw")
    with nbd.disk_of(image) as disk:
        assert disk.size == 8 << 20
        assert disk.read(0, disk.size) == (tmp_path / "raw").read_bytes()
        assert disk.read((1 << 20) - 1, 2) == b"\1\3"
        assert disk.read(disk.size, 0) == b""
        for offset, length in ((-1, 1), (disk.size, 1), (disk.size - 1, 2)):
            with pytest.raises(ObuildError, match="the disk has ended"):
                disk.read(offset, length)


def test_nothing_is_left_behind(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(image.parent))
    before, open_before = sorted(os.listdir(image.parent)), len(os.listdir("/proc/self/fd"))
    with nbd.disk_of(image) as disk:
        disk.read(0, 512)
    assert sorted(os.listdir(image.parent)) == before
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_what_is_no_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("text")
    with pytest.raises(ObuildError, match=r"text cannot be read: .*not in qcow2 format"), nbd.disk_of(text):
        pass


def test_a_server_that_dies_is_an_error(image: Path) -> None:
    def read_all() -> None:
        with nbd.disk_of(image) as disk:
            assert disk.read(0, 1) == b"\1"
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            os.kill(int(children[-1]), 9)
            while True:
                disk.read(0, 1 << 20)

    with pytest.raises(ObuildError, match="above,c=d cannot be read"):
        read_all()


def test_the_allocation_says_which_image_has_what(image: Path) -> None:
    below = image.with_name("below,a=b")
    found = qemu_img.allocation(image)
    assert [(start, owner) for start, _, owner in found if owner == image] == [(1 << 20, image)]
    assert sum(length for _, length, _ in found) == 8 << 20
    assert sum(length for _, length, owner in found if owner == below) == (4 << 20) - (64 << 10)
    assert sum(length for _, length, owner in found if owner is None) == 4 << 20
