"""Removing layers: always from the leaves, never one that a build stands on."""

from __future__ import annotations

from collections.abc import Callable

from obuild.plan.keys import LayerId
from obuild.store.layers import Store

Tell = Callable[[LayerId], None]


def delete(store: Store, id: LayerId, *, tell: Tell) -> list[LayerId]:
    """Remove a layer and all that was built on it; returns what stayed because a build is using it.

    `tell` hears of each layer as it goes.
    """
    parents = store.parents()
    return _remove(store, _below(id, parents), parents, tell)


def clean(store: Store, *, tell: Tell) -> list[LayerId]:
    """Remove every layer, and every saved machine; base images and caches stay.

    Returns the layers that stayed because a build is using them.
    """
    for state in store.states.ids():
        store.states.remove(state)
    parents = store.parents()
    roots = [id for id, parent in parents.items() if parent not in parents]
    return _remove(store, [id for root in roots for id in _below(root, parents)], parents, tell)


def _below(id: LayerId, parents: dict[LayerId, LayerId | None]) -> list[LayerId]:
    """A layer and its descendants, each after its parent."""
    children: dict[LayerId, list[LayerId]] = {}
    for child, parent in parents.items():
        if parent is not None:
            children.setdefault(parent, []).append(child)
    found = [id]
    for layer in found:  # grows as it goes
        found.extend(children.get(layer, ()))
    return found


def _remove(store: Store, ids: list[LayerId], parents: dict[LayerId, LayerId | None], tell: Tell) -> list[LayerId]:
    stayed = []
    for id in reversed(ids):
        if store.remove(id, parents):
            tell(id)
        elif store.find(id):
            stayed.append(id)
    return stayed
