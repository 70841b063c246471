"""Disk images, with the real qemu-img."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.host import qemu_img as disk

BOOT_SECTOR = bytes(510) + b"\x55\xaa"


def qemu_img(*argv: str | Path) -> bytes:
    return subprocess.run(["qemu-img", *argv], check=True, capture_output=True).stdout


def info(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(qemu_img("info", "--output=json", path))
    return found


@pytest.mark.parametrize("name", ["disk.img", "disk.qcow2", "misleading.vmdk"])
def test_the_format_is_detected_from_the_content(
    tmp_path: Path, raw_disk: Path, qcow2_disk: Path, name: str
) -> None:
    for source, format in ((raw_disk, "raw"), (qcow2_disk, "qcow2")):
        path = tmp_path / name
        path.write_bytes(source.read_bytes())
        assert disk.inspect(path) == disk.Image(path, "qcow2" if format == "qcow2" else "raw", 1 << 20)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"KDMV", "VMDK"),
        (b"vhdxfile", "VHDX"),
        (b"conectix", "VHD"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh9", "bzip2"),
    ],
)
def test_the_error_for_a_foreign_format_says_what_to_do(tmp_path: Path, head: bytes, what: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(head.ljust(4096, b"\0"))
    with pytest.raises(UsageError, match=what) as caught:
        disk.inspect(path)
    assert "qemu-img convert" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>", bytes(4096)])
def test_a_file_that_no_firmware_could_boot_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a disk image") as caught:
        disk.inspect(path)
    assert str(len(content)) in caught.value.message


def test_a_missing_image_and_a_folder_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            disk.inspect(path)


def test_a_qcow2_header_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"QFI\xfb")
    with pytest.raises(UsageError, match="not a disk image that QEMU can open"):
        disk.inspect(path)


def test_a_truncated_image_is_refused(tmp_path: Path, qcow2_disk: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(qcow2_disk.read_bytes()[:-65536])
    with pytest.raises(UsageError, match="damaged or truncated"):
        disk.inspect(path)


def test_leaked_clusters_do_no_harm(tmp_path: Path, qcow2_disk: Path) -> None:
    """A QEMU that was killed leaves such a cluster: counted but not used."""
    path = tmp_path / "image"
    path.write_bytes(qcow2_disk.read_bytes())
    os.truncate(path, path.stat().st_size + 65536)
    with path.open("r+b") as file:
        file.seek(48)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block + 2 * (path.stat().st_size // 65536 - 1))
        file.write(b"\0\x01")
    assert subprocess.run(["qemu-img", "check", "-q", path], check=False).returncode == 3
    assert disk.inspect(path).format == "qcow2"


@pytest.mark.parametrize("options", [["-F", "raw", "-b", "{}"], ["-o", "data_file={}"]])
def test_an_image_that_refers_to_other_files_of_the_host_is_refused(tmp_path: Path, options: list[str]) -> None:
    other = tmp_path / "passwords"
    other.write_bytes(bytes(1 << 20))
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", *(option.format(other) for option in options), path, "1M")
    with pytest.raises(UsageError, match=str(other)):
        disk.inspect(path)


def test_an_overlay_is_as_large_as_its_backing_and_names_it_relatively(tmp_path: Path, qcow2_disk: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "above").mkdir()
    (tmp_path / "below" / "image").write_bytes(qcow2_disk.read_bytes())
    disk.create_overlay(tmp_path / "above" / "image", "../below/image")
    found = info(tmp_path / "above" / "image")
    assert found["virtual-size"] == 1 << 20
    assert found["backing-filename"] == "../below/image"
    assert found["backing-filename-format"] == "qcow2"
    assert found["cluster-size"] == 128 << 10


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_an_import_stands_alone_and_has_the_same_content(
    tmp_path: Path, raw_disk: Path, qcow2_disk: Path, kind: str
) -> None:
    out = tmp_path / "out"
    disk.import_image(disk.inspect(raw_disk if kind == "raw" else qcow2_disk), out)
    assert disk.inspect(out).format == "qcow2"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", out, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == raw_disk.read_bytes()
