"""Descriptions of layers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest

from obuild.cli import text
from obuild.errors import StoreError
from obuild.plan.steps import Chain
from obuild.store.index import Index
from obuild.store.inspect import Listed, Neighbour, describe, listing
from obuild.store.layers import Store
from tests.support.layers import make, make_all

ChainMaker = Callable[[str], Chain]


def test_a_layer_between_others(store: Store, chain: ChainMaker) -> None:
    made = chain('(env A 1) (run (shell one)) (run (shell "two\\nlines"))')
    root, middle, leaf = make_all(store, made)
    with Index(store) as index:
        for step in made.steps:
            index.add(step.id, step.parent, step.headings[-1], 1000.0, 2.5)
        sizes = {row.id: row.size for row in index.rows()}
    found = describe(store, middle)
    assert (found.id, found.op) == (middle, "/: (run (shell one))")
    assert found.parents == (Neighbour(root, "(from tiny)"),)
    assert [layer.id for layer in found.children] == [leaf]
    assert (found.created, found.seconds, found.total) == (1000.0, 2.5, sum(sizes.values()) - sizes[leaf])
    assert describe(store, leaf).total == sum(sizes.values())
    assert found.log_size == len("log of /: (run (shell one))")
    assert found.key["run"] == ("bash", "-c", "one")
    shown = list(text.description(found))
    assert f"layer   {middle}" in shown
    assert "  env       A=1" in shown
    assert f"  {root[:12]}  (from tiny)" in shown
    assert "children: none" in list(text.description(describe(store, leaf)))


def test_a_layer_whose_builder_died_before_it_added_the_row(store: Store, chain: ChainMaker) -> None:
    root, leaf = make_all(store, chain("(run (shell one))"))
    found = describe(store, leaf)
    assert found.op == "(run (shell one))"
    assert found.seconds is None
    assert re.fullmatch(r"\(from …@sha256:[0-9a-f]{64}\)", found.parents[0].op)
    assert found.parents[0].id == root
    assert not [line for line in text.description(found) if "took" in line]


def test_long_keys_are_cut(store: Store, chain: ChainMaker) -> None:
    variables = " ".join(f"(env V{number} x)" for number in range(50))
    *_, leaf = make_all(store, chain(f"{variables} (run (shell one))"))
    shown = list(text.description(describe(store, leaf)))
    assert "            … and 10 more; --json shows all" in shown


def test_many_children_are_cut(store: Store, chain: ChainMaker) -> None:
    root = make_all(store, chain("(run (shell 0))"))[0]
    for number in range(1, 42):
        make(store, chain(f"(run (shell {number}))").steps[1])
    found = describe(store, root)
    assert len(found.children) == 42
    assert list(text.description(found))[-1] == "  … and 2 more; --json shows all"


def test_the_newest_layers_are_listed_and_the_others_counted(store: Store, chain: ChainMaker) -> None:
    made = chain("(run (shell one)) (run (shell two))")
    root, middle, leaf = make_all(store, made)
    with Index(store) as index:
        index.add(root, None, "(from tiny)", 1.0, 2.5)
        index.add(middle, root, "(run …)", 2.0, 3.5)
        sizes = {row.id: row.size for row in index.rows()}
    os.utime(store.result / middle, (7.0, 7.0))
    first, second, last = listing(store, None)[0]
    assert (first.id, first.parent, first.seconds) == (root, None, 2.5)
    assert second == Listed(middle, root, "(run …)", 2.0, 3.5, sizes[middle], 7.0, ())
    assert (last.id, last.op, last.seconds) == (leaf, "(run (shell two))", None), "it has no row"
    assert listing(store, 1) == ([last], 2)
    assert listing(store, 3) == ([first, second, last], 0)


def test_a_layer_that_is_removed_during_a_listing_is_left_out(
    store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, leaf = make_all(store, chain("(run (shell one))"))
    with Index(store) as index:
        rows = index.rows()
    store.remove(leaf, store.parents())
    monkeypatch.setattr(Index, "rows", lambda self, newest: rows)
    assert [layer.id for layer in listing(store, None)[0]] == [root]


def test_a_layer_that_was_just_removed(store: Store, chain: ChainMaker) -> None:
    with pytest.raises(StoreError, match="just removed"):
        describe(store, chain("").steps[0].id)
