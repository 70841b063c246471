"""Caches as folders: who has one, when it counts, and what removes it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from obuild.host import stamp
from obuild.store import fsck, gc, quota, unpacked
from obuild.store.caches import CacheCopy
from obuild.store.layers import Store


def use(store: Store, copy: CacheCopy, change: str | None = None) -> bool:
    """Use a cache as a step on this host does; return whether nothing had to be unpacked."""
    with store.caches.hold(copy.name) as master:
        state = unpacked.take(master, copy.path)
    tree = unpacked.tree_of(copy.path) if state else unpacked.make(copy.path)
    archive = copy.path
    if change is not None:
        (tree / "file").write_text(change)
        archive = copy.path.with_suffix(".new")
        archive.write_text(change)
    now = unpacked.look(tree)
    assert now is not None
    unpacked.label(tree.parent, archive, now)
    copy.save(archive)
    return state is not None


def step(store: Store, change: str | None = None) -> bool:
    with store.caches.borrow("c") as copy:
        return use(store, copy, change)


def content(store: Store) -> str:
    return (unpacked.tree_of(store.caches.file("c")) / "file").read_text()


@pytest.fixture
def filled(store: Store) -> Store:
    """A store with the cache `c`, which has a folder."""
    assert not step(store, "one")
    return store


def test_the_next_step_has_the_folder_that_the_last_one_left(filled: Store) -> None:
    assert step(filled)
    assert step(filled, "two")
    assert step(filled)
    assert content(filled) == "two"
    assert filled.caches.file("c").read_text() == "two"
    assert os.listdir(filled.cache_tmp) == []


def test_only_root_can_enter_the_folder(filled: Store) -> None:
    folder = unpacked.folder_of(filled.caches.file("c"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_second_step_has_a_folder_of_its_own(filled: Store) -> None:
    with ExitStack() as stack:
        one, two = (stack.enter_context(filled.caches.borrow("c")) for _ in range(2))
        assert use(filled, one, "first")
        with filled.caches.hold("c") as master:
            assert unpacked.take(master, two.path) is None
        assert not use(filled, two, "two")
    assert content(filled) == "first"


def test_a_step_that_has_changed_nothing_drops_no_newer_folder(filled: Store) -> None:
    with filled.caches.borrow("c") as old:
        step(filled, "new")
        assert not use(filled, old)
    assert content(filled) == "new"
    assert step(filled)


def test_the_folder_of_a_step_that_fails_is_gone(filled: Store) -> None:
    with filled.caches.borrow("c") as copy, filled.caches.hold("c") as master:
        assert unpacked.take(master, copy.path)
    assert not step(filled)


def test_a_folder_without_a_label_does_not_count(filled: Store) -> None:
    with filled.caches.borrow("c") as copy:
        for _ in range(2):
            with filled.caches.hold("c") as master:
                unpacked.take(master, copy.path)
        assert unpacked.state_of(unpacked.folder_of(copy.path), copy.path) is None


def test_an_import_makes_the_folder_useless(filled: Store, tmp_path: Path) -> None:
    other = tmp_path / "other.tar"
    other.write_bytes(bytes(10240))
    filled.caches.put(other, "c")
    assert not unpacked.folder_of(filled.caches.file("c")).exists()
    assert not step(filled)


def test_the_folder_of_an_earlier_boot_does_not_count(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(stamp, "BOOT_ID", tmp_path / "boot")
    used = filled.caches.last_used("c")
    (item,) = gc.plan(filled, now=0.0).items
    assert (item.kind, item.name) == ("unpacked", "c")
    assert gc.carry_out(filled, gc.plan(filled, now=0.0), lambda item: None) == []
    assert not unpacked.folder_of(filled.caches.file("c")).exists()
    assert filled.caches.last_used("c") == used
    assert gc.plan(filled, now=0.0).items == ()


def test_a_folder_counts_as_a_part_of_its_cache(filled: Store) -> None:
    def size() -> int:
        return next(part.size for part in quota.look(filled).parts if part.what == "caches")

    before = size()
    step(filled, "x" * 100_000)
    assert size() - before >= 190_000
    assert gc.plan(filled, now=0.0).items == ()
    assert list(fsck.check(filled)) == []
    filled.caches.remove("c")
    assert os.listdir(filled.caches.folder) == []


def test_folders_that_cannot_be_renamed_are_unpacked_again(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the lower layer of an overlay file system."""

    def refuse(source: Path, dest: Path) -> Path:
        if source.suffix == ".unpacked":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return real(source, dest)

    real = Path.rename
    monkeypatch.setattr(Path, "rename", refuse)
    assert not step(filled)
    assert not step(filled, "two")
    assert filled.caches.file("c").read_text() == "two"


def test_a_change_of_anything_changes_the_state(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    file = tree / "deep" / "file"
    file.write_text("one")
    seen = {unpacked.look(tree)}
    assert seen == {unpacked.look(tree)}
    changes: tuple[Callable[[], object], ...] = (
        lambda: file.write_text("two"),
        lambda: file.chmod(0o4755),
        lambda: file.rename(tree / "file"),
        lambda: tree.chmod(0o700),
        lambda: (tree / "deep").chmod(0o700),
        lambda: os.utime(tree / "deep", (1, 1)),
        lambda: (tree / "link").symlink_to("file"),
    )
    for number, change in enumerate(changes, 2):
        change()
        seen.add(unpacked.look(tree))
        assert len(seen) == number
    (tree / "deep").chmod(0o700)  # as it is: apt does so each time
    assert unpacked.look(tree) in seen
