"""The index is a cache; result/ is the truth."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import StoreError, UsageError
from obuild.host import stamp
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.store import index as index_module
from obuild.store.index import Index, Kin, Row, disk_usage, resolve
from obuild.store.layers import Store
from tests.support.layers import make, make_all

ChainMaker = Callable[[str], Chain]

ADD = """
import sys
from pathlib import Path
from obuild.store.index import Index
from obuild.store.layers import Store
store = Store.open(Path(sys.argv[1]))
for number in range(20):
    id = sys.argv[2] + str(number).rjust(63, "0")
    (store.result / id).mkdir()
    (store.result / id / "key").touch()
    with Index(store) as index:
        index.add(id, None, f"op {id}", 0.0, 0.0)
        if number % 5 == 0:
            index.count()
"""

#: The schema of the first version.
OLD = "CREATE TABLE layers (id TEXT PRIMARY KEY, parent TEXT, op TEXT, created FLOAT, seconds FLOAT, size INTEGER)"


@pytest.fixture
def listings(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows whenever result/ is listed."""
    found: list[None] = []
    ids = store.ids

    def listing() -> list[LayerId]:
        found.append(None)
        return ids()

    monkeypatch.setattr(store, "ids", listing)
    return found


def next_tick(store: Store) -> None:
    """Wait until changes to result/ get a later time stamp than previous ones."""
    while index_module._now(store) <= store.result.stat().st_ctime_ns:
        pass


def damage(path: Path) -> None:
    """Overwrite all pages except the first."""
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))


def test_a_row_has_the_values_that_were_added(store: Store, chain: ChainMaker) -> None:
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


def test_adding_again_replaces_the_row(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    with Index(store) as index:
        index.add(root, None, "old", 1.0, 1.0)
        index.add(root, None, "new", 2.0, 2.0)
        assert [(row.op, row.created) for row in index.rows()] == [("new", 2.0)]


def test_a_layer_that_a_crash_left_without_a_row_gets_one(store: Store, chain: ChainMaker) -> None:
    root, leaf = make_all(store, chain("(run (shell one))"))
    with Index(store) as index:
        assert {(row.id, row.parent) for row in index.rows()} == {(root, None), (leaf, root)}


def test_the_row_of_a_removed_layer_is_removed(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    with Index(store) as index:
        index.rows()
        store.remove(root, store.parents())
        assert index.rows() == []


def test_a_lost_database_is_rebuilt_from_the_layers(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    with Index(store) as index:
        index.add(root, None, "(from tiny)", 1.0, 1.0)
    for path in (store.state / "db").iterdir():
        path.unlink()
    with Index(store) as index:
        assert [row.id for row in index.rows()] == [root]


def test_a_file_that_is_not_a_database_is_moved_aside(
    store: Store, chain: ChainMaker, caplog: pytest.LogCaptureFixture
) -> None:
    (root,) = make_all(store, chain(""))
    path = store.state / "db" / "db.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    with Index(store) as index:
        assert [row.id for row in index.rows()] == [root]
    aside = path.with_name("damaged.sqlite")
    assert aside.read_bytes().startswith(b"no database")
    (record,) = caplog.records
    assert str(aside) in record.getMessage()


def test_damage_found_by_a_query_is_reported_and_repaired_for_the_next(store: Store, chain: ChainMaker) -> None:
    ids = make_all(store, chain("(run (shell one))"))
    with Index(store) as index:
        index.rows()
    damage(store.state / "db" / "db.sqlite")
    with pytest.raises(StoreError, match="index") as caught, Index(store) as index:
        index.rows()
    assert caught.value.hint == "try again"
    with Index(store) as index:
        assert {row.id for row in index.rows()} == set(ids)


def test_the_second_process_to_find_the_damage_keeps_the_new_database(store: Store) -> None:
    with Index(store) as index:
        index.rows()
    path = store.state / "db" / "db.sqlite"
    damage(path)
    second = Index(store)
    with pytest.raises(StoreError), Index(store) as first:
        first.rows()
    with Index(store) as rebuilt:
        rebuilt.rows()
    new = path.stat().st_ino
    with pytest.raises(StoreError), second:
        second.rows()
    assert path.stat().st_ino == new


def test_the_error_for_an_index_that_cannot_be_opened_says_what_to_do(store: Store) -> None:
    path = store.state / "db" / "db.sqlite"
    path.mkdir(parents=True)
    path.with_name("damaged.sqlite").touch()  # so that it cannot be moved there
    with pytest.raises(StoreError, match="cannot open the index") as caught:
        Index(store)
    assert str(path) in caught.value.hint


def test_an_older_database_keeps_its_rows(store: Store, chain: ChainMaker) -> None:
    root, leaf = make_all(store, chain("(run (shell one))"))
    (store.state / "db").mkdir()
    with sqlite3.connect(store.state / "db" / "db.sqlite") as old:
        old.execute(OLD)
        old.execute("INSERT INTO layers VALUES (?, NULL, '(from tiny)', 5.0, 6.0, 7)", (root,))
    old.close()
    with Index(store) as index:
        assert index.get(root) == Row(root, None, "(from tiny)", 5.0, 6.0, 7)
        assert [row.id for row in index.children(root)] == [leaf]


def test_a_database_with_another_schema_is_rebuilt(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    (store.state / "db").mkdir()
    with sqlite3.connect(store.state / "db" / "db.sqlite") as other:
        other.execute("CREATE TABLE layers (id TEXT PRIMARY KEY, colour TEXT)")
        other.execute("CREATE TABLE seen (colour TEXT)")
        other.execute("PRAGMA user_version=99")
    other.close()
    with Index(store) as index:
        assert [row.id for row in index.rows()] == [root]


# -- when result/ is listed


def test_result_is_not_listed_while_nothing_changes(store: Store, chain: ChainMaker, listings: list[None]) -> None:
    root, leaf = make_all(store, chain("(run (shell one))"))
    next_tick(store)
    with Index(store) as index:
        assert index.count() == 2
    assert listings == [None]
    with store.use(leaf):  # changes the layer's last use
        pass
    with Index(store) as index:
        assert [row.id for row in index.rows()] == [row.id for row in (index.get(root), index.get(leaf)) if row]
        assert [row.id for row in index.children(root)] == [leaf]
        assert set(index.all_kin()) == {root, leaf}
    assert resolve(store, leaf[:12]) == leaf
    assert listings == [None]
    store.remove(leaf, {root: None, leaf: root})
    listings.clear()
    with Index(store) as index:
        assert [row.id for row in index.rows()] == [root]
    assert listings == [None]


def test_a_change_in_the_same_tick_of_the_clock_is_seen(
    store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the clock stood still: every change has the same time."""
    monkeypatch.setattr(index_module, "_now", lambda store: 1_000_000_000)
    monkeypatch.setattr(stamp, "of_folder", lambda folder: (1, 1_000_000_000, 1_000_000_000))
    root, leaf = chain("(run (shell one))").steps
    make(store, root)
    with Index(store) as index:
        assert index.count() == 1
        make(store, leaf)
        assert index.count() == 2
        store.remove(leaf.id, store.parents())
        assert [row.id for row in index.rows()] == [root.id]


def test_a_change_while_result_is_listed_is_seen_by_the_next_query(
    store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, leaf = chain("(run (shell one))").steps
    make(store, root)
    next_tick(store)
    ids = store.ids

    def listing() -> list[LayerId]:
        found = ids()
        make(store, leaf)
        return found

    with Index(store) as index:
        monkeypatch.setattr(store, "ids", listing)
        assert index.count() == 1
        monkeypatch.undo()
        assert index.count() == 2


def test_a_builder_that_adds_its_layer_after_another_process_has_seen_it(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    next_tick(store)
    with Index(store) as other, Index(store) as builder:
        assert [row.op for row in other.rows()] == [""]
        builder.add(root, None, "(from tiny)", 1.0, 2.0)
        assert [row.op for row in other.rows()] == ["(from tiny)"]


def test_a_layer_that_is_gone_is_not_added(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    store.remove(root, store.parents())
    next_tick(store)
    with Index(store) as index:
        assert index.count() == 0
        index.add(root, None, "late", 1.0, 2.0)
        assert index.count() == 0


def test_many_layers_without_a_row_are_read_while_others_write(
    store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "FEW", 1)
    root, middle, leaf = make_all(store, chain("(run (shell one)) (run (shell two))"))
    found = Index._found

    def look(self: Index, id: str) -> Row | None:
        with Index(store) as other:
            other.add(root, None, "(from tiny)", 1.0, 2.0)
        return found(self, id)

    monkeypatch.setattr(Index, "_found", look)
    with Index(store) as index:
        assert {row.id: row.op for row in index.rows()} == {root: "(from tiny)", middle: "", leaf: ""}


def test_a_layer_that_is_made_again_during_a_sync_gets_its_row(
    store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "FEW", 0)
    (root,) = make_all(store, chain(""))
    found = Index._found
    seen: list[str] = []

    def look(self: Index, id: str) -> Row | None:
        seen.append(id)
        return found(self, id) if len(seen) > 1 else None  # at first it was just removed

    monkeypatch.setattr(Index, "_found", look)
    with Index(store) as index:
        assert [row.id for row in index.rows()] == [root]
    assert seen == [root, root]


def test_a_folder_that_is_not_a_layer_gets_no_row(
    store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "FEW", 0)
    (root,) = make_all(store, chain(""))
    (store.result / "lost+found").mkdir()
    (store.result / ("a" * 64)).mkdir()
    (store.result / ("b" * 64)).touch()
    with Index(store) as index:
        assert [row.id for row in index.rows()] == [root]


# -- queries


@pytest.fixture
def family(store: Store, chain: ChainMaker) -> list[LayerId]:
    """root -> one -> two, and root -> other; made at 1, 2, 3 and 4 s."""
    steps = [*chain("(run (shell one)) (run (shell two))").steps, chain("(run (shell other))").steps[1]]
    with Index(store) as index:
        for number, step in enumerate(steps, 1):
            make(store, step)
            index.add(step.id, step.parent, step.headings[-1], float(number), 0.5)
    return [step.id for step in steps]


def test_the_newest_are_last(store: Store, family: list[LayerId]) -> None:
    with Index(store) as index:
        assert [row.id for row in index.rows()] == family
        assert [row.id for row in index.rows(2)] == family[2:]
        assert index.rows(0) == []
        assert index.count() == 4


def test_ancestors_and_children(store: Store, family: list[LayerId]) -> None:
    root, one, two, other = family
    with Index(store) as index:
        assert [row.id for row in index.children(root)] == [one, other]
        assert [row.id for row in index.children(None)] == [root]
        assert index.children(two) == []
        assert [row.id for row in index.ancestors(two)] == [one, root]
        assert index.ancestors(root) == index.ancestors(LayerId("f" * 64)) == []
        assert index.get(LayerId("f" * 64)) is None


def test_all_kin(store: Store, family: list[LayerId]) -> None:
    root, one, two, other = family
    with Index(store) as index:
        assert index.all_kin() == {
            root: Kin(None, disk_usage(store, root), 1.0),
            one: Kin(root, disk_usage(store, one), 2.0),
            two: Kin(one, disk_usage(store, two), 3.0),
            other: Kin(root, disk_usage(store, other), 4.0),
        }


def test_ids_by_their_first_digits(store: Store, family: list[LayerId], listings: list[None]) -> None:
    next_tick(store)
    with Index(store) as index:
        assert set(index.starting("0")) == set(family), "nobody has looked into result/ since: it is listed"
        index.count()
        listings.clear()
        for id in family:
            assert list(index.starting(id[:20])) == [id]
        assert {id for digit in "0123456789abcdef" for id in index.starting(digit)} == set(family)
    assert listings == []


def test_an_id_is_resolved_whatever_the_state_of_the_index(store: Store, family: list[LayerId]) -> None:
    with Index(store) as index:
        index.rows()
    damage(store.state / "db" / "db.sqlite")
    assert resolve(store, family[2][:20]) == family[2]
    for path in (store.state / "db").iterdir():
        path.unlink()
    (store.state / "db").rmdir()
    (store.state / "db").touch()
    assert resolve(store, family[2][:20]) == family[2]
    with pytest.raises(UsageError, match="no layer"):
        resolve(store, "é\udcff")
    draft = "e" * 64
    (store.result_tmp / draft).mkdir()
    assert resolve(store, draft[:40], drafts=True) == draft
    assert resolve(store, draft, drafts=True) == draft


def test_processes_that_write_at_once_wait_for_each_other(store: Store) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", ADD, str(store.root), name]) for name in ("a", "b", "c", "d")
    ]
    assert [child.wait() for child in children] == [0, 0, 0, 0]
    with Index(store) as index:
        rows = index.rows()
    assert len(rows) == 80
    assert all(row.op == f"op {row.id}" for row in rows)


def test_the_size_of_a_layer_excludes_holes(store: Store, chain: ChainMaker) -> None:
    (root,) = make_all(store, chain(""))
    layer = store.find(root)
    assert layer is not None
    before = disk_usage(store, root)
    with (layer.path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert disk_usage(store, root) == before
    (layer.path / "rootfs" / "dense").write_bytes(os.urandom(1 << 20))
    assert disk_usage(store, root) >= before + (1 << 20)


def test_a_layer_that_is_gone_has_no_size(store: Store, chain: ChainMaker) -> None:
    assert disk_usage(store, chain("").steps[0].id) == 0


def test_the_index_is_in_the_state_folder(store: Store) -> None:
    with Index(store):
        assert Path(store.state, "db", "db.sqlite").is_file()
