"""Stamps: values that change when a file or a folder changes."""

from __future__ import annotations

import os
from pathlib import Path

from obuild.host import stamp


def test_a_stamp_changes_when_the_file_is_written_to_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"content")
    os.utime(path, ns=(0, 1))
    first = stamp.of(path)
    assert stamp.of(path) == first
    other = tmp_path / "other"
    other.write_bytes(b"content")
    os.utime(other, ns=(0, 1))
    other.replace(path)
    replaced = stamp.of(path)
    path.write_bytes(b"content")
    assert len({first, replaced, stamp.of(path)}) == 3


def test_the_stamp_of_a_folder_changes_with_its_names(tmp_path: Path) -> None:
    before = tmp_path.stat()
    first = stamp.of_folder(tmp_path)
    (tmp_path / "new").touch()
    os.utime(tmp_path, ns=(0, before.st_mtime_ns + 1))
    assert stamp.of_folder(tmp_path) != first


def test_the_boot_id_is_the_hosts() -> None:
    assert stamp.boot_id() == stamp.boot_id() != ""
