"""Tags: valid names, what they keep, and that no race or crash leaves a tag on a missing layer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import StoreError, UsageError
from obuild.host import locks
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.store import fsck, gc, removal
from obuild.store.index import resolve
from obuild.store.inspect import describe, listing
from obuild.store.layers import Store
from obuild.store.tags import LONGEST, Tags, checked
from tests.support.layers import make, make_all

ChainMaker = Callable[[str], Chain]

DAY = 86400.0


@pytest.fixture
def layers(store: Store, chain: ChainMaker) -> tuple[LayerId, LayerId, LayerId]:
    """A base, a layer on it, and another on that."""
    root, one, two = make_all(store, chain("(run (shell one)) (run (shell two))"))
    return root, one, two


Layers = tuple[LayerId, LayerId, LayerId]


@pytest.mark.parametrize("name", ["web", "g", "v1.2", "team/web:1.2", "A-b_c", "0x", "x" * LONGEST, "2026-01-31"])
def test_valid_names(store: Store, layers: Layers, name: str) -> None:
    store.tag(layers[1], name)
    assert store.tags.get(name) == layers[1]
    assert [tag.name for tag in store.tags.all()] == [name]
    assert resolve(store, name) == layers[1]
    assert list(fsck.check(store)) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is not a valid tag"),
        (".", "is not a valid tag"),
        ("..", "is not a valid tag"),
        ("../../etc/passwd", "is not a valid tag"),
        ("a b", "is not a valid tag"),
        ("a\nb", "is not a valid tag"),
        ("-x", "is not a valid tag"),
        ("web/", "is not a valid tag"),
        ("%2F", "is not a valid tag"),
        ("é", "is not a valid tag"),
        ("\udcff", "is not a valid tag"),
        ("a", "looks like an id"),
        ("20260131", "looks like an id"),
        ("CAFE", "looks like an id"),
        ("f" * 64, "looks like an id"),
        ("x" * (LONGEST + 1), "at most"),
    ],
)
def test_invalid_names(store: Store, layers: Layers, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        store.tag(layers[1], name)
    assert store.tags.all() == []
    assert not store.tags.is_there(name)


@pytest.mark.parametrize("name", ["..", "../result", "", "x" * 5000, "\udcff"])
def test_an_unknown_tag_is_not_found(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="no layer has the id or the tag"):
        store.resolve(name)


def test_the_longest_name_of_slashes_fits_into_a_file_name(store: Store, layers: Layers) -> None:
    name = "x" + "/" * (LONGEST - 2) + "x"
    store.tag(layers[0], name)
    assert store.tags.get(name) == layers[0]


def test_a_tag_moves_when_it_is_set_again(store: Store, layers: Layers) -> None:
    _, one, two = layers
    store.tag(one, "web")
    store.tag(one, "old")
    store.tag(two, "web")
    assert store.tags.by_layer() == {one: ["old"], two: ["web"]}
    assert store.tags.remove("web")
    assert not store.tags.remove("web")
    assert store.tags.by_layer() == {one: ["old"]}
    assert store.find(two)


def test_a_layer_that_is_gone_cannot_be_tagged(store: Store) -> None:
    with pytest.raises(StoreError, match="was removed"):
        store.tag(LayerId("f" * 64), "web")
    assert store.tags.all() == []


def test_a_tag_of_a_missing_layer_is_reported(store: Store, layers: Layers) -> None:
    store.tags.put("web", LayerId("f" * 64))
    with pytest.raises(UsageError, match="the layer of the tag 'web', ffffffffffff, is gone") as caught:
        store.resolve("web")
    assert "obuild tag rm web" in caught.value.hint


# -- what a tag keeps


def test_a_tag_keeps_its_layers_ancestors_and_not_its_children(store: Store, layers: Layers) -> None:
    root, one, two = layers
    store.tag(one, "web")
    plan = gc.plan(store, now=4e9, older_than=0.0)
    assert [item.name for item in plan.items] == [two]
    assert [(item.name, item.why) for item in plan.in_use] == [(one, "tagged web")]
    assert [item.name for item in gc.plan(store, now=4e9, keep_bytes=0).items] == [two]
    assert gc.plan(store, now=4e9, keep_bytes=0).short > 0
    assert [item.name for item in gc.prune(store, before=4e9).items] == [two]
    gone: list[LayerId] = []
    assert removal.clean(store, tell=gone.append) == []
    assert gone == [two]
    assert set(store.ids()) == {root, one}


def test_a_tag_set_after_the_plan_is_respected(store: Store, layers: Layers) -> None:
    plan = gc.plan(store, now=4e9, older_than=0.0)
    mtime = (store.result / layers[2]).stat().st_mtime
    store.tag(layers[2], "web")
    os.utime(store.result / layers[2], (mtime, mtime))
    stayed = gc.carry_out(store, plan, lambda item: None)
    assert [(item.name, item.why) for item in stayed] == [
        (layers[2], "tagged web"),
        (layers[1], "a layer is built on it"),
        (layers[0], "a layer is built on it"),
    ]


def test_removal_names_the_tags_that_prevent_it(store: Store, layers: Layers) -> None:
    root, one, two = layers
    for name, id in (("web", two), ("mid", one), ("also", two)):
        store.tag(id, name)
    assert removal.in_the_way(store, two) == {"also": two, "web": two}
    assert removal.in_the_way(store, root) == {"mid": one, "also": two, "web": two}
    assert not store.remove(two, {})
    assert removal.delete(store, one, tell=lambda id: None) == [two, one]
    assert set(store.ids()) == set(layers)
    assert removal.delete(store, one, tell=lambda id: None, untag=True) == []
    assert store.tags.all() == []
    assert store.ids() == [root]


def test_tags_are_shown(store: Store, layers: Layers) -> None:
    store.tag(layers[1], "web")
    store.tag(layers[1], "v1")
    assert describe(store, layers[1]).tags == ("v1", "web")
    assert {layer.id: layer.tags for layer in listing(store, None)[0]} == {
        layers[0]: (),
        layers[1]: ("v1", "web"),
        layers[2]: (),
    }


# -- races


def test_a_tag_waits_for_a_removal_and_then_finds_the_layer_gone(store: Store, layers: Layers) -> None:
    said: list[str] = []

    def tag() -> None:
        try:
            store.tag(layers[2], "web")
        except StoreError as error:
            said.append(error.message)

    with locks.folder_lock(store.result / layers[2]):
        thread = threading.Thread(target=tag)
        thread.start()
        assert store.tags.all() == []
        (store.result / layers[2]).rename(store.result_tmp / layers[2])
    thread.join()
    assert said
    assert "was removed" in said[0]
    assert store.tags.all() == []


def test_a_layer_is_not_removed_while_it_is_given_a_tag(store: Store, layers: Layers) -> None:
    with store.use(layers[2]):
        assert not store.remove(layers[2], {})
        store.tags.put("web", layers[2])
    assert not store.remove(layers[2], {})
    assert store.resolve("web") == layers[2]


def test_if_two_processes_set_one_tag_at_once_one_wins(store: Store, chain: ChainMaker) -> None:
    steps = [chain(f"(run (shell {name}))").steps for name in ("one", "two")]
    make(store, steps[0][0])
    for _, step in steps:
        make(store, step)
    ids = [step.id for _, step in steps]

    def tag(id: LayerId) -> None:
        for _ in range(20):
            store.tag(id, "web")

    threads = [threading.Thread(target=tag, args=(id,)) for id in ids]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert store.tags.get("web") in (None, *ids)
    assert store.tags.get("web") in ids
    assert os.listdir(store.tags.folder) == ["web"]


def test_a_removal_with_tags_keeps_a_tag_that_has_moved(
    store: Store, layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _, two = layers
    store.tag(two, "web")
    untag = Tags.untag

    def moved_before(tags: Tags, id: LayerId) -> None:
        store.tag(root, "web")
        untag(tags, id)

    monkeypatch.setattr(Tags, "untag", moved_before)
    assert store.remove(two, {}, untag=True)
    assert store.resolve("web") == root


# -- what a crash or another program leaves


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, b"f" * 64 + b"\n\n", b"f" * 63, b"F" * 64])
def test_a_damaged_tag_keeps_nothing_and_is_removed_by_a_repair(
    store: Store, layers: Layers, content: bytes
) -> None:
    store.tag(layers[2], "web")
    store.tags.file("web").write_bytes(content)
    assert store.tags.all() == []
    with pytest.raises(UsageError, match="'web'") as caught:
        store.resolve("web")
    assert "fsck --repair" in caught.value.hint
    (finding,) = fsck.check(store)
    assert (finding.where, finding.what) == ("tags/web", "a tag without a layer's id")
    assert fsck.repair(store, finding) == "repaired"
    assert list(fsck.check(store)) == []


def test_a_repair_removes_a_tag_of_a_missing_layer(store: Store, layers: Layers) -> None:
    store.tags.put("web", LayerId("f" * 64))
    (finding,) = fsck.check(store)
    assert finding.what == f"a tag of the layer {'f' * 64}, which is gone"
    store.tag(layers[0], "web")
    assert fsck.repair(store, finding) == "repaired"
    assert store.resolve("web") == layers[0]  # it was set since, and stays


def test_a_repair_removes_a_damaged_layer_with_its_tags(store: Store, layers: Layers) -> None:
    store.tag(layers[2], "web")
    key = store.result / layers[1] / "key"
    key.chmod(0o644)
    key.write_text("damaged")
    finding = next(each for each in fsck.check(store) if each.where == f"result/{layers[1]}")
    assert "its tags" in finding.repair
    assert fsck.repair(store, finding) == "repaired"
    assert list(fsck.check(store)) == []
    assert store.ids() == [layers[0]]
    assert store.tags.all() == []


def test_other_files_among_the_tags_are_ignored_until_a_repair_moves_them(store: Store, tmp_path: Path) -> None:
    folder = store.tags.folder
    folder.mkdir()
    (tmp_path / "precious").write_text("f" * 64)
    (folder / "link").symlink_to(tmp_path / "precious")
    (folder / "folder").mkdir()
    (folder / "é").write_text("x")
    os.mkfifo(folder / "pipe")
    assert store.tags.all() == []
    Store.open(store.root)
    findings = list(fsck.check(store))
    assert {finding.where for finding in findings} == {"tags/link", "tags/folder", "tags/é", "tags/pipe"}
    assert {fsck.repair(store, finding) for finding in findings} == {"repaired"}
    assert list(fsck.check(store)) == []
    assert (tmp_path / "precious").read_text() == "f" * 64


def test_unfinished_files_are_swept_unless_they_are_being_written(store: Store, layers: Layers) -> None:
    store.tag(layers[0], "web")
    new = store.tags.folder / ".web.abc_1234"
    new.write_text("f")
    with locks.file_lock(store.tags.lock):
        Store.open(store.root)
        assert new.exists()
        assert list(fsck.check(store)) == []
    (finding,) = fsck.check(store)
    assert finding.what == "a file that was never finished"
    Store.open(store.root)
    assert not new.exists()
    assert store.tags.get("web") == layers[0]


def test_a_valid_name_is_returned_unchanged() -> None:
    assert checked("team/web:1.2") == "team/web:1.2"
