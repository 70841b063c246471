"""Remove layers: always from the leaves, never one that a build or a tag needs."""

from __future__ import annotations

from collections.abc import Callable

from obuild.plan.keys import LayerId
from obuild.store.layers import Store

Tell = Callable[[LayerId], None]


def delete(store: Store, id: LayerId, *, tell: Tell, untag: bool = False) -> list[LayerId]:
    """Remove a layer and all layers built on it; returns those that stay because they are in use or tagged.

    With `untag` the tags are removed, too. `tell` is called with each removed layer.
    """
    parents = store.parents()
    return _remove(store, _below(id, parents), parents, tell, untag=untag)


def in_the_way(store: Store, id: LayerId) -> dict[str, LayerId]:
    """The tags of a layer and all layers built on it, each with its layer: `delete` keeps these layers."""
    tagged = store.tags.by_layer()
    below = _below(id, store.parents()) if tagged else []
    return {name: layer for layer in below for name in tagged.get(layer, ())}


def clean(store: Store, *, tell: Tell) -> list[LayerId]:
    """Remove every saved machine, and every layer that no tag needs; base images and caches stay.

    Returns the layers that stay only because a build is using them.
    """
    for state in store.states.ids():
        store.states.remove(state)
    parents = store.parents()
    roots = [id for id, parent in parents.items() if parent not in parents]
    kept = kept_by_tags(store, parents)
    doomed = [id for root in roots for id in _below(root, parents) if id not in kept]
    return _remove(store, doomed, parents, tell)


def kept_by_tags(store: Store, parents: dict[LayerId, LayerId | None]) -> set[LayerId]:
    """The layers with tags, and all their ancestors."""
    kept: set[LayerId] = set()
    for tagged in store.tags.by_layer():
        id: LayerId | None = tagged
        while id in parents and id not in kept:
            kept.add(id)
            id = parents[id]
    return kept


def _below(id: LayerId, parents: dict[LayerId, LayerId | None]) -> list[LayerId]:
    """A layer and its descendants, each after its parent."""
    children: dict[LayerId, list[LayerId]] = {}
    for child, parent in parents.items():
        if parent is not None:
            children.setdefault(parent, []).append(child)
    found = [id]
    for layer in found:  # grows during the loop
        found.extend(children.get(layer, ()))
    return found


def _remove(
    store: Store, ids: list[LayerId], parents: dict[LayerId, LayerId | None], tell: Tell, *, untag: bool = False
) -> list[LayerId]:
    stayed = []
    for id in reversed(ids):
        if store.remove(id, parents, untag=untag):
            tell(id)
        elif store.find(id):
            stayed.append(id)
    return stayed
