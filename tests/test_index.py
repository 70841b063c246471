"""The index remembers; what is in result/ is the truth."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import StoreError
from obuild.index import Index, Row, disk_usage
from obuild.plan import Chain
from obuild.store import Store
from tests.test_store import make_all

ChainMaker = Callable[[str], Chain]

ADD = """
import sys
from pathlib import Path
from obuild.index import Index
from obuild.store import Store
store = Store.open(Path(sys.argv[1]))
for number in range(20):
    with Index(store) as index:
        index.add(f"{sys.argv[2]}{number}", None, "", 0.0, 0.0)
"""


def test_a_row_is_remembered_as_it_was_told(store: Store, chain: ChainMaker) -> None:
    root, leaf = make_all(store, chain("(run (shell one))"))
    with Index(store) as index:
        index.add(leaf, root, "(run …)", 200.0, 1.5)
        index.add(root, None, "(from tiny)", 100.0, 0.5)
    with Index(store) as index:
        rows = index.rows()
    assert rows == [
        Row(root, None, "(from tiny)", 100.0, 0.5, disk_usage(store, root)),
        Row(leaf, root, "(run …)", 200.0, 1.5, disk_usage(store, leaf)),
    ]
    assert rows[0].size > 0


def test_telling_again_replaces_the_row(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    with Index(store) as index:
        index.add(root, None, "old", 1.0, 1.0)
        index.add(root, None, "new", 2.0, 2.0)
        assert [(row.op, row.created) for row in index.rows()] == [("new", 2.0)]


def test_a_layer_that_a_crash_left_without_a_row_gets_one(store: Store, chain: ChainMaker) -> None:
    root, leaf = make_all(store, chain("(run (shell one))"))
    with Index(store) as index:
        assert {(row.id, row.parent) for row in index.rows()} == {(root, None), (leaf, root)}


def test_a_row_whose_layer_is_gone_goes_too(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    with Index(store) as index:
        index.rows()
        store.remove(root, store.parents())
        assert index.rows() == []


def test_a_lost_database_is_made_again_from_the_layers(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    with Index(store) as index:
        index.add(root, None, "(from tiny)", 1.0, 1.0)
    for path in (store.state / "db").iterdir():
        path.unlink()
    with Index(store) as index:
        assert [row.id for row in index.rows()] == [root]


def test_a_damaged_database_is_told_with_what_to_do(store: Store) -> None:
    path = store.state / "db" / "db.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="index") as caught:
        Index(store)
    assert str(path) in caught.value.hint


def test_processes_that_write_at_once_wait_for_each_other(store: Store) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", ADD, str(store.root), name]) for name in ("a", "b", "c", "d")
    ]
    assert [child.wait() for child in children] == [0, 0, 0, 0]
    with Index(store) as index:
        assert len(list(index._layers.rows)) == 80


def test_the_size_of_a_layer_leaves_holes_out(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    layer = store.find(root)
    assert layer is not None
    before = disk_usage(store, root)
    with (layer.path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert disk_usage(store, root) == before


def test_a_layer_that_is_gone_takes_no_room(store: Store, chain: ChainMaker) -> None:
    assert disk_usage(store, chain("").steps[0].id) == 0


def test_the_index_is_found_in_the_state_folder(store: Store) -> None:
    with Index(store):
        assert Path(store.state, "db", "db.sqlite").is_file()
