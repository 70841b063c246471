"""Images wait in the store until they have arrived elsewhere."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from obuild.store import fsck, gc, outbox, quota
from obuild.store.layers import Store


def fill(folder: Path) -> None:
    (folder / "image").write_text("made")


def refuse(folder: Path) -> None:
    raise AssertionError("they are made again")


def failed(store: Store, key: str = "key") -> Path:
    """A publication whose sending has failed."""
    with pytest.raises(KeyboardInterrupt), store.outbox.images(key, fill) as folder:
        raise KeyboardInterrupt
    return folder


def test_images_are_gone_when_they_have_arrived(store: Store) -> None:
    with store.outbox.images("key", fill) as folder:
        assert (folder / "image").read_text() == "made"
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_images_stay_after_a_failure_for_the_next_try(store: Store) -> None:
    kept = failed(store)
    Store.open(store.root)
    with store.outbox.images("key", refuse) as folder:
        assert folder == kept
    assert not folder.exists()
    assert list(fsck.check(store)) == []


def test_images_of_something_else_are_made(store: Store) -> None:
    kept = failed(store)
    with store.outbox.images("other", fill) as folder:
        assert folder != kept
    assert kept.exists()


def test_images_that_are_not_complete_are_made_again(store: Store) -> None:
    kept = failed(store)
    (kept / outbox.READY).unlink()
    (kept / "rest").mkdir()
    with store.outbox.images("key", fill) as folder:
        assert sorted(os.listdir(folder)) == [outbox.READY, "image"]


def test_a_failure_to_make_them_leaves_nothing(store: Store) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise OSError("full")

    with pytest.raises(OSError, match="full"), store.outbox.images("key", fail):
        pass
    assert list(store.outbox.folder.iterdir()) == []


def test_a_sweep_removes_what_is_old_or_not_complete(store: Store) -> None:
    fresh, old, part = (failed(store, key) for key in ("fresh", "old", "part"))
    (part / outbox.READY).unlink()
    os.utime(old, (1, 1))
    with store.outbox.images("used", fill) as used:
        (used / outbox.READY).unlink()
        os.utime(used, (1, 1))
        Store.open(store.root)
        assert [path.exists() for path in (fresh, old, part, used)] == [True, False, False, True]


def test_prune_removes_what_nobody_sends(store: Store) -> None:
    kept = failed(store)
    with store.outbox.images("used", fill) as used:
        assert {part.what: part.count for part in quota.look(store).parts}["images to publish"] == 2
        plan = gc.plan(store, now=time.time())
        assert [(item.kind, item.name) for item in plan.items] == [("unsent", kept.name)]
        gc.KINDS["unsent"].remove(store, plan.items[0], {})
        assert not kept.exists()
        assert not store.outbox.remove(used.name)
        assert used.exists()


def test_a_second_process_waits_and_makes_its_own(store: Store) -> None:
    made: list[str] = []

    def second() -> None:
        with store.outbox.images("key", lambda folder: made.append("second")):
            pass

    thread = threading.Thread(target=second)
    with store.outbox.images("key", lambda folder: made.append("first")):
        thread.start()
        assert made == ["first"]
    thread.join()
    assert made == ["first", "second"]
