"""The laws of the store: layers are complete or absent, removed from the leaves, and never while in use."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import ObuildError, ProcessError, StoreError, UsageError
from obuild.host import qemu_img
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.store.caches import escape
from obuild.store.layers import Store
from tests.support.fakes import other_process
from tests.support.layers import make, make_all, save

ChainMaker = Callable[[str], Chain]
TWO_RUNS = "(run (shell one)) (run (shell two))"

CRASH = """
import os, sys
from pathlib import Path
from obuild.host import locks
from obuild.store.layers import Store
store = Store.open(Path(sys.stdin.readline().strip()))
id = sys.stdin.readline().strip()
with store.claim(id):
    (store.result_tmp / id / "rootfs").mkdir(parents=True)
    print("drafting", flush=True)
    sys.stdin.read()
"""


def everything(store: Store) -> list[str]:
    """Everything in result/, result-tmp/ and the lock folder."""
    return sorted(
        f"{folder.name}/{name}"
        for folder in (store.result, store.result_tmp, store.locks)
        for name in os.listdir(folder)
    )


# -- opening


def test_a_new_store_has_its_parts_and_a_cachedir_tag(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "new" / "store")
    assert all(
        folder.is_dir()
        for folder in (store.result, store.result_tmp, store.base_image, store.caches.folder, store.cache_tmp)
    )
    assert (store.root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_looking_does_not_create_a_store(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a store"):
        Store.open(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


def test_the_error_names_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to the store"):
        Store.open(tmp_path / "file" / "store")


@pytest.mark.parametrize("name", ["result", "result-tmp", "base-image", "cache", "cache-tmp"])
@pytest.mark.parametrize("create", [True, False])
def test_a_missing_part_is_made_again(store: Store, name: str, create: bool) -> None:
    (store.root / name).rmdir()
    Store.open(store.root, create=create)
    assert (store.root / name).is_dir()


def test_the_error_names_a_part_that_cannot_be_made(store: Store) -> None:
    store.cache_tmp.rmdir()
    store.cache_tmp.touch()
    with pytest.raises(UsageError, match=f"^{store.cache_tmp} is a file but must be a folder$"):
        Store.open(store.root)


def test_opening_again_changes_nothing(store: Store, chain: ChainMaker) -> None:
    ids = make_all(store, chain(TWO_RUNS))
    again = Store.open(store.root, create=False)
    assert {layer.id for layer in again.layers()} == set(ids)


def test_opening_removes_drafts_of_dead_processes_and_keeps_those_of_living_ones(store: Store) -> None:
    for name in ("a" * 64, "b" * 64):
        (store.result_tmp / name / "rootfs").mkdir(parents=True)
    (store.cache_tmp / "0-c-x").mkdir()
    with store.claim(LayerId("b" * 64)), store.caches.borrow("y"):
        Store.open(store.root)
        assert os.listdir(store.result_tmp) == ["b" * 64]
        assert os.listdir(store.cache_tmp) == ["0-c-y"]


# -- making


def test_a_committed_layer_is_complete_read_only_and_the_only_thing_left(store: Store, chain: ChainMaker) -> None:
    step = chain("").steps[0]
    make(store, step)
    layer = store.find(step.id)
    assert layer is not None
    assert layer.key == step.key
    assert layer.log.read_bytes() == b"log of (from tiny)"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (layer.image, layer.log, layer.path / "key")] == [
        0o444
    ] * 3
    assert everything(store) == [f"result/{step.id}"]


def test_a_draft_is_not_in_result_before_it_is_committed(store: Store, chain: ChainMaker) -> None:
    step = chain("").steps[0]
    with store.claim(step.id), store.draft(step) as draft:
        assert store.find(step.id) is None
        draft.image.write_bytes(b"image")
    assert store.find(step.id) is not None


@pytest.mark.parametrize("error", [ObuildError("no"), KeyboardInterrupt(), OSError(errno.EPERM, "no")])
def test_a_draft_that_raises_leaves_nothing(store: Store, chain: ChainMaker, error: BaseException) -> None:
    step = chain("").steps[0]
    with pytest.raises(type(error)), store.claim(step.id), store.draft(step):
        raise error
    assert everything(store) == []


def test_a_draft_without_an_image_is_not_committed(store: Store, chain: ChainMaker) -> None:
    step = chain("").steps[0]
    with pytest.raises(FileNotFoundError), store.claim(step.id), store.draft(step):
        pass
    assert everything(store) == []


def test_a_layer_is_an_overlay_on_its_parent(store: Store, chain: ChainMaker) -> None:
    _, step = chain("(run (shell one))").steps
    make_all(store, chain("(run (shell one))"))
    layer = store.find(step.id)
    assert layer is not None
    assert layer.parent == step.parent
    info = json.loads(
        subprocess.run(["qemu-img", "info", "--output=json", layer.image], check=True, capture_output=True).stdout
    )
    assert info["backing-filename"] == f"../../../result/{step.parent}/rootfs/image.qcow2"


def test_chains_still_work_in_a_moved_store(store: Store, chain: ChainMaker, tmp_path: Path) -> None:
    ids = make_all(store, chain(TWO_RUNS))
    moved = Store.open(store.root.rename(tmp_path / "moved"), create=False)
    last = moved.find(ids[-1])
    assert last is not None
    qemu_img.check(last.image)
    subprocess.run(["qemu-img", "info", "--backing-chain", last.image], check=True, capture_output=True)


@pytest.mark.parametrize("flat", [False, True])
def test_a_draft_may_start_as_a_copy_of_an_overlay_on_its_layer(
    store: Store, chain: ChainMaker, flat: bool
) -> None:
    """Also if the overlay is on the layer's flattened copy and the draft on the layer, or the reverse."""
    first, step = chain("(run (shell one))").steps
    make(store, first)
    image = store.result / first.id / "rootfs" / "image.qcow2"
    overlay = (
        store.states.running / "0-machine" / "disks" / "disk.qcow2"
    )  # at the same depth in the store as a draft's
    overlay.parent.mkdir(parents=True)
    if flat:
        (store.root / "flat").mkdir()
        image = Path(shutil.copy(image, store.root / "flat" / "image.qcow2"))
    below = f"../../../{image.relative_to(store.root)}"
    qemu_img.create_overlay(overlay, below)
    io = ["qemu-io", "-f", "qcow2", "-c"]
    subprocess.run([*io, "write -P 7 64k 64k", overlay], check=True, stdout=subprocess.DEVNULL)
    overlay.chmod(0o400)
    with store.claim(step.id), store.draft(step) as draft:
        draft.lay_copy(overlay)
        assert (
            qemu_img.backing_file(draft.image) == draft.below == f"../../../result/{first.id}/rootfs/image.qcow2"
        )
        assert stat.S_IMODE(draft.image.stat().st_mode) == 0o644
        subprocess.run([*io, "read -P 7 64k 64k", draft.image], check=True, stdout=subprocess.DEVNULL)
    assert qemu_img.backing_file(overlay) == below


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "full"), ProcessError("x: No space left on device")],
)
def test_a_full_disk_is_reported_as_such(store: Store, chain: ChainMaker, error: Exception) -> None:
    step = chain("").steps[0]
    with pytest.raises(StoreError, match="cannot write to the store") as caught, store.draft(step):
        raise error
    assert "MiB are free; in the store: little; `obuild prune --keep-bytes" in caught.value.hint


def test_a_draft_of_a_dead_process_is_replaced(store: Store, chain: ChainMaker) -> None:
    step = chain("").steps[0]
    with other_process(CRASH) as dying:
        assert dying.stdin is not None
        assert dying.stdout is not None
        dying.stdin.write(f"{store.root}\n{step.id}\n")
        dying.stdin.flush()
        assert dying.stdout.readline() == "drafting\n"
        dying.kill()
        dying.wait()
    make(store, step)
    assert everything(store) == [f"result/{step.id}"]


# -- looking


def test_an_id_is_found_by_its_first_digits(store: Store) -> None:
    for name in ("ab" + "0" * 62, "ac" + "0" * 62):
        (store.result / name).mkdir()
    (store.result_tmp / ("b" * 64)).mkdir()
    assert store.resolve("ab") == "ab" + "0" * 62
    assert store.resolve("ac" + "0" * 62) == "ac" + "0" * 62
    assert store.resolve("b", drafts=True) == "b" * 64, "a draft has a log to look at"
    with pytest.raises(UsageError, match="no layer"):
        store.resolve("b")


@pytest.mark.parametrize(
    ("prefix", "why"),
    [("a", "2 layers"), ("c", "no layer"), ("", "no layer"), ("lost", "no layer"), ("a" * 64, "no layer")],
)
def test_an_unknown_or_ambiguous_prefix_is_refused(store: Store, prefix: str, why: str) -> None:
    for name in ("ab" + "0" * 62, "ac" + "0" * 62):
        (store.result / name).mkdir()
    (store.result / "lost+found").mkdir()
    with pytest.raises(UsageError, match=why):
        store.resolve(prefix)


def test_a_log_is_found_while_it_is_written_and_afterwards(store: Store, chain: ChainMaker) -> None:
    step = chain("").steps[0]
    with store.claim(step.id), store.draft(step) as draft:
        draft.log.write(b"so far")
        draft.log.flush()
        draft.image.write_bytes(b"image")
        assert store.log_path(step.id).read_bytes() == b"so far"
    assert store.log_path(step.id).read_bytes() == b"so far"


def test_only_folders_with_the_name_of_a_layer_are_layers(store: Store, chain: ChainMaker) -> None:
    (store.result / "lost+found").mkdir()
    ids = make_all(store, chain(""))
    assert [layer.id for layer in store.layers()] == ids


# -- removing


def test_a_leaf_is_removed_and_its_parent_afterwards(store: Store, chain: ChainMaker) -> None:
    root, leaf = make_all(store, chain("(run (shell one))"))
    parents = store.parents()
    assert not store.remove(root, parents)
    assert store.remove(leaf, parents)
    assert store.remove(root, parents)
    assert everything(store) == []


def test_a_child_made_after_the_parents_were_read_is_seen(store: Store, chain: ChainMaker) -> None:
    root, child = chain("(run (shell one))").steps
    make(store, root)
    parents = store.parents()
    make(store, child)
    assert not store.remove(root.id, parents)


def test_a_layer_in_use_stays(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    with store.use(root):
        assert not store.remove(root, store.parents())
    assert store.remove(root, store.parents())


def test_a_layer_that_is_claimed_stays(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    with store.claim(root):
        assert not store.remove(root, store.parents())


def test_a_removed_layer_cannot_be_used(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    store.remove(root, store.parents())
    with store.use(root) as layer:
        assert layer is None


def test_removing_twice_is_not_an_error(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    assert store.remove(root, store.parents())
    assert not store.remove(root, {})


def test_a_parent_can_be_removed_after_another_process_has_removed_its_child(
    store: Store, chain: ChainMaker
) -> None:
    root, leaf = make_all(store, chain("(run (shell one))"))
    parents = store.parents()
    assert Store.open(store.root).remove(leaf, store.parents())
    assert not store.remove(leaf, parents)
    assert store.remove(root, parents)


def test_a_layer_that_is_removed_while_parents_are_read_is_skipped(
    store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, leaf = make_all(store, chain("(run (shell one))"))
    seen = os.listdir(store.result)
    store.remove(leaf, store.parents())
    monkeypatch.setattr(os, "listdir", lambda path: seen)
    assert store.parents() == {root: None}


# -- caches


def test_a_cache_starts_empty_and_has_what_was_saved(store: Store) -> None:
    with store.caches.borrow("c") as first:
        assert not first.path.exists()
        new = first.path.with_suffix(".new")
        new.write_bytes(b"one")
        assert first.save(new)
    with store.caches.borrow("c") as second:
        assert second.path.read_bytes() == b"one"
    assert os.listdir(store.cache_tmp) == []


def test_a_borrowed_cache_that_is_not_saved_changes_nothing(store: Store) -> None:
    save(store, "c", b"one")
    with store.caches.borrow("c") as copy:
        copy.path.with_suffix(".new").write_bytes(b"two")
    with store.caches.borrow("c") as copy:
        assert copy.path.read_bytes() == b"one"


@pytest.mark.parametrize("before", [None, b"before"])
def test_the_first_of_two_steps_to_save_a_cache_wins(store: Store, before: bytes | None) -> None:
    if before is not None:
        save(store, "c", before)
    with store.caches.borrow("c") as one, store.caches.borrow("c") as two:
        assert one.path != two.path
        for copy, text in ((one, b"one"), (two, b"two")):
            copy.path.with_suffix(".new").write_bytes(text)
        assert two.save(two.path.with_suffix(".new"))
        assert not one.save(one.path.with_suffix(".new"))
    with store.caches.borrow("c") as copy:
        assert copy.path.read_bytes() == b"two"


def test_saving_the_same_content_does_not_touch_the_cache(store: Store) -> None:
    save(store, "c", b"same")
    with store.caches.borrow("c") as other:
        save(store, "c", b"same")
        other.path.with_suffix(".new").write_bytes(b"changed")
        assert other.save(other.path.with_suffix(".new"))


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("opam-cache_1.0", "opam-cache_1.0"),
        ("../../etc", "..%2F..%2Fetc"),
        ("a b", "a%20b"),
        ("~", "%7E"),
        ("%2F", "%252F"),
        ("é", "%C3%A9"),
        ("\udcff", "%FF"),
        ("a\0", "a%00"),
    ],
)
def test_any_name_of_a_cache_becomes_one_file_name(store: Store, name: str, escaped: str) -> None:
    assert escape(name) == escaped
    save(store, name, b"x")
    assert os.listdir(store.caches.folder) == [f"c-{escaped}"]
