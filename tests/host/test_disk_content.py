"""The digest of a disk's content: the packing does not count, every byte does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from obuild.host import disk_content, qemu_img

SIZE = 3 << 20


def disk(path: Path, *writes: tuple[int, bytes], size: int = SIZE) -> Path:
    """A sparse raw disk with a boot sector's signature."""
    with path.open("wb") as file:
        for offset, data in ((510, b"\x55\xaa"), *writes):
            file.seek(offset)
            file.write(data)
        file.truncate(size)
    return path


def digest(path: Path) -> str:
    return disk_content.digest(qemu_img.inspect(path), None)


@pytest.fixture(params=[4 << 30, 1 << 20])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_content, "WINDOW", request.param)


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("packing", [[], ["-c"], ["-o", "cluster_size=4k"], ["-S", "0"]])
def test_a_disk_has_one_digest_however_it_is_packed(tmp_path: Path, packing: list[str]) -> None:
    raw = disk(tmp_path / "raw", (70_000, b"here"), ((1 << 20) - 2, b"over the edge"), (SIZE - 1, b"e"))
    packed = tmp_path / "it's, packed.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", *packing, raw, packed], check=True)
    assert digest(packed) == digest(raw)


def test_written_zeros_are_as_good_as_holes(tmp_path: Path) -> None:
    assert digest(disk(tmp_path / "a", (100_000, bytes(900_000)))) == digest(disk(tmp_path / "b"))


@pytest.mark.parametrize("write", [(200_000, b"y"), (200_001, b"x"), (200_000 + 65536, b"x"), (200_000, b"xx")])
def test_every_byte_and_its_place_count(tmp_path: Path, write: tuple[int, bytes]) -> None:
    assert digest(disk(tmp_path / "a", (200_000, b"x"))) != digest(disk(tmp_path / "b", write))


def test_the_size_of_the_disk_counts(tmp_path: Path) -> None:
    assert digest(disk(tmp_path / "a")) != digest(disk(tmp_path / "b", size=2 * SIZE))
