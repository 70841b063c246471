"""What the live view says of the store."""

from __future__ import annotations

import os
from contextlib import suppress

from obuild.cli.live.rows import Facts
from obuild.cli.live.state import State
from obuild.errors import ObuildError
from obuild.store.layers import Store

#: How long to wait for another process that is writing to the index, in seconds.
_WAIT = 1.0


class StoreFacts:
    """The size of a store's layers, looked up again whenever a step was made, and the free space on its disk."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._made = -1
        self._layers: int | None = None

    def __call__(self, state: State) -> Facts:
        from obuild.store.index import Index  # late: a fully cached build draws nothing

        with suppress(ObuildError, OSError):
            if (made := len(state.made)) != self._made:
                self._made = made
                with Index(self._store, wait=_WAIT) as index:
                    self._layers = index.size()
            disk = os.statvfs(self._store.root)
            return Facts(self._layers, disk.f_bavail * disk.f_frsize)
        return Facts(self._layers)
