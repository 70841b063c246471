"""Disk usage."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from obuild.errors import ProcessError, StoreError
from obuild.store import usage
from obuild.store.layers import Store


def test_the_size_of_a_folder_excludes_holes_and_repeated_links(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    empty = usage.on_disk(folder)
    (folder / "deep" / "file").write_bytes(os.urandom(100_000))
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (folder / "link").symlink_to("/")
    assert 100_000 <= usage.on_disk(folder) - empty < 200_000
    assert 100_000 <= usage.on_disk(folder / "deep" / "file") < 200_000


def test_the_size_of_a_file_is_divided_among_its_hard_links(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "file").write_bytes(os.urandom(100_000))
    alone = usage.within(one)
    (two / "file").hardlink_to(one / "file")
    assert usage.within(one) == usage.within(two) == alone // 2
    (one / "file").unlink()
    assert usage.within(two) == alone


def test_files_that_vanish_count_as_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x" * 50_000)
    before = usage.on_disk(tmp_path)
    monkeypatch.setattr(os, "listdir", lambda path: ["file", "gone"])
    assert usage.on_disk(tmp_path) == before
    assert usage.on_disk(tmp_path / "gone") == 0


def test_the_largest_item_comes_first(store: Store) -> None:
    assert usage.in_words(store.root) == "little"
    (store.result / "layer").write_bytes(os.urandom(2 << 20))
    (store.caches.folder / "cache").write_bytes(os.urandom(5 << 20))
    assert usage.in_words(store.root) == "caches 5.0 MiB, layers 2.0 MiB"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_program_stopped_by_a_full_disk_or_a_quota_is_reported_as_a_store_without_space(
    store: Store, code: int
) -> None:
    why = os.strerror(code)
    with pytest.raises(StoreError, match=why) as full, usage.storage_errors(store.root):
        raise ProcessError(f"qemu-img create failed with exit status 1:\nqemu-img: a.qcow2: {why}")
    assert full.value.message == f"cannot write to the store {store.root}: {why}"
    assert "obuild prune" in full.value.hint
    assert ("a disk quota is used up" in full.value.hint) == (code == errno.EDQUOT)


def test_other_errors_of_a_program_are_not_those_of_a_full_disk(store: Store) -> None:
    with pytest.raises(ProcessError, match="Invalid argument"), usage.storage_errors(store.root):
        raise ProcessError("qemu-img: Invalid argument")
