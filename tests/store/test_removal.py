"""Removing layers: leaves first, and nothing that is in use."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.store import removal
from obuild.store.layers import Store
from tests.support.layers import make, make_all

ChainMaker = Callable[[str], Chain]


@pytest.fixture
def family(store: Store, chain: ChainMaker) -> tuple[LayerId, LayerId, LayerId, LayerId]:
    """root -> one -> two, and root -> other."""
    root, one, two = make_all(store, chain("(run (shell one)) (run (shell two))"))
    branch = chain("(run (shell other))").steps[1]
    make(store, branch)
    return root, one, two, branch.id


Family = tuple[LayerId, LayerId, LayerId, LayerId]


def left(store: Store) -> set[LayerId]:
    return {layer.id for layer in store.layers()}


def test_a_layer_is_removed_with_all_layers_built_on_it_leaves_first(store: Store, family: Family) -> None:
    root, one, two, other = family
    gone: list[LayerId] = []
    assert removal.delete(store, one, tell=gone.append) == []
    assert gone == [two, one]
    assert left(store) == {root, other}


def test_deleting_a_missing_layer_does_nothing(store: Store, family: Family) -> None:
    gone: list[LayerId] = []
    assert removal.delete(store, LayerId("f" * 64), tell=gone.append) == []
    assert gone == []
    assert left(store) == set(family)


def test_cleaning_removes_every_layer(store: Store, family: Family) -> None:
    gone: list[LayerId] = []
    assert removal.clean(store, tell=gone.append) == []
    assert sorted(gone) == sorted(family)
    assert left(store) == set()


def test_a_layer_in_use_stays_with_all_below_it(store: Store, family: Family) -> None:
    root, one, two, other = family
    gone: list[LayerId] = []
    with store.use(one):
        assert removal.clean(store, tell=gone.append) == [one, root]
    assert set(gone) == {two, other}
    assert left(store) == {root, one}


def test_cleaning_leaves_base_images_and_caches(store: Store, family: Family) -> None:
    with store.caches.borrow("c") as copy:
        copy.path.with_suffix(".new").write_bytes(b"x")
        copy.save(copy.path.with_suffix(".new"))
    removal.clean(store, tell=lambda id: None)
    assert [path.name for path in store.base_image.iterdir()] == ["tiny.qcow2"]
    assert [path.name for path in store.caches.folder.iterdir()] == ["c-c"]


def test_a_layer_that_another_process_removed_meanwhile_is_not_reported_as_kept(
    store: Store, family: Family
) -> None:
    root, one, two, _ = family

    def tell(id: LayerId) -> None:
        if id == two:
            removal.delete(Store.open(store.root), one, tell=lambda id: None)

    assert removal.delete(store, root, tell=tell) == []
    assert left(store) == set()


def test_the_order_of_a_family_is_parents_first(family: Family, store: Store) -> None:
    root, one, two, other = family
    assert removal._below(root, store.parents())[0] == root
    assert removal._below(one, store.parents()) == [one, two]
    assert set(removal._below(root, store.parents())) == {root, one, two, other}
