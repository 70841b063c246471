"""The caches' commands for users: list, remove, export, import."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.store.caches import escape, unescape
from obuild.store.layers import Store
from tests.support.fakes import other_process

NAMES = ["apt", "a/b", "..", "é ü", "\udcff", "~%41", "", "new\nline"]


def archive(path: Path, *names: str, link: str = "", content: bytes = b"x" * 700) -> Path:
    """A tar archive of files with these names."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as out:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.LNKTYPE, link
            out.addfile(info)
    return path


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return archive(tmp_path / "packed.tar", "./a", "b/c")


@pytest.mark.parametrize("name", NAMES)
def test_escaping_a_name_is_reversible(name: str) -> None:
    assert unescape(escape(name)) == name


def test_an_imported_cache_is_listed_and_exported(store: Store, packed: Path, tmp_path: Path) -> None:
    for name in NAMES:
        store.caches.put(packed, name)
    there = store.caches.listing()
    assert [cache.name for cache in there] == sorted(NAMES)
    assert {cache.size for cache in there} == {packed.stat().st_size}
    assert all(abs(cache.changed - packed.stat().st_mtime) < 60 for cache in there)
    for name in NAMES:
        store.caches.export(name, tmp_path / "out.tar", force=True)
        assert (tmp_path / "out.tar").read_bytes() == packed.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tar", "packed.tar", "store"]
    assert os.listdir(store.cache_tmp) == []


def test_a_removed_cache_is_gone(store: Store, packed: Path) -> None:
    store.caches.put(packed, "one")
    store.caches.put(packed, "two")
    store.caches.remove("one")
    assert [cache.name for cache in store.caches.listing()] == ["two"]
    assert os.listdir(store.caches.folder) == ["c-two"]
    assert os.listdir(store.locks) == []


@pytest.mark.parametrize("change", [lambda store, name: store.caches.remove(name), lambda store, name: None])
def test_a_step_with_an_older_copy_does_not_undo_an_import(
    store: Store, packed: Path, tmp_path: Path, change: Callable[[Store, str], None]
) -> None:
    store.caches.put(packed, "c")
    with store.caches.borrow("c") as copy:
        change(store, "c")
        store.caches.put(archive(tmp_path / "new.tar", "new"), "c")
        assert not copy.save(archive(tmp_path / "late.tar", "late"))
    assert store.caches.listing()[0].size == (tmp_path / "new.tar").stat().st_size


def test_a_step_with_a_copy_of_a_removed_cache_saves_nothing(store: Store, packed: Path, tmp_path: Path) -> None:
    store.caches.put(packed, "c")
    with store.caches.borrow("c") as copy:
        store.caches.remove("c")
        assert not copy.save(archive(tmp_path / "late.tar", "late"))
    assert store.caches.listing() == []


def test_removal_waits_for_a_process_that_is_copying(store: Store, packed: Path) -> None:
    store.caches.put(packed, "c")
    code = f"""
import sys
from pathlib import Path
from obuild.store.layers import Store
store = Store.open(Path({str(store.root)!r}))
print("ready", flush=True)
store.caches.remove("c")
print("removed", flush=True)
"""
    with other_process(code) as other:
        assert other.stdout
        with store.caches.hold("c") as held:
            assert other.stdout.readline() == "ready\n"
            assert held.exists()
        assert other.stdout.readline() == "removed\n"
    assert not held.exists()


@pytest.mark.parametrize(
    "act",
    [
        lambda store, name: store.caches.remove(name),
        lambda store, name: store.caches.export(name, store.root / "x.tar"),
    ],
)
def test_the_error_for_an_unknown_cache_lists_the_caches(
    store: Store, packed: Path, act: Callable[[Store, str], None]
) -> None:
    with pytest.raises(UsageError, match="no cache 'apt'") as caught:
        act(store, "apt")
    assert caught.value.hint == "there are none yet"
    store.caches.put(packed, "one")
    (store.caches.folder / "c-empty").mkdir()
    with pytest.raises(UsageError) as caught:
        act(store, "apt" * 100)
    assert caught.value.hint == "the caches are: one"
    assert not (store.root / "x.tar").exists()


def test_an_export_refuses_unsuitable_destinations(store: Store, packed: Path, tmp_path: Path) -> None:
    store.caches.put(packed, "c")
    (tmp_path / "there").write_text("mine")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("fifo", "null"):
        with pytest.raises(UsageError, match="is not a regular file"):
            store.caches.export("c", tmp_path / name, force=True)
    assert (tmp_path / "fifo").is_fifo()
    for file, why in (
        (tmp_path / "there", "already exists"),
        (tmp_path, "is a directory"),
        (tmp_path / "none/file", "there is no directory"),
    ):
        with pytest.raises(UsageError, match=why):
            store.caches.export("c", file)
    assert (tmp_path / "there").read_text() == "mine"


@pytest.mark.parametrize(
    ("names", "link", "why"),
    [
        (["/etc/passwd"], "", "names '/etc/passwd', which leads out"),
        (["a/../../b"], "", "leads out"),
        ([".."], "", "leads out"),
        (["n" * 150 + "/../x"], "", "leads out"),
        (["ok"], "../ok", "links to '../ok'"),
        (["ok"], "/ok", "links to '/ok'"),
    ],
)
def test_names_that_lead_out_are_refused(
    store: Store, packed: Path, tmp_path: Path, names: list[str], link: str, why: str
) -> None:
    store.caches.put(packed, "c")
    with pytest.raises(UsageError, match=why):
        store.caches.put(archive(tmp_path / "bad.tar", *names, link=link), "c")
    assert store.caches.listing()[0].size == packed.stat().st_size
    assert os.listdir(store.cache_tmp) == []


@pytest.mark.parametrize("name", ["..a/b..", "a/...", "./x", "é", "\udcff"])
def test_names_that_only_look_odd_are_accepted(store: Store, tmp_path: Path, name: str) -> None:
    store.caches.put(archive(tmp_path / "odd.tar", name), "c")


def test_an_empty_archive_is_accepted(store: Store, tmp_path: Path) -> None:
    store.caches.put(archive(tmp_path / "none.tar"), "c")


def test_data_that_is_not_an_archive_is_refused(store: Store, packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    for content, why in (
        (b"", "not a complete tar archive"),
        (b"hello" * 1000, "not a complete tar archive"),
        (gzip.compress(data), "is compressed"),
        (data[:300], "not a complete tar archive"),
        (data[:900], "not a complete tar archive"),
        (data[:1536], "damaged or truncated at byte 1536"),
        (data[:1600], "damaged or truncated at byte 1536"),
        (data[:1536] + b"y" * 512 + data[2048:], "damaged or truncated at byte 1536"),
    ):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(UsageError, match=why):
            store.caches.put(tmp_path / "bad", "c")
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="there is no file"):
            store.caches.put(path, "c")
    assert store.caches.listing() == []
