"""Why a step has to be made: how it differs from the most similar layer of the store.

Only looks and compares.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import TYPE_CHECKING

from obuild.events import Missing
from obuild.plan import keys
from obuild.plan.keys import Fields, LayerId
from obuild.plan.steps import Import, Step
from obuild.store.layers import Layer, Store

if TYPE_CHECKING:
    from obuild.store.index import Index, Row

#: A step is compared with the layers used last, until this many characters of keys have been read, which takes
#: about a second. The key of a copy may list 100,000 files.
ENOUGH = 2_000_000

#: The most layers that a step is compared with: a parent may have 10,000 children.
MANY = 300

NOTHING_LIKE_IT = "no similar layer in the store"


class Reasons(AbstractContextManager["Reasons"]):
    """Compares the missing steps of one chain with the store, in their order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._nearest_to: dict[LayerId, LayerId | None] = {}  # for each missing step
        self._opened = ExitStack()
        self._kept = False

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def keep_open(self, wait: float) -> None:
        """Have the index open until the block ends. StoreError as for Index.

        While a chain is built, each layer is added to it. If nobody had it open, SQLite would take several flushes
        of the disk to close it each time, 3 to 17 ms.
        """
        from obuild.store.index import Index  # late: a cached build needs no database

        if not self._kept:
            self._opened.enter_context(Index(self._store, wait=wait))
            self._kept = True

    def missing(self, step: Step, index: Index) -> Missing:
        """Say why a step whose layer is not in the store has to be made."""
        from obuild.plan import diff  # late: a cached build compares nothing

        near = self._nearest(step, index)
        self._nearest_to[step.id] = near[0].id if near else None
        if near is None:
            return Missing((NOTHING_LIKE_IT,))
        layer, old = near
        row = index.get(layer.id)
        why = tuple(diff.differences(old, keys.fields(step.key)))
        return Missing(why, layer.id, row.seconds if row and row.op else None)

    def _nearest(self, step: Step, index: Index) -> tuple[Layer, Fields] | None:
        """Return the layer most similar to a step among those on its parent, or on what is nearest to that.

        If several are equal, it is the one used last.
        """
        from obuild.plan import diff

        if isinstance(step.action, Import):
            name = step.action.base.name  # a key holds only the content's digest
            candidates = [row for row in index.children(None) if _from(row.op) == name]
        else:
            below = self._nearest_to.get(step.parent, step.parent) if step.parent else None
            candidates = index.children(below) if below else []
        new = keys.fields(step.key)
        best: tuple[float, Layer, Fields] | None = None
        read = 0
        for layer in self._used_last(candidates)[:MANY]:
            with suppress(FileNotFoundError):  # it is just being removed
                key = layer.key
                old = keys.fields(key)
                if diff.alike(old, new):
                    distance = diff.distance(old, new)
                    if best is None or distance < best[0]:
                        best = distance, layer, old
                read += len(key)
            if read > ENOUGH:
                break
        return best[1:] if best else None

    def _used_last(self, rows: Iterable[Row]) -> list[Layer]:
        """Return the layers of `rows`, most recently used first."""
        used: list[tuple[float, Layer]] = []
        for row in rows:
            layer = self._store.layer(row.id)
            with suppress(FileNotFoundError):  # it is just being removed
                used.append((layer.path.stat().st_mtime, layer))
        return [layer for _, layer in sorted(used, key=lambda item: item[0], reverse=True)]


def _from(op: str) -> str:
    """Return the name in `(from NAME)` or `(from NAME@sha256:HEX)`."""
    return op.removeprefix("(from ").removesuffix(")").partition("@")[0]
